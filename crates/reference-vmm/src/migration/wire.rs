//! Frames on a migration's connection: a kind, a length, that many bytes; numbers are little-endian.
//!
//! The peer is untrusted: lengths are bounded before anything is allocated, and text is checked by whoever takes it.

use crate::error::VmError;
use crate::guest::Guest;
use crate::memory::PAGE;
use crate::state::{self, MachineState};
use guest_debug::state::{Architecture, GuestDebugState, StateUpdate};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an offer begins with.
const MAGIC: &str = "reference-vmm migration";
/// Version of the protocol.
const VERSION: u32 = 3;

/// The longest run of memory in a frame.
pub(super) const MAX_RUN: u64 = 1 << 20;
/// More than 512 vCPUs and 10,000 breakpoints need.
const MAX_JSON: u64 = 256 << 20;
/// A reason is a sentence.
const MAX_REASON: u64 = 64 << 10;

/// What comes first: all that the destination needs to know whether it can take the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Offer<G: Guest> {
    #[serde(flatten)]
    header: Header,
    /// What the machine is made of.
    pub machine: MachineState<G>,
    /// The debug session as it is now.
    pub guest_debug: Option<Arc<GuestDebugState>>,
}

/// What an offer says of itself, whatever the architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    protocol: String,
    version: u32,
    /// Since version 3; before, all guests were arm64.
    #[serde(default = "aarch64")]
    architecture: Architecture,
}

fn aarch64() -> Architecture {
    Architecture::Aarch64
}

impl<G: Guest> Offer<G> {
    /// An offer of this machine.
    pub fn new(machine: MachineState<G>, guest_debug: Option<Arc<GuestDebugState>>) -> Self {
        let header = Header { protocol: MAGIC.to_owned(), version: VERSION, architecture: G::ARCHITECTURE };
        Self { header, machine, guest_debug }
    }

    /// Takes what comes from a peer.
    ///
    /// # Errors
    ///
    /// [`VmError::Migration`] for another protocol or version, [`VmError::State`] for another architecture, or a machine that
    /// can't be.
    pub(super) fn receive(frame: &Frame) -> Result<Self, VmError> {
        let header: Header = frame.json()?;
        if header.protocol != MAGIC {
            return Err(failed(format!("the peer speaks {:?}; {MAGIC:?} is expected", header.protocol)));
        }
        if header.version != VERSION {
            return Err(failed(format!("the peer's protocol has version {}; it can be {VERSION}", header.version)));
        }
        state::check_architecture::<G>(header.architecture)?;
        let offer: Self = frame.json()?;
        offer.machine.check()?;
        Ok(offer)
    }
}

/// What the debug session has become since it was offered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Session {
    /// The software breakpoints are those of the offer, and left out.
    software_as_offered: bool,
    state: GuestDebugState,
}

impl From<StateUpdate> for Session {
    fn from(StateUpdate { same_software, state }: StateUpdate) -> Self {
        Self { software_as_offered: same_software, state }
    }
}

impl From<Session> for StateUpdate {
    fn from(Session { software_as_offered, state }: Session) -> Self {
        Self { same_software: software_as_offered, state }
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// [`Offer`], JSON.
    Offer = 1,
    /// The destination can take it.
    Accept = 2,
    /// It can't, or could not: the reason, as text.
    Refuse = 3,
    /// Offset in guest memory (8 bytes), then its bytes.
    Memory = 4,
    /// Offset in guest memory and length (8 bytes each) of zeroes. A length of 0 is a sign of life: zeroes that the destination
    /// begins with are not sent.
    Zeroes = 5,
    /// [`crate::state::VmState`] without its debug session, JSON.
    State = 6,
    /// Restored and armed: the nanoseconds that the debug session took for it (8 bytes).
    Ready = 7,
    /// The guest is the destination's.
    Commit = 8,
    /// The guest is about to run.
    Running = 9,
    /// [`Session`] or null, JSON: what the debug session has become, if it is not what was offered.
    Session = 10,
    /// The guest stands still at the source from here on.
    Stopped = 11,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Offer,
        Self::Accept,
        Self::Refuse,
        Self::Memory,
        Self::Zeroes,
        Self::State,
        Self::Ready,
        Self::Commit,
        Self::Running,
        Self::Session,
        Self::Stopped,
    ];

