//! The side that has the VM.

use super::address::Connection;
use super::pages;
use super::wire::{Frame, Kind, MAX_RUN, Offer, Session, connection, failed, send, send_json, send_now};
use crate::error::VmError;
use crate::guest::Guest;
use crate::memory::{self, PAGE};
use crate::state::VmState;
use guest_debug::SavedState;
use guest_debug::state::StateUpdate;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::time::{Duration, Instant};

/// After so many passes the rest is sent with the guest stopped, however much it is.
const MAX_PASSES: u32 = 10;
/// So little is not worth another pass.
const FEW_PAGES: u64 = 256;

/// The VM, as its migration needs it.
pub trait Source {
    /// Architecture of its guest.
    type Guest: Guest;

    /// What the destination must be able to take, and the debug session that this has.
    ///
    /// # Errors
    ///
    /// Whatever keeps the VM from saying so.
    fn offer(&self) -> Result<(Offer<Self::Guest>, Option<SavedState>), VmError>;

    /// Size of guest memory in bytes.
    fn memory_size(&self) -> u64;

    /// Reads guest memory from an offset on as the guest wrote it, while it runs as well.
    ///
    /// # Errors
    ///
    /// [`VmError::Debug`] or [`VmError::Migration`] outside of guest memory.
    fn read_memory(&self, offset: u64, bytes: &mut [u8]) -> Result<(), VmError>;

    /// Begins or ends the log of pages that change.
    ///
    /// # Errors
    ///
    /// What KVM answers.
    fn log_dirty_pages(&self, on: bool) -> Result<(), VmError>;

    /// The pages that have changed since the last call, or since the log began.
    ///
    /// # Errors
    ///
    /// What KVM answers.
    fn take_dirty_pages(&self) -> Result<Vec<u64>, VmError>;

    /// What the debug session has become, if it is not what it was. Only while the VM is stopped.
    ///
    /// # Errors
    ///
    /// [`VmError::Debug`].
    fn session_update(&self, before: &SavedState) -> Result<Option<StateUpdate>, VmError>;

    /// All of the VM but its memory and its debug session. Only while it is stopped.
    ///
    /// # Errors
    ///
    /// What KVM answers.
    fn state(&self) -> Result<VmState<Self::Guest>, VmError>;

    /// Stops the VM and calls `body`. If it succeeds the VM is gone; otherwise it goes on as if nothing had been. May call
    /// it again when the guest was in the middle of a reset.
    ///
    /// # Errors
    ///
    /// What keeps the VM from being stopped, or from being saved, or what `body` answers.
    fn switch(&self, body: &mut Switch<'_>) -> Result<(), VmError>;
}

/// What is done with a stopped VM; gets how long it took to bring it to a halt.
pub type Switch<'a> = dyn FnMut(Duration) -> Result<(), VmError> + 'a;

/// How a migration went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Passes over memory before the guest was stopped.
    pub passes: u32,
    /// Pages that were sent, zeroes not counted.
    pub pages: u64,
    /// Pages of them that were sent with the guest stopped.
    pub last_pages: u64,
    /// Time from the call to stop until the destination was about to run.
    pub downtime: Duration,
    /// The part of it that it took to bring vCPUs to a halt.
    pub halt: Duration,
    /// The part of the downtime that a VM without a debug session would not have, as the destination has measured it: from when
    /// everything else was restored until the session was armed, and what breakpoints in the memory that came last have
    /// cost. What either side does while it waits for the other is no part.
    pub session: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passes, {} pages, {} of them with the guest stopped for {:.3} ms: {:.3} ms to bring it to a halt, {:.3} ms for the \
             debug session",
            self.passes,
            self.pages,
            self.last_pages,
            self.downtime.as_secs_f64() * 1e3,
            self.halt.as_secs_f64() * 1e3,
            self.session.as_secs_f64() * 1e3,
        )
    }
}

/// Moves the VM over the connection. `progress` gets a line now and then.
///
/// # Errors
///
/// [`VmError::Migration`] or what the VM answers. The VM goes on here then, with its session whole.
pub fn migrate<S: Source>(vm: &S, peer: &Connection, progress: &mut dyn FnMut(String)) -> Result<Report, VmError> {
    let mut reader = BufReader::new(peer);
    let mut writer = BufWriter::with_capacity(MAX_RUN as usize, peer);
    let (offer, session) = vm.offer()?;
    send_json(&mut writer, Kind::Offer, &offer)?;
    Frame::expect(&mut reader, Kind::Accept)?;
    vm.log_dirty_pages(true)?;
    let result = copy_and_switch(vm, session.as_ref(), &mut reader, &mut writer, progress);
    // A VM that is gone needs no log either.
    if let Err(error) = vm.log_dirty_pages(false) {
        log::warn!("KVM goes on to log what the guest writes: {error}");
    }
    result
}

