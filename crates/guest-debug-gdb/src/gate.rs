//! What gdbstub is allowed to see.
//!
//! gdbstub ends the session on packets that it can't parse, and takes lengths from the client as they come. So
//! every packet is parsed here first: it is passed on in its one well-formed spelling, answered here, or refused.

mod extension;
mod search;

pub(crate) use extension::Extension;
pub(crate) use search::{MAX_SEARCH, Search};

pub(crate) use guest_debug_relay::packet::number as number_of;

use crate::payload::Encoding;
use crate::vm_thread::{ThreadSelector, Tid};
use guest_debug::{Breakpoint, Gva, WatchKind};
use guest_debug_relay::ahead::{self, Wish};

/// Longest memory read that is answered at once; more is answered with as much, as the protocol allows.
pub(crate) const MAX_READ: usize = 0x4_0000;

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// gdbstub handles this body.
    Forward(Vec<u8>),
    /// gdbstub handles this body once the VM knows what becomes of the breakpoint's hits, which gdbstub has no word for.
    Insert(Vec<u8>, Breakpoint, Extension),
    /// So much memory from there on, so spelled.
    Read { address: u64, length: usize, encoding: Encoding },
    /// A search of memory.
    Search(Search),
    /// So much of the list of threads, from there on.
    Threads { offset: u64, length: usize },
    /// What to answer in front of the next stops.
    Ahead(Vec<Wish>),
    /// Answered without gdbstub; an empty answer says that the packet is not known.
    Reply(Vec<u8>),
    /// The client leaves, after this answer if there is one. Killing is leaving: the VM is not the client's.
    Leave(Option<Vec<u8>>),
}

/// Malformed or out of range; the same number as gdbstub's for an argument that is not supported.
const REFUSED: &[u8] = b"E16";

/// The threads that the client has selected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    /// For `c` and `s` without thread, by `Hc`; `None` for all.
    pub resume: Option<Tid>,
    /// For everything else, by `Hg` or the last stop.
    pub current: Tid,
    /// Whether thread ids carry a process id.
    pub multiprocess: bool,
    /// Whether the client can be answered ahead.
    pub ahead: bool,
    /// The kind of breakpoint that there can be, of the guest's architecture.
    pub breakpoint_kind: u64,
}

impl Selection {
    /// A thread id as this client writes it.
    pub(crate) fn format(&self, tid: Tid) -> String {
        if self.multiprocess { format!("p1.{:x}", tid.number()) } else { format!("{:x}", tid.number()) }
    }
}

/// Judges the body of a packet, and follows what it selects. `?` is not for here: the stub knows the answer.
pub(crate) fn check(body: &[u8], selection: &mut Selection) -> Verdict {
    let refused = || Verdict::Reply(REFUSED.to_vec());
    let forward = |text: &[u8]| Verdict::Forward(text.to_vec());
    let Some((kind, rest)) = body.split_first() else {
        return Verdict::Reply(Vec::new());
    };
    match (kind, rest) {
        (b'g', []) => forward(body),
        (b'D', []) | (b'D', [b';', ..]) => forward(b"D"),
        (b'k', []) => Verdict::Leave(None),
        (b'G', hex) => bytes_of(hex).map_or_else(refused, |_| forward(body)),
        (b'H', [b'g', id @ ..]) => select_current(id, selection).unwrap_or_else(refused),
        (b'H', [b'c', id @ ..]) => select_resume(id, selection).unwrap_or_else(refused),
        (b'm', args) => read_memory(args, Encoding::Hex).unwrap_or_else(refused),
        (b'x', args) => read_memory(args, Encoding::Binary).unwrap_or_else(refused),
        (b'M' | b'X', args) => write_memory(*kind, args).unwrap_or_else(refused),
        (b'p', number) => number_of(number).map_or_else(refused, |n| forward(format!("p{n:x}").as_bytes())),
        (b'P', args) => write_register(args).unwrap_or_else(refused),
        (b'T', id) => match ThreadSelector::parse(id) {
            Some(ThreadSelector::One(tid)) => forward(format!("T{:x}", tid.number()).as_bytes()),
            _ => refused(),
        },
        (b'Z' | b'z', args) => breakpoint(*kind, args, selection.breakpoint_kind).unwrap_or_else(refused),
        (b'c', []) => resume("c", selection),
        (b's', []) => resume("s", selection),
        (b'C', [_, _]) => resume("c", selection),
        (b'S', [_, _]) => resume("s", selection),
        // Resuming at another address is a thing of the past: the client sets PC first.
        (b'c' | b's' | b'C' | b'S', _) => refused(),
        (b'v', name) => v_packet(name).unwrap_or_else(refused),
        (b'q' | b'Q', name) => query(body, name, selection).unwrap_or_else(refused),
        _ => Verdict::Reply(Vec::new()),
    }
}

