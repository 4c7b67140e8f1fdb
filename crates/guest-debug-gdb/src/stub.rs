//! One client's session, without any I/O: bytes and VM events in, bytes out.

mod ahead;

use crate::arch::RegisterNumber;
use crate::description::GdbArch;
use crate::frame::{Frame, FrameDecoder, encode, encode_with, to_hex};
use crate::gate::{self, MAX_READ, Selection, Verdict};
use crate::target::GuestTarget;
use crate::vm::{DebugVm, VmError, VmEvent};
use crate::vm_thread::Tid;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStubBuilder, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;
use guest_debug::{Gva, StopEvent, StopReason, Unsupported};
use guest_debug_relay::ahead::{FEATURE as AHEAD, Wish};
use std::collections::VecDeque;
use std::convert::Infallible;
use thiserror::Error;

/// Longest packet, as the client is told. gdb reads memory in pieces of half of it.
pub(crate) const PACKET_SIZE: usize = 2 * MAX_READ + 0x100;

/// What a client reads whose VM was migrated.
const MOVED: &str = "The VM goes on elsewhere, with its breakpoints; attach to it there.\n";

/// While more than this is unsent, what breakpoints print is dropped: they may print faster than a client reads.
const MAX_BACKLOG: usize = 0x4_0000;
/// Text in one packet, which must fit into the client's buffer.
const MAX_TEXT: usize = 4096;
/// Features that are added to those of gdbstub.
const FEATURES: &[u8] = b";qXfer:threads:read+;binary-upload+";
/// The same for VMs whose breakpoints may have rules.
const RULES: &[u8] = b";ConditionalBreakpoints+;BreakpointCommands+";

/// Packets kept that arrive while the guest runs; well-behaved clients send none.
const MAX_EARLY_PACKETS: usize = 64;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum End {
    /// The client detached, or wanted to kill.
    #[error("the client detached")]
    Detached,
    /// The guest ended, and the client was told.
    #[error("the guest ended")]
    GuestEnded,
    /// The VM is gone.
    #[error("the VM is gone")]
    VmGone,
    /// The client broke the protocol in a way that can't be answered.
    #[error("protocol error: {0}")]
    Protocol(String),
}

/// Collects what gdbstub writes. Writing can't fail here; sending is the server's business.
#[derive(Debug, Default)]
struct Replies(Vec<u8>);

impl Connection for Replies {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Machine<'v, A, V> = GdbStubStateMachine<'static, GuestTarget<'v, A, V>, Replies>;

/// A client's session with an attached VM.
pub(crate) struct Stub<'v, A: GdbArch, V: DebugVm<A>> {
    /// `None` once the session has ended.
    machine: Option<Machine<'v, A, V>>,
    target: GuestTarget<'v, A, V>,
    decoder: FrameDecoder,
    selection: Selection,
    acknowledge: bool,
    /// Packets that came while the guest ran.
    early: VecDeque<Vec<u8>>,
    /// The stop that a new client is told of.
    last_stop: Option<StopEvent>,
    /// Messages that were dropped and not told yet.
    dropped: u64,
    /// The last answer, for a client that did not get it.
    last_reply: Vec<u8>,
    /// What to answer in front of a stop reply.
    wishes: Vec<Wish>,
}

impl<'v, A: GdbArch, V: DebugVm<A>> Stub<'v, A, V> {
    /// A session with a VM that was just attached.
    pub(crate) fn new(vm: &'v V) -> Result<Self, End> {
        let mut target = GuestTarget::new(vm).map_err(|error| match error {
            VmError::Gone => End::VmGone,
            error => End::Protocol(format!("the vCPU can't be described: {error}")),
        })?;
        // A stop that nobody was told of yet.
        let last_stop = match vm.take_event() {
            Ok(Some(VmEvent::Stopped(event))) => Some(event),
            Ok(Some(VmEvent::Ended(_) | VmEvent::Moved)) => return Err(End::GuestEnded),
            Err(VmError::Gone) => return Err(End::VmGone),
            Ok(None) | Err(_) => None,
        };
        if let Some(event) = last_stop {
            target.client.current = Some(event.vcpu);
        }
        let selection = Selection {
            resume: None,
            current: Tid::of(target.current()),
            multiprocess: false,
            ahead: false,
            breakpoint_kind: A::BREAKPOINT_KIND,
        };
        let machine = GdbStubBuilder::new(Replies::default())
            .packet_buffer_size(PACKET_SIZE)
            .build()
            .map_err(|error| End::Protocol(error.to_string()))?
            .run_state_machine(&mut target)
            .map_err(|error| End::Protocol(error.to_string()))?;
        Ok(Self {
            machine: Some(machine),
            target,
            // `$`, `#` and the checksum count for the client's limit.
            decoder: FrameDecoder::new(PACKET_SIZE - 4),
            selection,
            acknowledge: true,
            early: VecDeque::new(),
            last_stop,
            dropped: 0,
            last_reply: Vec::new(),
            wishes: Vec::new(),
        })
    }

