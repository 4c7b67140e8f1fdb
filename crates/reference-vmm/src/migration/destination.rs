//! The side that gets the VM.

use super::address::Connection;
use super::wire::{Frame, Kind, Offer, Session, connection, failed, refuse, send_duration, send_now};
use crate::error::VmError;
use crate::guest::Guest;
use crate::memory::{self, PAGE, Ram};
use crate::state::VmState;
use guest_debug::state::StateUpdate;
use std::io::{BufReader, BufWriter};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Address as _, Bytes, GuestAddress};

/// So many ranges of memory without their breakpoints are kept in mind.
const MANY_RANGES: usize = 1024;

/// How a VM is made from what comes over the connection.
pub trait Destination {
    /// Architecture of the guests that it can take.
    type Guest: Guest;
    /// A machine that waits for its state.
    type Machine;
    /// A VM that is ready to run.
    type Vm;

    /// Makes a machine that can take what is offered, with the debug session as it is now.
    ///
    /// # Errors
    ///
    /// What this host lacks.
    fn prepare(&self, offer: Offer<Self::Guest>) -> Result<Self::Machine, VmError>;

    /// Its memory.
    fn ram(machine: &Self::Machine) -> &Arc<Ram>;

    /// So many bytes of memory were written.
    ///
    /// # Errors
    ///
    /// Why breakpoints can't be planted there.
    fn written(&self, machine: &Self::Machine, address: GuestAddress, length: u64) -> Result<(), VmError>;

    /// The guest stands still and nothing has come: arms the debug session that was offered, if that can be done ahead.
    ///
    /// # Errors
    ///
    /// What this host lacks.
    fn arm_ahead(&self, machine: &Self::Machine) -> Result<(), VmError>;

    /// Restores everything but the debug session.
    ///
    /// # Errors
    ///
    /// What is wrong with the state, or what this host can't take.
    fn restore(&self, machine: Self::Machine, state: &VmState<Self::Guest>) -> Result<Self::Vm, VmError>;

    /// Arms the debug session, which has become this if it is not what was offered.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or what this host lacks.
    fn arm(&self, vm: &Self::Vm, update: Option<StateUpdate>) -> Result<(), VmError>;
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
    let arriving = Arriving { destination, machine, unplanted: Vec::new(), to_arm: false, cost: Cost::default() };
    let (vm, session) = arriving.take(&mut reader).inspect_err(|error| refuse(&mut writer, error))?;
    progress("restored".to_owned());
    send_duration(&mut writer, Kind::Ready, session)?;
    Frame::expect(&mut reader, Kind::Commit)?;
    // Before anything runs: a source that has not heard of it by the end of the connection goes on itself.
    send_now(&mut writer, Kind::Running, &[])?;
    Ok(vm)
}

fn prepare<D: Destination>(destination: &D, reader: &mut BufReader<&Connection>) -> Result<D::Machine, VmError> {
    destination.prepare(Offer::receive(&Frame::expect(reader, Kind::Offer)?)?)
}

/// A VM whose memory is on its way.
struct Arriving<'a, D: Destination> {
    destination: &'a D,
    machine: D::Machine,
    /// Where memory has come, and breakpoints are still to be planted.
    unplanted: Vec<Range<u64>>,
    /// The guest stands still, and its debug session may be armed: done where there is time for it.
    to_arm: bool,
    cost: Cost,
}

