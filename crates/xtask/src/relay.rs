//! The program guest-debug-relay, for this machine.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::paths;
use crate::toolchain::cargo;

const PACKAGE: &str = "guest-debug-relay";

/// Builds it, optimised, and returns its path.
///
/// # Errors
/// If it does not build.
pub fn build() -> Result<PathBuf> {
    let directory = paths::root().join("target");
    let mut cargo = cargo();
    // The program is for this machine, whatever others are built for.
    cargo
        .env_remove("CARGO_BUILD_TARGET")
        .args(["build", "--quiet", "--release", "--package", PACKAGE])
        .arg("--target-dir")
        .arg(&directory);
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("{PACKAGE} does not build");
    }
    Ok(directory.join("release").join(PACKAGE))
}