    /// Whether the client waits for the guest to stop.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.machine, Some(GdbStubStateMachine::Running(_)))
    }

    /// Takes bytes from the client and appends the answers to `out`. They count even if the session ends.
    pub(crate) fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        for byte in bytes {
            if let Some(frame) = self.decoder.push(*byte) {
                self.frame(frame, out)?;
            }
        }
        Ok(())
    }

    /// Looks for an event of the VM and tells the client, if it waits for one.
    pub(crate) fn vm_event(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        self.report_event(out)?;
        self.work_off(out)
    }

    fn frame(&mut self, frame: Frame, out: &mut Vec<u8>) -> Result<(), End> {
        match frame {
            Frame::Ack => Ok(()),
            Frame::Nack => {
                if self.acknowledge {
                    out.extend_from_slice(&self.last_reply);
                }
                Ok(())
            }
            // When the guest is stopped already, the client will see so.
            Frame::Interrupt if self.is_running() => self.interrupt(out),
            Frame::Interrupt => Ok(()),
            Frame::BadChecksum if self.acknowledge => {
                out.push(b'-');
                Ok(())
            }
            Frame::BadChecksum => {
                self.reply(b"E.checksum.the packet's checksum is wrong", out);
                Ok(())
            }
            Frame::Oversized => {
                self.reply(b"E.length.the packet is longer than PacketSize", out);
                Ok(())
            }
            Frame::Packet(body) if self.is_running() && !matches!(body.first(), Some(b'D' | b'k')) => {
                if self.early.len() >= MAX_EARLY_PACKETS {
                    return Err(End::Protocol("the client sends packets while the guest runs".to_owned()));
                }
                self.early.push_back(body);
                Ok(())
            }
            Frame::Packet(body) => {
                self.packet(&body, out)?;
                self.work_off(out)
            }
        }
    }

    /// Handles packets that came early, as far as the guest is stopped.
    fn work_off(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        while !self.is_running()
            && let Some(body) = self.early.pop_front()
        {
            self.packet(&body, out)?;
        }
        Ok(())
    }

    fn packet(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        if body == b"?" {
            let answer = self.stop_reply();
            self.reply(answer.as_bytes(), out);
            return Ok(());
        }
        match gate::check(body, &mut self.selection) {
            Verdict::Reply(answer) => {
                self.reply(&answer, out);
                Ok(())
            }
            Verdict::Leave(answer) => {
                if let Some(answer) = answer {
                    self.reply(&answer, out);
                }
                Err(End::Detached)
            }
            Verdict::Insert(body, breakpoint, extension) => match self.target.set_extension(breakpoint, &extension) {
                Ok(()) => {
                    self.select(self.selection.current);
                    self.forward(&body, out)
                }
                Err(VmError::Gone) => Err(End::VmGone),
                Err(error) => {
                    self.refuse(&error.to_string(), out);
                    Ok(())
                }
            },
            // As gdbstub would, which takes each digit by itself.
            Verdict::Read { address, length, encoding } => {
                self.select(self.selection.current);
                match self.target.read(self.target.current(), address, length) {
                    Ok(bytes) => self.reply_with(|out| encode_with(|out| encoding.write(&bytes, out), out), out),
                    Err(VmError::Gone) => return Err(End::VmGone),
                    Err(error) => self.reply(format!("E{:02x}", error.errno()).as_bytes(), out),
                }
                Ok(())
            }
            Verdict::Search(search) => {
                self.select(self.selection.current);
                let answer = match self.target.search(&search) {
                    Ok(Some(address)) => format!("1,{address:x}"),
                    Ok(None) => "0".to_owned(),
                    Err(VmError::Gone) => return Err(End::VmGone),
                    // gdb takes an error for a pattern that is not there, and shows what it does not understand.
                    Err(error) => format!("the search failed: {}", one_packet(&error.to_string())),
                };
                self.reply(answer.as_bytes(), out);
                Ok(())
            }
            Verdict::Threads { offset, length } => {
                let selection = self.selection;
                match self.target.thread_list(|tid| selection.format(tid)) {
                    Ok(list) => self.reply(piece(&list, offset, length).as_bytes(), out),
                    Err(VmError::Gone) => return Err(End::VmGone),
                    Err(error) => self.refuse(&error.to_string(), out),
                }
                Ok(())
            }
            Verdict::Ahead(wishes) => {
                self.wishes = wishes;
                self.reply(b"OK", out);
                Ok(())
            }
            Verdict::Forward(body) => {
                // Detaching does not wait for the guest to stop.
                if self.is_running() {
                    self.reply(b"OK", out);
                    return Err(End::Detached);
                }
                self.select(self.selection.current);
                let result = self.forward(&body, out);
                if body == b"QStartNoAckMode" {
                    self.acknowledge = false;
                }
                result
            }
        }
    }

    fn forward(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        let mut packet = Vec::with_capacity(body.len() + 4);
        encode(body, &mut packet);
        let mark = out.len();
        for byte in packet {
            self.step(out, |machine, target| match machine {
                GdbStubStateMachine::Idle(machine) => machine.incoming_data(target, byte),
                GdbStubStateMachine::Running(machine) => machine.incoming_data(target, byte),
                other => Ok(other),
            })?;
        }
        if body.starts_with(b"qSupported") {
            append(FEATURES, mark, out);
            if self.target.vm.has_rules() {
                append(RULES, mark, out);
            }
            if self.selection.ahead {
                append(format!(";{AHEAD}").as_bytes(), mark, out);
            }
        }
        self.remember(mark, out);
        if let Some(message) = self.target.client.refusal.take() {
            // gdbstub can only send a number, and gdb shows a text.
            out.truncate(mark);
            self.refuse(&message, out);
        }
        if self.is_running() {
            if let Some(error) = self.target.client.resume_error.take() {
                self.console(&format!("The guest was not resumed: {error}\n"), out);
                let tid = self.selection.current.to_gdbstub();
                // gdb takes SIGTRAP at the place where it began for a step that is not done yet, and would ask again for
                // ever: `next` would never end.
                return self.report(MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGINT }, out);
            }
            self.report_event(out)?;
        }
        Ok(())
    }

    /// An error with its text.
    fn refuse(&mut self, message: &str, out: &mut Vec<u8>) {
        self.reply(format!("E.refused.{}", one_packet(message)).as_bytes(), out);
    }

    /// The answer to `?`. gdbstub would name the first thread, whichever has stopped.
    fn stop_reply(&self) -> String {
        let thread = self.selection.format(self.selection.current);
        let reason = match self.last_stop.map(|event| event.reason) {
            Some(StopReason::HardwareBreakpoint(_)) => "hwbreak:;".to_owned(),
            Some(StopReason::SoftwareBreakpoint(_)) => "swbreak:;".to_owned(),
            Some(StopReason::Watchpoint { kind, address }) => {
                let kind = match kind {
                    guest_debug::WatchKind::Write => "watch",
                    guest_debug::WatchKind::Read => "rwatch",
                    guest_debug::WatchKind::Access => "awatch",
                };
                format!("{kind}:{:x};", address.0)
            }
            _ => String::new(),
        };
        format!("T05thread:{thread};{reason}")
    }

    fn interrupt(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        match self.target.vm.interrupt() {
            Ok(()) => {}
            Err(VmError::Gone) => return Err(End::VmGone),
            Err(error) => self.console(&format!("The guest can't be interrupted: {error}\n"), out),
        }
        self.step(out, |machine, target| match machine {
            GdbStubStateMachine::Running(machine) => machine.incoming_data(target, 0x03),
            other => Ok(other),
        })?;
        self.step(out, |machine, target| match machine {
            // The stop is reported when it has happened.
            GdbStubStateMachine::CtrlCInterrupt(machine) => {
                machine.interrupt_handled(target, None::<MultiThreadStopReason<u64>>)
            }
            other => Ok(other),
        })
    }

    fn report_event(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        if !self.is_running() {
            return Ok(());
        }
        let event = self.target.vm.take_event();
        // Behind the look for a stop: what was printed before the stop is there by now.
        self.print_messages(out);
        match event {
            Ok(None) => Ok(()),
            Ok(Some(VmEvent::Ended(code))) => self.report(MultiThreadStopReason::Exited(code), out),
            Ok(Some(VmEvent::Moved)) => {
                self.console(MOVED, out);
                self.report(MultiThreadStopReason::Exited(0), out)
            }
            Ok(Some(VmEvent::Stopped(event))) => {
                self.select(Tid::of(event.vcpu));
                self.last_stop = Some(event);
                if let StopReason::Unsupported(what) = event.reason {
                    self.console(&format!("{}: {what}\n", event.vcpu), out);
                }
                // gdb takes a hit of a breakpoint that it has not set, or not where pc is, for one that came late, and goes
                // on in silence.
                let values = self.expedited();
                let expected = self.target.client.knows(event.reason) && is_at_pc(event.reason, &values);
                let told = if expected { event } else { StopEvent { reason: StopReason::Step, ..event } };
                let mark = out.len();
                self.report_with(stop_reason(told), &values, out)?;
                self.answer_ahead(mark, &values, out)
            }
            Err(VmError::Gone) => Err(End::VmGone),
            Err(error) => {
                self.console(&format!("The guest stopped: {error}\n"), out);
                let tid = self.selection.current.to_gdbstub();
                self.report(MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP }, out)
            }
        }
    }

    /// Shows what breakpoints have printed, as far as the client reads it.
    fn print_messages(&mut self, out: &mut Vec<u8>) {
        let Ok(messages) = self.target.vm.take_messages() else { return };
        self.dropped += messages.dropped;
        for text in messages.texts {
            if out.len() > MAX_BACKLOG {
                self.dropped += 1;
                continue;
            }
            text.as_bytes().chunks(MAX_TEXT).for_each(|chunk| show(chunk, out));
        }
        if self.dropped > 0 && out.len() <= MAX_BACKLOG {
            let dropped = std::mem::take(&mut self.dropped);
            self.console(&format!("{dropped} messages of breakpoints were dropped: there was no room for them\n"), out);
        }
    }

    fn select(&mut self, tid: Tid) {
        self.selection.current = tid;
        if self.target.client.current.replace(tid.vcpu()) != Some(tid.vcpu()) {
            // For the next client; this one does not depend on it.
            let _ = self.target.vm.select(tid.vcpu());
        }
    }

    /// Sends a stop reply, with the registers that the client would ask for next.
    fn report(&mut self, reason: MultiThreadStopReason<u64>, out: &mut Vec<u8>) -> Result<(), End> {
        let values = match reason {
            MultiThreadStopReason::Exited(_) => Vec::new(),
            _ => self.expedited(),
        };
        self.report_with(reason, &values, out)
    }

    fn expedited(&self) -> Vec<(RegisterNumber, Vec<u8>)> {
        self.target.read_some(self.selection.current.vcpu(), A::EXPEDITED).unwrap_or_default()
    }

    fn report_with(
        &mut self,
        reason: MultiThreadStopReason<u64>,
        values: &[(RegisterNumber, Vec<u8>)],
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let mark = out.len();
        self.step(out, |machine, target| match machine {
            GdbStubStateMachine::Running(machine) => {
                let mut registers = values.iter().map(|(number, value)| (*number, value.as_slice()));
                machine.report_stop_with_regs(target, reason, &mut registers)
            }
            other => Ok(other),
        })?;
        self.remember(mark, out);
        Ok(())
    }

    /// Moves the state machine on, collects its answers and translates its end.
    fn step(
        &mut self,
        out: &mut Vec<u8>,
        run: impl FnOnce(Machine<'v, A, V>, &mut GuestTarget<'v, A, V>) -> StepResult<'v, A, V>,
    ) -> Result<(), End> {
        let machine = self.machine.take().ok_or(End::Detached)?;
        let mut machine = run(machine, &mut self.target)
            .map_err(|error| if error.is_target_error() { End::VmGone } else { End::Protocol(error.to_string()) })?;
        let replies = match &mut machine {
            GdbStubStateMachine::Idle(inner) => inner.borrow_conn(),
            GdbStubStateMachine::Running(inner) => inner.borrow_conn(),
            GdbStubStateMachine::CtrlCInterrupt(inner) => inner.borrow_conn(),
            GdbStubStateMachine::Disconnected(inner) => inner.borrow_conn(),
        };
        out.append(&mut replies.0);
        if let GdbStubStateMachine::Disconnected(inner) = &machine {
            use gdbstub::stub::DisconnectReason::{Disconnect, Kill, TargetExited, TargetTerminated};
            return Err(match inner.get_reason() {
                Disconnect | Kill => End::Detached,
                TargetExited(_) | TargetTerminated(_) => End::GuestEnded,
            });
        }
        self.machine = Some(machine);
        Ok(())
    }

    /// Answers without gdbstub.
    fn reply(&mut self, body: &[u8], out: &mut Vec<u8>) {
        self.reply_with(|out| encode(body, out), out);
    }

    fn reply_with(&mut self, encode: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        let mark = out.len();
        if self.acknowledge {
            out.push(b'+');
        }
        encode(out);
        self.remember(mark, out);
    }

    /// Shows a text on the client's console. Clients take it only while they wait for a stop.
    fn console(&self, text: &str, out: &mut Vec<u8>) {
        show(text.as_bytes(), out);
    }

    fn remember(&mut self, mark: usize, out: &[u8]) {
        let reply = out.get(mark..).unwrap_or_default();
        let packet = reply.iter().position(|byte| *byte == b'$').and_then(|at| reply.get(at..));
        if self.acknowledge
            && let Some(packet) = packet
        {
            self.last_reply = packet.to_vec();
        }
    }
}

