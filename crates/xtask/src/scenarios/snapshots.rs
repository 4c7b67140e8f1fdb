//! The directory in the host where a suite's snapshots are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::host::{KvmHost, command};
use crate::paths;
use crate::progress::note;

const DIRECTORY: &str = "snapshots";

/// Where a VMM's snapshots are, each in a directory of its name.
#[derive(Clone, Copy)]
pub(super) struct Snapshots<'a>(&'a KvmHost);

impl<'a> Snapshots<'a> {
    pub(super) fn new(host: &'a KvmHost) -> Self {
        Self(host)
    }

    /// The directory of all of them.
    pub(super) fn directory(self) -> String {
        self.0.path(DIRECTORY)
    }

    /// One's directory.
    pub(super) fn path(self, name: &str) -> String {
        format!("{}/{name}", self.directory())
    }

    /// Runs a shell command there; answers its exit code and what it printed.
    pub(super) fn shell(self, text: &str) -> Result<(u8, String)> {
        let directory = self.directory();
        let script = format!("mkdir -p {directory} && cd {directory} && {{ {text}; }} 2>&1");
        let output = self.0.output(&command(["sh", "-c", &script]))?;
        Ok((output.exit.shell_code(), output.stdout_text()))
    }

    /// The same for one that has to succeed.
    pub(super) fn must(self, text: &str) -> Result<()> {
        match self.shell(text)? {
            (0, _) => Ok(()),
            (code, said) => bail!("{text} ends with {code}: {}", said.trim()),
        }
    }

    /// Copies one to a new directory on this machine: its small files, and guest memory.
    pub(super) fn fetch(self, name: &str, files: &[&str], memory: &str, directory: &Path) -> Result<()> {
        paths::remove(directory)?;
        fs::create_dir_all(directory)?;
        let get = |from: &str, to: &str| {
            let path = directory.join(to);
            let content = self.0.download(&format!("{}/{from}", self.directory()))?;
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
        };
        for file in files {
            get(&format!("{name}/{file}"), file)?;
        }
        if self.0.patience() > 1 {
            // It would be minutes in packing what is over the disk in seconds.
            return get(&format!("{name}/{memory}"), memory);
        }
        // Most of memory is zero, and the way is long.
        self.must(&format!("gzip -1 -c {name}/{memory} > {name}.gz"))?;
        let packed = format!("{memory}.gz");
        get(&format!("{name}.gz"), &packed)?;
        let unzip = Command::new("gzip").arg("-d").arg(directory.join(&packed)).status();
        if !unzip.context("cannot start gzip")?.success() {
            bail!("the snapshot's memory does not unpack");
        }
        Ok(())
    }

    /// Removes all of them but those whose names begin with a dot.
    pub(super) fn tidy(self) {
        if let Err(error) = self.shell("rm -rf ./*") {
            note(format!("snapshots stay in the host: {error:#}"));
        }
    }
}
