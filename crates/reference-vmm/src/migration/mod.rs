//! Live migration: pre-copy, then a switch.
//!
//! ```text
//!   source (runs)                                  destination
//!   OFFER: machine, debug session    -------->     has all that it takes?
//!                                    <--------     ACCEPT, or REFUSE with the reason
//!   MEMORY: all of it, then what has
//!   changed since, pass by pass      -------->     guest memory, breakpoints planted in it
//!   stops the guest, STOPPED         -------->
//!   MEMORY: the rest                 -------->
//!   STATE: vCPUs, devices            -------->     restored
//!   SESSION: what has changed of it  -------->     armed
//!                                    <--------     READY, or REFUSE with the reason
//!   COMMIT                           -------->     the guest is the destination's from here on
//!                                    <--------     RUNNING, and then it runs
//!   ends
//! ```
//!
//! Until COMMIT was sent a failure, whatever it is, leaves the source running with its session whole, and the destination
//! ends without having run anything. Behind COMMIT the source waits for RUNNING, which the destination sends before the
//! guest's first instruction: without it, the source goes on if the connection was closed, since then the destination is
//! no more.

mod address;
mod destination;
mod pages;
mod source;
mod wire;

pub use address::{Connection, MigrationAddress, MigrationListener};
pub use destination::{Destination, receive};
pub use source::{Report, Source, Switch, migrate};
pub use wire::Offer;
