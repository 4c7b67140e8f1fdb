//! What `cargo xtask` uses to do things inside the KVM host: upload a file, run a command and stream its output,
//! connect to a socket.
//!
//! The emulated host starts the `kvm-agent` binary; on a machine that is a KVM host itself, `cargo xtask` runs
//! [`serve`] on a thread of its own. So there is one way to drive a host, and the tests of this crate cover both.
//!
//! One TCP connection carries one [`Request`]; to an emulated host all of them share a line. The client proves itself with a token
//! first, because the port at which they are accepted is open to every user of the machine. Nothing here is meant for an untrusted
//! network.

mod exec;
mod held;
mod line;
mod protocol;
mod relay;
mod server;

pub use held::HeldVm;
pub use line::{Capacity, LineClient, serve_line};
pub use protocol::{
    CHUNK, Command, Endpoint, Exit, Frame, Kind, MAX_PAYLOAD, ProtocolError, Request, Signal, VERSION, decode_exit,
    decode_hello, decode_signal, encode_exit, encode_hello, encode_signal, read_frame, write_frame,
};
pub use relay::{Stream, relay};
pub use server::{ServerConfig, serve};
