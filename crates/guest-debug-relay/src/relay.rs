//! Between a client and a server, without any I/O: bytes of one side in, bytes for both out.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::ahead::{self, MAX_WISHES, Wish};
use crate::packet::{Packet, Piece, Splitter, encode, expand, number};

/// How long after a stop its answers are good. gdb asks at once. The vCPUs stand still, and devices may write to memory.
const FRESH: Duration = Duration::from_millis(250);
/// Of how many stops it is remembered what was asked: commands like `next` make several of different kinds.
const STOPS: usize = 4;
/// The relay's own question: how many requests it has answered, in hex.
const SAVED: &[u8] = b"qGuestDebug.Saved";
/// Longest request that is kept; `m` of any memory is shorter.
const MAX_REQUEST: usize = 64;
/// Longest answer that is kept.
const MAX_ANSWER: usize = 0x1_0000;
/// While the client has not taken more than this, nothing is added to it from here.
const MAX_UNSENT: usize = 0x10_0000;

/// Bytes to send.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// To the client.
    pub client: Vec<u8>,
    /// To the server.
    pub server: Vec<u8>,
}

/// Who waits for a packet that the server will send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The client.
    Client,
    /// The client, and it says how the guest has stopped.
    Stop,
    /// The client, and it is the answer to `qSupported`.
    Features,
    /// The client, and it is the answer to `QStartNoAckMode`.
    NoAck,
    /// Nobody else: it is the answer to the relay's own packet.
    Own,
}

/// A stop that the client was told of.
#[derive(Debug, Default)]
struct Stop {
    /// Number and value of each register that came with it, as far as they have 64 bits.
    registers: Vec<(u64, u64)>,
    /// Its thread, without the zeros that one end writes and the other does not.
    thread: Vec<u8>,
}

/// What a client asks, what a server answers, and what was answered ahead.
///
/// Everything is passed on as it came, with these exceptions. The server is told that the client takes answers ahead. Where it gives some, it
/// is told before each resume what to answer at the next stop, from what the client asked after the last ones; and the client is
/// answered from here when it asks that. To a server that gives none, nothing is said and nothing is different. `qGuestDebug.Saved` is
/// answered here, once acknowledgements are off: gdb's `maintenance packet qGuestDebug.Saved` tells how much good it does.
#[derive(Debug, Default)]
pub struct Relay {
    from_client: Splitter,
    from_server: Splitter,
    /// Acknowledgements are off: a client that waits for none can be answered from here.
    direct: bool,
    /// The server answers ahead.
    ahead: bool,
    /// It does not take what was wished for, and is not told again. What it answers ahead all the same is for nobody.
    refused: bool,
    /// Behind a resume that has no answer yet the client has sent what may change the answers in front of it.
    spoiled: bool,
    /// Answers on their way, in order.
    expected: VecDeque<Expected>,
    stop: Option<Stop>,
    answers: HashMap<Vec<u8>, Packet>,
    /// When the last one came.
    arrived: Option<Instant>,
    /// The request that the next packet answers.
    announced: Option<Vec<u8>>,
    /// What was asked after each of the last stops, the newest first.
    asked: VecDeque<Vec<Wish>>,
    /// What the server was told last.
    wished: Vec<Wish>,
    /// How many requests were answered without asking the server.
    saved: u64,
}

impl Relay {
    /// A relay between two ends that have said nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes of the client.
    pub fn from_client(&mut self, bytes: &[u8], now: Instant, out: &mut Outgoing) {
        for piece in self.from_client.push(bytes) {
            match piece {
                Piece::Between(bytes) => out.server.extend(bytes),
                Piece::Packet(packet) => self.request(&packet, now, out),
            }
        }
    }

    /// Takes bytes of the server.
    pub fn from_server(&mut self, bytes: &[u8], now: Instant, out: &mut Outgoing) {
        for piece in self.from_server.push(bytes) {
            match piece {
                Piece::Between(bytes) => out.client.extend(bytes),
                Piece::Packet(packet) => self.answer(packet, now, out),
            }
        }
    }

    fn request(&mut self, packet: &Packet, now: Instant, out: &mut Outgoing) {
        let body = packet.body();
        if body.starts_with(b"qSupported") {
            let separator = if body.contains(&b':') { ";" } else { ":" };
            encode(&[body, separator.as_bytes(), ahead::FEATURE.as_bytes()].concat(), &mut out.server);
            self.expected.push_back(Expected::Features);
            return;
        }
        if body == SAVED && self.direct && self.expected.is_empty() {
            encode(format!("{:x}", self.saved).as_bytes(), &mut out.client);
            return;
        }
        if self.direct && self.ahead {
            if let Some(answer) = self.known(body, now).filter(|_| out.client.len() < MAX_UNSENT) {
                out.client.extend_from_slice(answer.raw());
                self.saved += 1;
                self.note(body);
                return;
            }
            if Wish::parse(body).is_some() {
                self.note(body);
            } else if resumes(body) {
                // Behind another one it would be answered by two stops.
                self.spoiled = !self.expected.is_empty();
                if !self.spoiled {
                    self.wish(out);
                }
                self.answers.clear();
                self.stop = None;
            } else if !self.changes_nothing(body) {
                self.answers.clear();
                self.spoiled |= !self.expected.is_empty();
            }
        }
        out.server.extend_from_slice(packet.raw());
        self.expected.push_back(match body {
            b"QStartNoAckMode" => Expected::NoAck,
            b"?" => Expected::Stop,
            _ if resumes(body) => Expected::Stop,
            _ => Expected::Client,
        });
    }