    fn longest(self) -> u64 {
        match self {
            Self::Offer | Self::Session | Self::State => MAX_JSON,
            Self::Refuse => MAX_REASON,
            Self::Memory => 8 + MAX_RUN,
            Self::Zeroes => 16,
            Self::Ready => 8,
            Self::Accept | Self::Commit | Self::Running | Self::Stopped => 0,
        }
    }
}

/// A frame that was received.
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
    /// When it began to come.
    pub(super) began: Instant,
}

impl Frame {
    /// Reads the next frame.
    pub(super) fn read(from: &mut impl Read) -> Result<Self, VmError> {
        let mut header = [0; 12];
        from.read_exact(&mut header).map_err(connection)?;
        let began = Instant::now();
        let [k0, k1, k2, k3, length @ ..] = header;
        let (number, length) = (u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(length));
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u32 == number);
        let kind = kind.ok_or_else(|| failed(format!("the peer sent a frame of the unknown kind {number}")))?;
        if length > kind.longest() {
            let longest = kind.longest();
            return Err(failed(format!("the peer's {kind:?} has {length} bytes; it can have at most {longest}")));
        }
        let mut body = Vec::new();
        // In pieces: a length is no reason to allocate as much.
        from.take(length).read_to_end(&mut body).map_err(connection)?;
        if body.len() as u64 != length {
            return Err(failed("the connection was closed in the middle of a frame"));
        }
        Ok(Self { kind, body, began })
    }

    /// Reads the next frame, which must be of this kind.
    pub(super) fn expect(from: &mut impl Read, expected: Kind) -> Result<Self, VmError> {
        let frame = Self::read(from)?;
        match frame.kind {
            kind if kind == expected => Ok(frame),
            Kind::Refuse => Err(failed(format!("the peer says: {}", String::from_utf8_lossy(&frame.body)))),
            kind => Err(failed(format!("the peer sent {kind:?} where {expected:?} is expected"))),
        }
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, VmError> {
        // As one text, not string by string.
        let text =
            str::from_utf8(&self.body).map_err(|error| failed(format!("the peer's {:?}: {error}", self.kind)))?;
        serde_json::from_str(text).map_err(|error| failed(format!("the peer's {:?}: {error}", self.kind)))
    }

    /// A time in nanoseconds.
    pub(super) fn duration(&self) -> Result<Duration, VmError> {
        let bytes = <[u8; 8]>::try_from(self.body.as_slice());
        let bytes = bytes.map_err(|_| failed(format!("the peer's {:?} has no time", self.kind)))?;
        Ok(Duration::from_nanos(u64::from_le_bytes(bytes)))
    }

    /// Offset in guest memory, and the bytes there.
    pub(super) fn memory(&self) -> Result<(u64, &[u8]), VmError> {
        let (offset, bytes) = self.body.split_first_chunk().ok_or_else(|| failed("a Memory frame has no offset"))?;
        Ok((u64::from_le_bytes(*offset), bytes))
    }

    /// Offset in guest memory, and the number of zeroes there.
    pub(super) fn zeroes(&self) -> Result<(u64, u64), VmError> {
        let (offset, length) = self.memory()?;
        let length: [u8; 8] = length.try_into().map_err(|_| failed("a Zeroes frame has no length"))?;
        Ok((offset, u64::from_le_bytes(length)))
    }
}

/// Writes a frame whose body is in parts.
pub(super) fn send(to: &mut impl Write, kind: Kind, parts: &[&[u8]]) -> Result<(), VmError> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut write = || {
        to.write_all(&(kind as u32).to_le_bytes())?;
        to.write_all(&(length as u64).to_le_bytes())?;
        parts.iter().try_for_each(|part| to.write_all(part))
    };
    write().map_err(connection)
}

/// Writes a frame and has it leave.
pub(super) fn send_now(to: &mut impl Write, kind: Kind, body: &[u8]) -> Result<(), VmError> {
    send(to, kind, &[body])?;
    to.flush().map_err(connection)
}

/// Writes a JSON frame and has it leave.
pub(super) fn send_json(to: &mut impl Write, kind: Kind, value: &impl Serialize) -> Result<(), VmError> {
    send_now(to, kind, &json(value)?)
}

pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>, VmError> {
    serde_json::to_vec(value).map_err(|error| failed(error.to_string()))
}

/// Writes a frame with a time, and has it leave.
pub(super) fn send_duration(to: &mut impl Write, kind: Kind, time: Duration) -> Result<(), VmError> {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    send_now(to, kind, &nanoseconds.to_le_bytes())
}

