//! Connections over one serial line, for a host that has no network.
//!
//! The agent's end of the line greets ([`serve_line`]), the other one waits for that ([`LineClient::attach`]). From then on each
//! connection of the client's is a channel, at whose far end the agent connects to its own server: both speak the same
//! protocol as over TCP, and neither knows of the line.
//!
//! A line carries a few kilobytes per second. So pieces are small, for a long output not to hold up others, and no channel
//! has more than a window of bytes under way that its far end has not written to its socket. A socket that nobody reads
//! thereby stops its own channel only, and what is kept for it is bounded.
//!
//! A byte lost or changed would be found by what does not fit afterwards, and ends the line. Whatever the peer sends, the worst
//! that happens is that.

mod channel;
mod line;
mod packet;

pub use line::{LineClient, serve_line};
