//! Where things are.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{fs, process};

use anyhow::{Context as _, Result};

use crate::arch::Arch;

/// The workspace's directory.
pub fn root() -> &'static Path {
    // crates/xtask, two levels down; known when this was compiled, because a runner is started from anywhere.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// Directory of everything that is downloaded or made for the KVM host and its guests.
pub fn cache() -> PathBuf {
    root().join("target/kvm-host")
}

/// The part of it that is for one architecture.
pub fn cache_of(arch: Arch) -> PathBuf {
    match arch {
        Arch::Arm64 => cache(),
        Arch::X86_64 => cache().join(arch.name()),
    }
}

/// `path` from the workspace's directory, for messages.
pub fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Makes `target` by `make`, which gets another path to write to: `target` exists complete or not at all. A run that is
/// interrupted leaves only the other path, which nothing looks at.
///
/// # Errors
/// What `make` answers.
pub fn create_atomically(target: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = target.parent().context("a cache entry needs a parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.{}", process::id()));
    remove(&partial)?;
    let made = make(&partial).and_then(|()| {
        match fs::rename(&partial, target) {
            // Another run was faster; what it made is as good.
            Err(_) if target.is_dir() => Ok(()),
            other => other.with_context(|| format!("cannot rename {} to {}", partial.display(), target.display())),
        }
    });
    remove(&partial)?;
    made
}

/// Removes a file or a directory; none there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A name for `parts` that changes when any of them does. Good against accidents, not against attackers.
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    format!("{:016x}", hasher.finish())
}

/// [`fingerprint`] of a file's content.
pub fn file_fingerprint(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(format!("{:016x}", hasher.finish())),
            length => hasher.write(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_make_leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("xtask-paths-{}", process::id()));
        let target = directory.join("entry");
        let failed = create_atomically(&target, |partial| {
            fs::create_dir(partial)?;
            fs::write(partial.join("half"), "")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        create_atomically(&target, |partial| Ok(fs::write(partial, "whole")?)).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        remove(&directory).unwrap();
    }

    #[test]
    fn a_fingerprint_tells_where_a_part_ends() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
