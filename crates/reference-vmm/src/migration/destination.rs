//! The side that gets the VM.

use super::address::Connection;
use super::wire::{Frame, Kind, Offer, connection, failed, refuse, send_duration, send_now};
use crate::error::VmError;
use crate::layout::RAM_BASE;
use crate::memory::{self, PAGE, Ram};
use crate::state::VmState;
use guest_debug::state::GuestDebugState;
use std::io::{BufReader, BufWriter};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// How a VM is made from what comes over the connection.
pub trait Destination {
    /// A machine that waits for its state.
    type Machine;
    /// A VM that is ready to run.
    type Vm;

    /// Makes a machine that can take what is offered, with the debug session as it is now.
    ///
    /// # Errors
    ///
    /// What this host lacks.
    fn prepare(&self, offer: &Offer) -> Result<Self::Machine, VmError>;

    /// Its memory.
    fn ram(machine: &Self::Machine) -> &Arc<Ram>;

    /// The debug session has changed since it was offered.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or what this host lacks.
    fn set_session(&self, machine: &mut Self::Machine, session: GuestDebugState) -> Result<(), VmError>;

    /// Plants breakpoints, memory being complete; a bit of it may be written once more.
    ///
    /// # Errors
    ///
    /// Why that is not possible.
    fn plant(&self, machine: &Self::Machine) -> Result<(), VmError>;

    /// Restores everything else and arms the session. Answers how long that took, too.
    ///
    /// # Errors
    ///
    /// What is wrong with the state, or what this host can't take.
    fn restore(&self, machine: Self::Machine, state: &VmState) -> Result<(Self::Vm, Duration), VmError>;
}

/// Takes the VM that comes over the connection. When this returns, the source has given it up, and it may run.
///
/// # Errors
///
/// [`VmError::Migration`] or why this host can't take the VM. The source has been told if it could be, and keeps the VM.
pub fn receive<D: Destination>(
    destination: &D,
    peer: &Connection,
    progress: &mut dyn FnMut(String),
) -> Result<D::Vm, VmError> {
    let mut reader = BufReader::with_capacity(1 << 20, peer);
    let mut writer = BufWriter::new(peer);
    let machine = prepare(destination, &mut reader).inspect_err(|error| refuse(&mut writer, error))?;
    send_now(&mut writer, Kind::Accept, &[])?;
    progress("accepted, memory is coming".to_owned());
    let (vm, session_time) = take(destination, machine, &mut reader).inspect_err(|error| refuse(&mut writer, error))?;
    progress("restored".to_owned());
    send_duration(&mut writer, Kind::Ready, session_time)?;
    Frame::expect(&mut reader, Kind::Commit)?;
    // Before anything runs: a source that has not heard of it by the end of the connection goes on itself.
    send_now(&mut writer, Kind::Running, &[])?;
    Ok(vm)
}

fn prepare<D: Destination>(destination: &D, reader: &mut BufReader<&Connection>) -> Result<D::Machine, VmError> {
    let offer: Offer = Frame::expect(reader, Kind::Offer)?.json()?;
    offer.check()?;
    destination.prepare(&offer)
}

fn take<D: Destination>(
    destination: &D,
    mut machine: D::Machine,
    reader: &mut BufReader<&Connection>,
) -> Result<(D::Vm, Duration), VmError> {
    let zeroes = [0; PAGE as usize];
    let mut session_time = Duration::ZERO;
    let mut planted = None;
    loop {
        let frame = Frame::read(reader)?;
        let ram = D::ram(&machine);
        match frame.kind {
            Kind::Memory => {
                let (offset, bytes) = frame.memory()?;
                write(ram, offset, bytes)?;
            }
            Kind::Zeroes => {
                let (offset, length) = frame.zeroes()?;
                if offset.checked_add(length).is_none_or(|end| end > memory::size(ram)) {
                    return Err(outside(ram, offset, length));
                }
                for at in (0..length).step_by(PAGE as usize) {
                    let count = (length - at).min(PAGE) as usize;
                    write(ram, offset + at, zeroes.get(..count).unwrap_or_default())?;
                }
            }
            Kind::Session => {
                destination.set_session(&mut machine, frame.json()?)?;
                session_time += frame.began.elapsed();
            }
            Kind::Complete => {
                let started = Instant::now();
                destination.plant(&machine)?;
                planted = Some((Instant::now(), started.elapsed()));
            }
            Kind::State => {
                // Where nothing else came for as long, it was not planting that kept the source.
                session_time += planted.map_or(Duration::ZERO, |(end, time)| {
                    if frame.began.saturating_duration_since(end) < time { time } else { Duration::ZERO }
                });
                let state: VmState = frame.json()?;
                if state.guest_debug.is_some() {
                    return Err(failed("the peer sent a debug session in its State; it belongs into a Session"));
                }
                state.check()?;
                let (vm, time) = destination.restore(machine, &state)?;
                return Ok((vm, session_time + time));
            }
            Kind::Refuse => return Err(failed(format!("the source says: {}", String::from_utf8_lossy(&frame.body)))),
            kind => return Err(failed(format!("the peer sent {kind:?} where memory is expected"))),
        }
    }
}

fn write(ram: &Ram, offset: u64, bytes: &[u8]) -> Result<(), VmError> {
    let length = bytes.len() as u64;
    let inside = offset.checked_add(length).is_some_and(|end| end <= memory::size(ram));
    let at = RAM_BASE.checked_add(offset).filter(|_| inside).ok_or_else(|| outside(ram, offset, length))?;
    ram.write_slice(bytes, GuestAddress(at)).map_err(|error| connection(std::io::Error::other(error)))
}

fn outside(ram: &Ram, offset: u64, length: u64) -> VmError {
    let size = memory::size(ram);
    failed(format!("the peer sent {length} bytes of memory at offset {offset:#x}; guest memory has {size:#x} bytes"))
}