impl<D: Destination> Arriving<'_, D> {
    /// Takes everything; answers the VM, ready to run, and what its debug session has cost the guest.
    fn take(mut self, reader: &mut BufReader<&Connection>) -> Result<(D::Vm, Duration), VmError> {
        let state = self.take_memory(reader)?;
        let vm = self.destination.restore(self.machine, &state)?;
        let started = Instant::now();
        let session: Option<Session> = Frame::expect(reader, Kind::Session)?.json()?;
        self.destination.arm(&vm, session.map(StateUpdate::from))?;
        Ok((vm, self.cost.total + started.elapsed()))
    }

    /// Takes everything up to the state of the rest, which is the answer.
    fn take_memory(&mut self, reader: &mut BufReader<&Connection>) -> Result<VmState<D::Guest>, VmError> {
        loop {
            // While there is nothing else to do, but not endlessly later.
            if reader.buffer().is_empty() || self.unplanted.len() >= MANY_RANGES {
                self.plant()?;
                self.arm_ahead()?;
            }
            let frame = Frame::read(reader)?;
            self.cost.next_came(frame.began);
            match frame.kind {
                Kind::Memory => {
                    let (offset, bytes) = frame.memory()?;
                    self.write(offset, bytes)?;
                }
                Kind::Zeroes => {
                    let (offset, length) = frame.zeroes()?;
                    self.clear(offset, length)?;
                }
                Kind::Stopped => (self.cost, self.to_arm) = (Cost::default(), true),
                Kind::State => {
                    self.plant()?;
                    self.cost.next_came(Instant::now());
                    let state: VmState<D::Guest> = frame.json()?;
                    if state.guest_debug.is_some() {
                        return Err(failed("the peer sent a debug session in its State; it belongs into a Session"));
                    }
                    state.check()?;
                    return Ok(state);
                }
                Kind::Refuse => {
                    return Err(failed(format!("the source says: {}", String::from_utf8_lossy(&frame.body))));
                }
                kind => return Err(failed(format!("the peer sent {kind:?} where memory is expected"))),
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), VmError> {
        for (at, range) in self.pieces(offset, bytes.len() as u64)? {
            self.write_at(at, bytes.get(range.clone()).unwrap_or_default())?;
            self.came(at, range.len() as u64);
        }
        Ok(())
    }

    fn clear(&mut self, offset: u64, length: u64) -> Result<(), VmError> {
        let zeroes = [0; PAGE as usize];
        for (start, range) in self.pieces(offset, length)? {
            for done in range.clone().step_by(zeroes.len()) {
                let count = (range.end - done).min(zeroes.len());
                let at = start.unchecked_add((done - range.start) as u64);
                self.write_at(at, zeroes.get(..count).unwrap_or_default())?;
            }
            self.came(start, range.len() as u64);
        }
        Ok(())
    }

    /// Where so many bytes at an offset in guest memory are. All of them are somewhere.
    fn pieces(&self, offset: u64, length: u64) -> Result<Vec<(GuestAddress, Range<usize>)>, VmError> {
        let ram = D::ram(&self.machine);
        if offset.checked_add(length).is_none_or(|end| end > memory::size(ram)) {
            return Err(outside(ram, offset, length));
        }
        Ok(memory::pieces(ram, offset, length).collect())
    }

    fn write_at(&self, at: GuestAddress, bytes: &[u8]) -> Result<(), VmError> {
        let written = D::ram(&self.machine).write_slice(bytes, at);
        written.map_err(|error| connection(std::io::Error::other(error)))
    }

    fn came(&mut self, at: GuestAddress, length: u64) {
        match self.unplanted.last_mut() {
            Some(last) if last.end == at.0 => last.end += length,
            _ => self.unplanted.push(at.0..at.0 + length),
        }
    }

    fn arm_ahead(&mut self) -> Result<(), VmError> {
        if std::mem::take(&mut self.to_arm) {
            let started = Instant::now();
            self.destination.arm_ahead(&self.machine)?;
            self.cost.add(started);
        }
        Ok(())
    }

    fn plant(&mut self) -> Result<(), VmError> {
        if self.unplanted.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        for range in self.unplanted.drain(..) {
            self.destination.written(&self.machine, GuestAddress(range.start), range.end - range.start)?;
        }
        self.cost.add(started);
        Ok(())
    }
}

/// The time that the debug session kept the source waiting.
#[derive(Default)]
struct Cost {
    total: Duration,
    /// What it took since the last frame came, and when that was over.
    since: Option<(Duration, Instant)>,
}

impl Cost {
    fn add(&mut self, started: Instant) {
        let (before, end) = (self.since.map_or(Duration::ZERO, |(time, _)| time), Instant::now());
        self.since = Some((before + (end - started), end));
    }

    /// Where nothing came for as long as it took, the source was not kept.
    fn next_came(&mut self, at: Instant) {
        if let Some((time, end)) = self.since.take()
            && at.saturating_duration_since(end) < time
        {
            self.total += time;
        }
    }
}

fn outside(ram: &Ram, offset: u64, length: u64) -> VmError {
    let size = memory::size(ram);
    failed(format!("the peer sent {length} bytes of memory at offset {offset:#x}; guest memory has {size:#x} bytes"))
}
