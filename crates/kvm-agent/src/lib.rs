//! What `cargo xtask` uses to do things inside the KVM host: upload a file, run a command and stream its output,
//! connect to a socket.
//!
//! The emulated host starts the `kvm-agent` binary; on a machine that is a KVM host itself, `cargo xtask` runs
//! [`serve`] on a thread of its own. So there is one way to drive a host, and the tests of this crate cover both.
//!
//! One TCP connection carries one [`Request`]; where the host has no network, many of them share a serial line. The client proves itself with a token first, because the port is open to
//! every user of the machine. Nothing here is meant for an untrusted network.

mod exec;
mod held;
mod protocol;
mod relay;
mod serial;
mod server;

pub use held::HeldVm;
pub use protocol::{
    CHUNK, Command, Endpoint, Exit, Frame, Kind, MAX_PAYLOAD, ProtocolError, Request, Signal, VERSION, decode_exit,
    decode_hello, decode_signal, encode_exit, encode_hello, encode_signal, read_frame, write_frame,
};
pub use relay::{Stream, relay};
pub use serial::{LineClient, serve_line};
pub use server::{ServerConfig, serve};