fn show(text: &[u8], out: &mut Vec<u8>) {
    encode(format!("O{}", to_hex(text)).as_bytes(), out);
}

/// A text without what means something in a packet.
fn one_packet(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_graphic() && !['#', '$', '}', '*'].contains(&c);
    text.chars().map(|c| if harmless(c) { c } else { ' ' }).collect()
}

/// A piece of a text, as `qXfer` packets are answered: `l` in front of the last one, `m` in front of any other.
fn piece(text: &str, offset: u64, length: usize) -> String {
    let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or_default();
    match rest.get(..length) {
        Some(piece) if piece.len() < rest.len() => format!("m{piece}"),
        _ => format!("l{rest}"),
    }
}

/// Appends to the body of the packet that begins behind `mark`.
fn append(more: &[u8], mark: usize, out: &mut Vec<u8>) {
    let answer = out.split_off(mark);
    let start = answer.iter().position(|byte| *byte == b'$');
    let end = answer.iter().rposition(|byte| *byte == b'#');
    match start.zip(end).and_then(|(start, end)| Some((answer.get(..start)?, answer.get(start + 1..end)?))) {
        Some((before, body)) => {
            out.extend_from_slice(before);
            encode(&[body, more].concat(), out);
        }
        None => out.extend(answer),
    }
}

