//! gdb over a slow connection to a guest-debug server.
//!
//! A `stepi` of gdb is six requests and six answers, one after the other. On one machine that is nothing; from a desk to a laboratory it is six
//! times the way there and back. Five of the six are what gdb asks after every step, and the server can answer them before gdb
//! does ([`ahead`]). A [`Relay`] beside gdb says what to answer, keeps the answers, and gives them when gdb asks. What is left is one way there
//! and back.
//!
//! The program `guest-debug-relay` is that with two connections:
//!
//! ```text
//! (gdb) target remote | guest-debug-relay -- ssh laboratory nc -N -U /run/vm/gdb.sock
//! (gdb) target remote | guest-debug-relay :1234
//! ```

#![forbid(unsafe_code)]

pub mod ahead;
pub mod packet;
mod relay;
mod run;

pub use relay::{Outgoing, Relay};
pub use run::run;
