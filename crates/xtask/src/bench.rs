//! `cargo xtask bench`: how fast it is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::context::Context;

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runs the benchmark.
pub fn bench(_context: &Context, _options: &BenchOptions) -> Result<ExitCode> {
    bail!("the benchmark is not part of this tree yet")
}
