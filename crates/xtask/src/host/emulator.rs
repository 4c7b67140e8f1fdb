//! What all emulators need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::packages::on_path;
use crate::paths;
use crate::progress::tail;

/// A command that the kernel ends with us, however we die. (It goes by the thread that starts it, so that has to live as long as
/// the emulator is to.)
pub fn tied(program: &str) -> Command {
    if on_path("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    } else {
        Command::new(program)
    }
}

/// A new directory for this host's files. Directories of processes that are gone are removed.
pub(super) fn run_directory() -> Result<PathBuf> {
    static BOOTS: AtomicU32 = AtomicU32::new(0);
    let parent = paths::cache().join("run");
    fs::create_dir_all(&parent)?;
    for entry in fs::read_dir(&parent)?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            paths::remove(&entry.path())?;
        }
    }
    let directory = parent.join(format!("{}-{}", process::id(), BOOTS.fetch_add(1, Ordering::Relaxed)));
    paths::remove(&directory)?;
    fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// The end of a log; empty if there is none.
pub(super) fn log(directory: &Path, name: &str) -> String {
    let bytes = fs::read(directory.join(name)).unwrap_or_default();
    tail(&String::from_utf8_lossy(&bytes))
}