fn select_current(id: &[u8], selection: &mut Selection) -> Option<Verdict> {
    match ThreadSelector::parse(id)? {
        ThreadSelector::One(tid) => selection.current = tid,
        ThreadSelector::Any => {}
        ThreadSelector::All => return None,
    }
    Some(Verdict::Forward(format!("Hg{:x}", selection.current.number()).into_bytes()))
}

fn select_resume(id: &[u8], selection: &mut Selection) -> Option<Verdict> {
    selection.resume = match ThreadSelector::parse(id)? {
        ThreadSelector::One(tid) => Some(tid),
        ThreadSelector::Any | ThreadSelector::All => None,
    };
    Some(Verdict::Reply(b"OK".to_vec()))
}

/// `c` and `s` in the words of `vCont`, which is all that gdbstub need know.
fn resume(action: &str, selection: &Selection) -> Verdict {
    let body = match (action, selection.resume) {
        ("c", None) => "vCont;c".to_owned(),
        (_, None) => format!("vCont;{action}:{:x};c", selection.current.number()),
        (_, Some(tid)) => format!("vCont;{action}:{:x}", tid.number()),
    };
    Verdict::Forward(body.into_bytes())
}

/// A length of 0 is refused: lldb asks for it to find out whether `x` has the answer that it knows, which is not gdb's.
fn read_memory(args: &[u8], encoding: Encoding) -> Option<Verdict> {
    let (address, length) = split_once(args, b',')?;
    let (address, length) = (number_of(address)?, number_of(length)?);
    let length = usize::try_from(length).map_or(MAX_READ, |length| length.min(MAX_READ));
    if length == 0 {
        return None;
    }
    Some(Verdict::Read { address, length, encoding })
}

fn write_memory(kind: u8, args: &[u8]) -> Option<Verdict> {
    let (address, rest) = split_once(args, b',')?;
    let (length, data) = split_once(rest, b':')?;
    let (address, length) = (number_of(address)?, number_of(length)?);
    let given = if kind == b'M' { bytes_of(data)? } else { unescaped_length(data)? };
    if length != given as u64 {
        return None;
    }
    let mut body = format!("{}{address:x},{length:x}:", char::from(kind)).into_bytes();
    body.extend_from_slice(data);
    Some(Verdict::Forward(body))
}

fn write_register(args: &[u8]) -> Option<Verdict> {
    let (number, value) = split_once(args, b'=')?;
    let number = number_of(number)?;
    bytes_of(value)?;
    let mut body = format!("P{number:x}=").into_bytes();
    body.extend_from_slice(value);
    Some(Verdict::Forward(body))
}

fn breakpoint(kind: u8, args: &[u8], possible: u64) -> Option<Verdict> {
    let (class, rest) = split_once(args, b',')?;
    let (address, rest) = split_once(rest, b',')?;
    let (length, extension) = rest.split_at(rest.iter().position(|byte| *byte == b';').unwrap_or(rest.len()));
    let (address, length) = (number_of(address)?, number_of(length)?);
    let watch = |kind| Breakpoint::Watch { kind, address: Gva(address), length };
    let (digit, breakpoint) = match class {
        b"0" | b"1" if length != possible => return None,
        b"0" => ('0', Breakpoint::Software(Gva(address))),
        b"1" => ('1', Breakpoint::Hardware(Gva(address))),
        b"2" => ('2', watch(WatchKind::Write)),
        b"3" => ('3', watch(WatchKind::Read)),
        b"4" => ('4', watch(WatchKind::Access)),
        _ => return Some(Verdict::Reply(Vec::new())),
    };
    let body = format!("{}{digit},{address:x},{length:x}", char::from(kind)).into_bytes();
    match kind {
        b'Z' => Some(Verdict::Insert(body, breakpoint, extension::parse(extension)?)),
        _ if extension.is_empty() => Some(Verdict::Forward(body)),
        _ => None,
    }
}

fn v_packet(name: &[u8]) -> Option<Verdict> {
    if name == b"Cont?" {
        return Some(Verdict::Forward(b"vCont?".to_vec()));
    }
    if let Some(actions) = name.strip_prefix(b"Cont;") {
        return v_cont(actions);
    }
    if name == b"Kill" || name.starts_with(b"Kill;") {
        return Some(Verdict::Leave(Some(b"OK".to_vec())));
    }
    Some(Verdict::Reply(Vec::new()))
}