/// Whether a breakpoint is at the program counter that the client reads, the last of its expedited registers. On x86_64 that
/// is an offset where the code segment has a base.
fn is_at_pc(reason: StopReason, expedited: &[(RegisterNumber, Vec<u8>)]) -> bool {
    let (StopReason::HardwareBreakpoint(Gva(at)) | StopReason::SoftwareBreakpoint(Gva(at))) = reason else {
        return true;
    };
    expedited.last().is_none_or(|(_, pc)| *pc == at.to_le_bytes())
}

type StepResult<'v, A, V> = Result<Machine<'v, A, V>, gdbstub::stub::GdbStubError<VmError, Infallible>>;

fn stop_reason(event: StopEvent) -> MultiThreadStopReason<u64> {
    let tid = Tid::of(event.vcpu).to_gdbstub();
    let signal = |signal| MultiThreadStopReason::SignalWithThread { tid, signal };
    match event.reason {
        StopReason::Step => signal(Signal::SIGTRAP),
        StopReason::HardwareBreakpoint(_) => MultiThreadStopReason::HwBreak(tid),
        StopReason::SoftwareBreakpoint(_) => MultiThreadStopReason::SwBreak(tid),
        StopReason::Watchpoint { kind, address } => {
            let kind = match kind {
                guest_debug::WatchKind::Write => WatchKind::Write,
                guest_debug::WatchKind::Read => WatchKind::Read,
                guest_debug::WatchKind::Access => WatchKind::ReadWrite,
            };
            MultiThreadStopReason::Watch { tid, kind, addr: address.0 }
        }
        StopReason::Interrupt => signal(Signal::SIGINT),
        StopReason::Unsupported(Unsupported::AArch32) => signal(Signal::SIGILL),
        StopReason::Unsupported(_) => signal(Signal::SIGTRAP),
    }
}

#[cfg(test)]
mod tests;
