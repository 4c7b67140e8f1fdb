//! Many connections over one line: a port of virtio-serial, or a serial port where a host has nothing better.
//!
//! The agent's end of the line greets ([`serve_line`]), the other one waits for that ([`LineClient::attach`]). From then on each
//! connection of the client's is a channel. At its far end the agent connects to its own server, which speaks the same protocol
//! as over TCP and does not know of the line ([`LineClient::carry`]), or to any socket of its machine ([`LineClient::connect`]).
//!
//! Pieces are small, for a long output not to hold up others, and no channel has more than a window of bytes under way that its
//! far end has not written to its socket. A socket that nobody reads thereby stops its own channel only, and what is kept for it
//! is bounded. What small is, is the line's: see [`Capacity`].
//!
//! In an emulated machine it costs more to wake a thread than to do what it is woken for. So what comes is written to its socket
//! by whoever took it off the line, unless the socket is full.
//!
//! A byte lost or changed would be found by what does not fit afterwards, and ends the line. Whatever the peer sends, the worst
//! that happens is that.

mod channel;
mod ends;
mod packet;

pub use ends::{LineClient, serve_line};

/// How much of a connection a line takes at once. Both ends have to have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Most bytes in one packet.
    chunk: u16,
    /// Most bytes of one direction that are under way. Others wait behind them, so it is not more than the line carries in a
    /// moment.
    window: u32,
}

impl Capacity {
    /// Of a serial port: some kilobytes per second.
    pub const SERIAL: Self = Self { chunk: 512, window: 4096 };
    /// Of a virtio-serial port: some hundred megabytes per second.
    pub const VIRTIO: Self = Self { chunk: 32 << 10, window: 1 << 20 };

    fn chunk(self) -> usize {
        self.chunk.into()
    }

    fn window(self) -> usize {
        self.window as usize
    }
}