/// Tells the peer why not; whether it hears of it does not matter.
pub(super) fn refuse(to: &mut impl Write, reason: &VmError) {
    let text = reason.to_string();
    let _ = send_now(to, Kind::Refuse, text.as_bytes().get(..MAX_REASON as usize).unwrap_or(text.as_bytes()));
}

pub(super) fn connection(error: std::io::Error) -> VmError {
    let text = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the peer has closed the connection".to_owned(),
        std::io::ErrorKind::WouldBlock => "the peer does not answer in time".to_owned(),
        _ => format!("the connection is broken: {error}"),
    };
    VmError::Migration(text)
}

pub(super) fn failed(reason: impl Into<String>) -> VmError {
    VmError::Migration(reason.into())
}

const _: () = assert!(MAX_RUN.is_multiple_of(PAGE));

#[cfg(test)]
mod tests {
    use super::*;
    use guest_debug::{Arm64, X86_64};

    fn sent(kind: Kind, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, kind, parts).unwrap();
        bytes
    }

    #[test]
    fn frames_round_trip() {
        let bytes = sent(Kind::Memory, &[&7_u64.to_le_bytes(), b"abc"]);
        let frame = Frame::expect(&mut bytes.as_slice(), Kind::Memory).unwrap();
        assert_eq!(frame.memory().unwrap(), (7, &b"abc"[..]));
        let bytes = sent(Kind::Zeroes, &[&1_u64.to_le_bytes(), &2_u64.to_le_bytes()]);
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap().zeroes().unwrap(), (1, 2));
        let mut bytes = Vec::new();
        send_duration(&mut bytes, Kind::Ready, Duration::from_micros(3)).unwrap();
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap().duration().unwrap(), Duration::from_micros(3));
    }

    #[test]
    fn what_a_peer_can_send_wrong_is_said() {
        let read = |bytes: &[u8]| Frame::read(&mut &*bytes).map(drop).unwrap_err().to_string();
        let header = |kind: u32, length: u64| [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat();
        assert!(read(b"").contains("closed"));
        assert!(read(&header(99, 0)).contains("unknown kind 99"));
        assert!(read(&header(Kind::Commit as u32, 1)).contains("at most 0"));
        let no_time = sent(Kind::Ready, &[b"abc"]);
        assert!(Frame::read(&mut no_time.as_slice()).unwrap().duration().unwrap_err().to_string().contains("no time"));
        assert!(read(&header(Kind::Memory as u32, u64::MAX)).contains("at most 1048584"));
        assert!(read(&header(Kind::State as u32, MAX_JSON)).contains("in the middle"));
        let short = sent(Kind::Memory, &[b"abc"]);
        assert!(Frame::read(&mut short.as_slice()).unwrap().memory().is_err());
        let refused = sent(Kind::Refuse, &[b"no room"]);
        let error = Frame::expect(&mut refused.as_slice(), Kind::Accept).map(drop).unwrap_err().to_string();
        assert!(error.contains("no room"), "{error}");
    }

    #[test]
    fn an_offer_of_something_else_is_refused() {
        let machine = state::tests::sample().machine;
        let good = Offer::<Arm64>::new(machine, None);
        fn receive<G: Guest>(offer: &impl Serialize) -> Result<Offer<G>, VmError> {
            let bytes = sent(Kind::Offer, &[&json(offer).unwrap()]);
            Offer::receive(&Frame::read(&mut bytes.as_slice()).unwrap())
        }
        assert_eq!(receive::<Arm64>(&good).unwrap(), good);
        let error = |offer: &Offer<Arm64>| receive::<Arm64>(offer).unwrap_err().to_string();
        let mut other = good.clone();
        other.header.version += 1;
        assert!(error(&other).contains("version"));
        other.header = Header { protocol: "http".to_owned(), ..good.header.clone() };
        assert!(error(&other).contains("http"));
        let error = receive::<X86_64>(&good).unwrap_err().to_string();
        assert!(error.contains("architecture is aarch64; it can be x86_64 here"), "{error}");
        let pc = Offer::new(state::x86_64::tests::sample().machine, None);
        assert_eq!(receive::<X86_64>(&pc).unwrap(), pc);
        let error = receive::<Arm64>(&pc).unwrap_err().to_string();
        assert!(error.contains("architecture is x86_64; it can be aarch64 here"), "{error}");
    }
}
