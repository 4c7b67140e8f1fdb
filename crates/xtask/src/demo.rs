//! `cargo xtask demo`: what the debugger can do, shown on a Linux guest.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::context::Context;

/// Options of `demo`.
#[derive(Args, Debug)]
pub struct DemoOptions {}

/// Runs the demo.
pub fn demo(_context: &Context, _options: &DemoOptions) -> Result<ExitCode> {
    bail!("the demo is not part of this tree yet")
}
