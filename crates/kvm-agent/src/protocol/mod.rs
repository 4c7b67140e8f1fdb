//! Frames and their payloads.
//!
//! A connection starts with [`Kind::Hello`] and one request; what follows depends on the request.

mod error;
mod fields;
mod frame;
mod message;
mod request;

pub use error::ProtocolError;
pub use frame::{CHUNK, Frame, Kind, MAX_PAYLOAD, read_frame, write_frame};
pub use message::{
    Exit, Signal, VERSION, decode_exit, decode_hello, decode_signal, encode_exit, encode_hello, encode_signal,
};
pub use request::{Command, Endpoint, Request};