    /// What was answered ahead. Not while the server has to answer something else first: answers come in the order of requests.
    fn known(&self, body: &[u8], now: Instant) -> Option<&Packet> {
        let fresh = self.arrived.is_some_and(|arrived| now.saturating_duration_since(arrived) < FRESH);
        if fresh && self.expected.is_empty() { self.answers.get(body) } else { None }
    }

    /// Remembers a request for the stops to come.
    fn note(&mut self, body: &[u8]) {
        let Some(stop) = &self.stop else { return };
        let Some(asked) = self.asked.front_mut() else { return };
        for wish in Wish::like(body, &stop.registers) {
            if !asked.contains(&wish) && asked.len() < MAX_WISHES {
                asked.push(wish);
            }
        }
    }

    /// Tells the server what to answer at the next stop, if that is not what it knows.
    fn wish(&mut self, out: &mut Outgoing) {
        let mut wishes: Vec<Wish> = Vec::new();
        for wish in self.asked.iter().flatten() {
            if !wishes.contains(wish) && wishes.len() < MAX_WISHES {
                wishes.push(*wish);
            }
        }
        if self.refused || wishes.iter().all(|wish| self.wished.contains(wish)) && wishes.len() == self.wished.len() {
            return;
        }
        let texts: Vec<_> = wishes.iter().map(ToString::to_string).collect();
        encode(format!("{}{}", ahead::WISHES, texts.join(";")).as_bytes(), &mut out.server);
        self.expected.push_back(Expected::Own);
        self.wished = wishes;
    }

    /// Whether a packet leaves memory and registers as the client reads them: breakpoints, which a server of this project does not
    /// show in memory, and the choice of the thread that has stopped, which is chosen already.
    fn changes_nothing(&self, body: &[u8]) -> bool {
        match body {
            [b'Z' | b'z', ..] => true,
            [b'H', b'g', thread @ ..] => self.stop.as_ref().is_some_and(|stop| stop.thread == without_zeros(thread)),
            _ => false,
        }
    }

    fn answer(&mut self, packet: Packet, now: Instant, out: &mut Outgoing) {
        let body = packet.body();
        if packet.is_notification() {
            match body.strip_prefix(ahead::ANSWER.as_bytes()) {
                Some(request) if self.ahead => self.announced = Some(request.to_vec()),
                _ => out.client.extend_from_slice(packet.raw()),
            }
            return;
        }
        if let Some(request) = self.announced.take() {
            // No server has reason to send more, or what nobody can wish for.
            let wished = Wish::parse(&request).is_some() && request.len() <= MAX_REQUEST;
            if wished && !self.spoiled && self.answers.len() < MAX_WISHES && packet.raw().len() <= MAX_ANSWER {
                self.answers.insert(request, packet);
                self.arrived = Some(now);
            }
            return;
        }
        // Text for the user may come any time, and is no answer.
        if body.first() == Some(&b'O') && body != b"OK" {
            out.client.extend_from_slice(packet.raw());
            return;
        }
        match self.expected.pop_front().unwrap_or(Expected::Client) {
            Expected::Own => {
                self.refused |= body != b"OK";
                return;
            }
            Expected::Features => {
                let mut features = body.split(|byte| *byte == b';').collect::<Vec<_>>();
                let all = features.len();
                // gdb would warn of a feature that it has not heard of.
                features.retain(|feature| *feature != ahead::FEATURE.as_bytes());
                self.ahead = features.len() < all;
                if self.ahead {
                    encode(&features.join(&b';'), &mut out.client);
                    return;
                }
            }
            Expected::NoAck => {
                self.direct |= body == b"OK";
                // With acknowledgements a packet may have been sent twice, and is answered once.
                self.expected.clear();
            }
            Expected::Stop => {
                if let Some(stop) = stop_of(body) {
                    self.stop = Some(stop);
                    self.asked.push_front(Vec::new());
                    self.asked.truncate(STOPS);
                }
            }
            Expected::Client => {}
        }
        out.client.extend_from_slice(packet.raw());
    }
}

/// Whether the guest runs after a packet.
fn resumes(body: &[u8]) -> bool {
    matches!(body, [b'c' | b's' | b'C' | b'S', ..]) || body.starts_with(b"vCont;")
}

/// The parts of a stop reply that matter here.
fn stop_of(body: &[u8]) -> Option<Stop> {
    let [b'T', _, _, ..] = body else { return None };
    let mut stop = Stop::default();
    for pair in expand(body).get(3..)?.split(|byte| *byte == b';') {
        let mut parts = pair.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if name == b"thread" {
            stop.thread = without_zeros(value);
        } else if let Some(register) = register(name, value) {
            stop.registers.push(register);
        }
    }
    Some(stop)
}

/// `p1.2` from `p01.02`.
fn without_zeros(thread: &[u8]) -> Vec<u8> {
    let parts = thread.split(|byte| *byte == b'.').map(|part| {
        let (process, digits) = part.strip_prefix(b"p").map_or((&b""[..], part), |digits| (b"p", digits));
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        [process, digits.get(zeros..).unwrap_or_default()].concat()
    });
    parts.collect::<Vec<_>>().join(&b'.')
}

/// A register of 64 bits, in a little-endian guest.
fn register(name: &[u8], value: &[u8]) -> Option<(u64, u64)> {
    if value.len() != 16 {
        return None;
    }
    Some((number(name)?, number(value)?.swap_bytes()))
}

#[cfg(test)]
mod tests;