fn v_cont(actions: &[u8]) -> Option<Verdict> {
    let mut body = "vCont".to_owned();
    for action in actions.split(|byte| *byte == b';') {
        let (verb, thread) = match split_once(action, b':') {
            Some((verb, id)) => (verb, ThreadSelector::parse(id)?),
            None => (action, ThreadSelector::All),
        };
        let verb = match verb {
            b"c" => "c".to_owned(),
            b"s" => "s".to_owned(),
            // The guest's signals, if it has any, are its own.
            [b'C', signal @ ..] => number_of(signal).map(|_| "c".to_owned())?,
            [b'S', signal @ ..] => number_of(signal).map(|_| "s".to_owned())?,
            [b'r', range @ ..] => {
                let (start, end) = split_once(range, b',')?;
                format!("r{:x},{:x}", number_of(start)?, number_of(end)?)
            }
            _ => return None,
        };
        body.push(';');
        match thread {
            ThreadSelector::One(tid) => body.push_str(&format!("{verb}:{:x}", tid.number())),
            ThreadSelector::Any | ThreadSelector::All if verb == "c" => body.push_str(&verb),
            // Stepping all of them at once means nothing on a machine with several vCPUs.
            ThreadSelector::Any | ThreadSelector::All => return None,
        }
    }
    Some(Verdict::Forward(body.into_bytes()))
}

fn query(body: &[u8], name: &[u8], selection: &mut Selection) -> Option<Verdict> {
    let forward = |text: &[u8]| Some(Verdict::Forward(text.to_vec()));
    let reply = |text: &str| Some(Verdict::Reply(text.as_bytes().to_vec()));
    match body {
        b"qfThreadInfo" | b"qsThreadInfo" | b"qHostInfo" | b"qProcessInfo" | b"QStartNoAckMode" => forward(body),
        b"qC" => reply(&format!("QC{}", selection.format(selection.current))),
        _ if body == b"qAttached" || body.starts_with(b"qAttached:") => reply("1"),
        _ if body == b"qSupported" || body.starts_with(b"qSupported:") => {
            let has = |wanted: &[u8]| name.split(|byte| matches!(byte, b':' | b';')).any(|feature| feature == wanted);
            selection.multiprocess = has(b"multiprocess+");
            selection.ahead = has(ahead::FEATURE.as_bytes());
            let feature = if selection.multiprocess { "multiprocess+" } else { "multiprocess-" };
            forward(format!("qSupported:{feature}").as_bytes())
        }
        _ => {
            if let Some(command) = body.strip_prefix(b"qRcmd,") {
                bytes_of(command)?;
                return forward(body);
            }
            if let Some(id) = body.strip_prefix(b"qThreadExtraInfo,") {
                let ThreadSelector::One(tid) = ThreadSelector::parse(id)? else { return None };
                return forward(format!("qThreadExtraInfo,{:x}", tid.number()).as_bytes());
            }
            if let Some(wishes) = body.strip_prefix(ahead::WISHES.as_bytes())
                && selection.ahead
            {
                return Wish::parse_all(wishes).map(Verdict::Ahead);
            }
            if let Some(args) = body.strip_prefix(b"qSearch:memory:") {
                return search::parse(args).map(Verdict::Search);
            }
            if let Some(args) = body.strip_prefix(b"qXfer:threads:read::") {
                let (offset, length) = split_once(args, b',')?;
                let length = usize::try_from(number_of(length)?).map_or(MAX_READ, |length| length.min(MAX_READ));
                return Some(Verdict::Threads { offset: number_of(offset)?, length });
            }
            if let Some(args) = body.strip_prefix(b"qXfer:features:read:") {
                let (annex, range) = split_once(args, b':')?;
                let (offset, length) = split_once(range, b',')?;
                let (offset, length) = (number_of(offset)?, number_of(length)?.min(MAX_READ as u64));
                if annex != b"target.xml" {
                    return reply("E00");
                }
                return forward(format!("qXfer:features:read:target.xml:{offset:x},{length:x}").as_bytes());
            }
            Some(Verdict::Reply(Vec::new()))
        }
    }
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// How many bytes a string of hex digits holds.
fn bytes_of(digits: &[u8]) -> Option<usize> {
    (digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit)).then_some(digits.len() / 2)
}

/// How many bytes are left when `}` and the byte behind it are taken for one.
fn unescaped_length(data: &[u8]) -> Option<usize> {
    let mut length = 0;
    let mut bytes = data.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'}' {
            bytes.next()?;
        }
        length += 1;
    }
    Some(length)
}

#[cfg(test)]
mod tests;