fn copy_and_switch<S: Source>(
    vm: &S,
    session: Option<&SavedState>,
    reader: &mut BufReader<&Connection>,
    writer: &mut BufWriter<&Connection>,
    progress: &mut dyn FnMut(String),
) -> Result<Report, VmError> {
    let mut report = Report::default();
    let mut left = pages::all(vm.memory_size());
    // The destination's memory is zero to begin with.
    let mut skip_zeroes = true;
    let mut before = u64::MAX;
    loop {
        let count = pages::count(&left);
        let enough = count <= FEW_PAGES || count >= before || report.passes >= MAX_PASSES;
        if report.passes > 0 && enough {
            break;
        }
        progress(format!("pass {}: {count} pages, {} MiB", report.passes + 1, count * PAGE >> 20));
        report.pages += send_pages(vm, &left, skip_zeroes, writer)?;
        (skip_zeroes, before) = (false, if report.passes == 0 { u64::MAX } else { count });
        report.passes += 1;
        left = vm.take_dirty_pages()?;
    }
    progress("stopping the guest".to_owned());
    let started = Instant::now();
    vm.switch(&mut |halt| {
        send_now(writer, Kind::Stopped, &[])?;
        // What the guest wrote behind the last pass.
        pages::add(&mut left, &vm.take_dirty_pages()?);
        report.last_pages = send_pages(vm, &left, false, writer)?;
        let state = vm.state()?;
        // An interrupt controller may keep a part of its state in guest memory.
        report.last_pages += send_pages(vm, &vm.take_dirty_pages()?, false, writer)?;
        report.pages += report.last_pages;
        send_json(writer, Kind::State, &state)?;
        // Behind it: this is done before the destination has restored as much.
        let update = session.map_or(Ok(None), |before| vm.session_update(before))?;
        send_json(writer, Kind::Session, &update.map(Session::from))?;
        report.session = Frame::expect(reader, Kind::Ready)?.duration()?;
        send_now(writer, Kind::Commit, &[])?;
        wait_however_long(reader);
        Frame::expect(reader, Kind::Running)?;
        (report.downtime, report.halt) = (started.elapsed(), halt);
        Ok(())
    })?;
    Ok(report)
}

/// The destination may be running: only an answer, or the end of the connection, says which of the two has the VM.
fn wait_however_long(reader: &mut BufReader<&Connection>) {
    while reader.fill_buf().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        log::warn!("the destination has not confirmed that it runs; the VM stays stopped here until it does");
    }
}

/// After so much memory the peer gets to hear something, whatever is in it: it waits for a minute, and zeroes are skipped.
const SIGN_OF_LIFE: u64 = 64 << 20;

/// Sends pages; answers how many were not zero.
fn send_pages<S: Source>(vm: &S, bitmap: &[u64], skip_zeroes: bool, to: &mut impl Write) -> Result<u64, VmError> {
    let mut buffer = vec![0; MAX_RUN as usize];
    let (mut sent, mut silent) = (0, 0);
    for run in pages::runs(bitmap, MAX_RUN) {
        let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
        let bytes = buffer.get_mut(..length).ok_or_else(|| failed("a run is too long"))?;
        vm.read_memory(run.start, bytes)?;
        sent += send_run(run.start, bytes, skip_zeroes, to)?;
        silent += run.end - run.start;
        if silent >= SIGN_OF_LIFE {
            silent = 0;
            // No zeroes there.
            send(to, Kind::Zeroes, &[&run.end.to_le_bytes(), &0u64.to_le_bytes()])?;
            to.flush().map_err(connection)?;
        }
    }
    to.flush().map_err(connection)?;
    Ok(sent)
}

/// Sends neighbouring pages, those that are zero apart from the others.
fn send_run(offset: u64, bytes: &[u8], skip_zeroes: bool, to: &mut impl Write) -> Result<u64, VmError> {
    let mut sent = 0;
    let mut offset = offset;
    let zero = |page: &[u8]| memory::is_zero(page);
    let mut rest = bytes;
    while let Some(first) = rest.get(..PAGE as usize) {
        let kind = zero(first);
        let same = rest.chunks(PAGE as usize).take_while(|page| zero(page) == kind).count();
        let (part, behind) = rest.split_at((same * PAGE as usize).min(rest.len()));
        let place = offset.to_le_bytes();
        if !kind {
            send(to, Kind::Memory, &[&place, part])?;
            sent += same as u64;
        } else if !skip_zeroes {
            send(to, Kind::Zeroes, &[&place, &(part.len() as u64).to_le_bytes()])?;
        }
        (offset, rest) = (offset + part.len() as u64, behind);
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::super::wire::send_duration;
    use super::*;
    use crate::state::tests::sample;
    use guest_debug::Arm64;
    use guest_debug_gdb::Stream;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    /// A VM with nothing but zeroes.
    struct Vm {
        memory: u64,
        stopped: AtomicBool,
    }

    impl Vm {
        fn new(memory: u64) -> Self {
            Self { memory, stopped: AtomicBool::new(false) }
        }
    }

    impl Source for Vm {
        type Guest = Arm64;

        fn offer(&self) -> Result<(Offer<Arm64>, Option<SavedState>), VmError> {
            Ok((Offer::new(sample().machine, None), None))
        }

        fn memory_size(&self) -> u64 {
            self.memory
        }

        fn read_memory(&self, _: u64, bytes: &mut [u8]) -> Result<(), VmError> {
            bytes.fill(0);
            Ok(())
        }

        fn log_dirty_pages(&self, _: bool) -> Result<(), VmError> {
            Ok(())
        }

        fn take_dirty_pages(&self) -> Result<Vec<u64>, VmError> {
            Ok(vec![0])
        }

        fn session_update(&self, _: &SavedState) -> Result<Option<StateUpdate>, VmError> {
            Ok(None)
        }

        fn state(&self) -> Result<VmState, VmError> {
            Ok(VmState { guest_debug: None, ..sample() })
        }

        fn switch(&self, body: &mut Switch<'_>) -> Result<(), VmError> {
            self.stopped.store(true, Ordering::SeqCst);
            body(Duration::ZERO).inspect_err(|_| self.stopped.store(false, Ordering::SeqCst))
        }
    }

    /// Moves a VM to a destination that falls silent when the VM has become its own, and then does as `end` says.
    fn silence_behind_commit(end: impl FnOnce(&mut UnixStream)) -> (bool, Result<Report, VmError>) {
        const PATIENCE: Duration = Duration::from_millis(20);
        let (here, mut there) = UnixStream::pair().unwrap();
        let source = Connection::new(Stream::Unix(here.try_clone().unwrap())).unwrap();
        here.set_read_timeout(Some(PATIENCE)).unwrap();
        let vm = Vm::new(PAGE);
        let result = thread::scope(|scope| {
            let moving = scope.spawn(|| migrate(&vm, &source, &mut drop));
            Frame::expect(&mut there, Kind::Offer).unwrap();
            send_now(&mut there, Kind::Accept, &[]).unwrap();
            while Frame::read(&mut there).unwrap().kind != Kind::Session {}
            send_duration(&mut there, Kind::Ready, Duration::ZERO).unwrap();
            Frame::expect(&mut there, Kind::Commit).unwrap();
            thread::sleep(5 * PATIENCE);
            assert!(!moving.is_finished(), "it can't know which of the two has the VM");
            assert!(vm.stopped.load(Ordering::SeqCst));
            end(&mut there);
            moving.join().unwrap()
        });
        (vm.stopped.load(Ordering::SeqCst), result)
    }

    #[test]
    fn a_destination_hears_of_memory_that_has_nothing_but_zeroes() {
        let bitmap = pages::all(3 * SIGN_OF_LIFE);
        let mut wire = Vec::new();
        assert_eq!(send_pages(&Vm::new(3 * SIGN_OF_LIFE), &bitmap, true, &mut wire).unwrap(), 0);
        let mut wire = wire.as_slice();
        for sign in 1..=3 {
            let frame = Frame::read(&mut wire).unwrap();
            assert_eq!((frame.kind, frame.zeroes().unwrap()), (Kind::Zeroes, (sign * SIGN_OF_LIFE, 0)));
        }
        assert!(wire.is_empty());
    }

    #[test]
    fn a_source_that_gets_no_word_behind_commit_stays_stopped() {
        let (stopped, result) = silence_behind_commit(|there| send_now(there, Kind::Running, &[]).unwrap());
        assert!(stopped && result.is_ok(), "{result:?}");
    }

    #[test]
    fn a_source_whose_destination_is_gone_behind_commit_goes_on() {
        let (stopped, result) = silence_behind_commit(|there| there.shutdown(std::net::Shutdown::Both).unwrap());
        let error = result.unwrap_err().to_string();
        assert!(!stopped && error.contains("closed the connection"), "{error}");
    }
}
