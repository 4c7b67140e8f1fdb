//! Snapshots: a directory with the VM's state and its memory.
//!
//! | file | what |
//! |---|---|
//! | `state.json` | [`VmState`] |
//! | `memory` | guest memory from its first byte, with holes where it is zero |
//!
//! A snapshot is written beside its final name, in `NAME.partial`, and renamed when it is complete: a name that exists is a
//! whole snapshot. What a killed process has left behind is swept away by the next snapshot of that name; a lock tells
//! it from one that is being written.

use crate::error::VmError;
use crate::guest::Guest;
use crate::memory::{self, Ram};
use crate::state::{Header, VmState};
use guest_debug::Arm64;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use vm_memory::Bytes;
use vmm_sys_util::seek_hole::SeekHole as _;

/// The VM without its memory.
pub const STATE_FILE: &str = "state.json";
/// Its memory.
pub const MEMORY_FILE: &str = "memory";

/// More than 512 vCPUs and 10,000 breakpoints need.
const MAX_STATE_SIZE: u64 = 256 << 20;
/// What is written or left out at once.
const CHUNK: usize = 64 << 10;

/// A snapshot that is being written. Dropped before [`Writer::commit`], nothing stays behind.
#[derive(Debug)]
pub struct Writer {
    name: PathBuf,
    partial: PathBuf,
    /// Open for its lock, and to be synced.
    directory: File,
    committed: bool,
}

impl Writer {
    /// Begins a snapshot that will have this name.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`] when the name is taken, a snapshot of that name is being written, or the system refuses.
    pub fn create(name: &Path) -> Result<Self, VmError> {
        if fs::symlink_metadata(name).is_ok() {
            return Err(error(name, "exists already; a snapshot replaces nothing"));
        }
        let mut partial = OsString::from(name);
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if let Ok(left) = File::open(&partial) {
            left.try_lock().map_err(|_| error(&partial, "another snapshot of that name is being written"))?;
            fs::remove_dir_all(&partial).map_err(|source| error(&partial, source))?;
        }
        // Guest memory holds whatever the guest knows.
        DirBuilder::new().mode(0o700).create(&partial).map_err(|source| error(&partial, source))?;
        let directory = File::open(&partial).map_err(|source| error(&partial, source))?;
        directory.try_lock().map_err(|source| error(&partial, source))?;
        Ok(Self { name: name.to_owned(), partial, directory, committed: false })
    }

    /// Writes guest memory.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`].
    pub fn write_memory(&self, ram: &Ram) -> Result<(), VmError> {
        let path = self.partial.join(MEMORY_FILE);
        let write = || -> io::Result<()> {
            let file = create_file(&path)?;
            let size = memory::size(ram);
            file.set_len(size)?;
            let mut chunk = vec![0; CHUNK];
            for offset in (0..size).step_by(CHUNK) {
                // Every region is a multiple of 1 MiB.
                for (address, _) in memory::pieces(ram, offset, CHUNK as u64) {
                    ram.read_slice(&mut chunk, address).map_err(io::Error::other)?;
                }
                if !memory::is_zero(&chunk) {
                    file.write_all_at(&chunk, offset)?;
                }
            }
            file.sync_all()
        };
        write().map_err(|source| error(&path, source))
    }

    /// Writes the rest.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`].
    pub fn write_state<G: Guest>(&self, state: &VmState<G>) -> Result<(), VmError> {
        let path = self.partial.join(STATE_FILE);
        let write = || -> io::Result<()> {
            let mut writer = BufWriter::new(create_file(&path)?);
            serde_json::to_writer(&mut writer, state)?;
            writer.write_all(b"\n")?;
            writer.into_inner()?.sync_all()
        };
        write().map_err(|source| error(&path, source))
    }

    /// Gives the snapshot its name.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`]; there is no snapshot then.
    pub fn commit(mut self) -> Result<(), VmError> {
        self.directory.sync_all().map_err(|source| error(&self.partial, source))?;
        fs::rename(&self.partial, &self.name).map_err(|source| error(&self.name, source))?;
        self.committed = true;
        let parent = self.name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The name is there; whether it outlives a loss of power is all that could fail.
        if let Err(source) = File::open(parent).and_then(|parent| parent.sync_all()) {
            log::warn!("{} may not survive a loss of power: {source}", self.name.display());
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.committed
            && let Err(source) = fs::remove_dir_all(&self.partial)
        {
            log::warn!("{} stays behind: {source}", self.partial.display());
        }
    }
}

/// A snapshot that was opened; its state is checked.
#[derive(Debug)]
pub struct Snapshot<G: Guest = Arm64> {
    /// The VM without its memory.
    pub state: VmState<G>,
    path: PathBuf,
    memory: File,
}

/// What a snapshot says of itself first: the architecture decides what comes after.
///
/// # Errors
///
/// [`VmError::Snapshot`].
pub fn header(directory: &Path) -> Result<Header, VmError> {
    let (path, text) = read_state(directory)?;
    serde_json::from_str(&text).map_err(|source| error(&path, source))
}

fn read_state(directory: &Path) -> Result<(PathBuf, String), VmError> {
    let path = directory.join(STATE_FILE);
    let file = File::open(&path).map_err(|source| error(&path, source))?;
    let size = file.metadata().map_err(|source| error(&path, source))?.len();
    if size > MAX_STATE_SIZE {
        return Err(error(&path, format!("has {size} bytes; it can have at most {MAX_STATE_SIZE}")));
    }
    let mut text = String::new();
    file.take(MAX_STATE_SIZE).read_to_string(&mut text).map_err(|source| error(&path, source))?;
    Ok((path, text))
}

impl<G: Guest> Snapshot<G> {
    /// Opens a snapshot of a guest of this architecture.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`] and [`VmError::State`] with the file and what is wrong in it.
    pub fn open(directory: &Path) -> Result<Self, VmError> {
        let (path, text) = read_state(directory)?;
        let header: Header = serde_json::from_str(&text).map_err(|source| error(&path, source))?;
        header.check::<G>()?;
        let state: VmState<G> = serde_json::from_str(&text).map_err(|source| error(&path, source))?;
        state.check()?;
        let path = directory.join(MEMORY_FILE);
        let memory = File::open(&path).map_err(|source| error(&path, source))?;
        let size = memory.metadata().map_err(|source| error(&path, source))?.len();
        let expected = state.machine.memory_mib << 20;
        if size != expected {
            return Err(error(&path, format!("has {size} bytes, and {expected} by machine.memory_mib")));
        }
        Ok(Self { state, path, memory })
    }

    /// The file with guest memory.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Fills guest memory that is zero; what is a hole in the file is not touched.
    ///
    /// # Errors
    ///
    /// [`VmError::Snapshot`].
    pub fn load_memory(&self, ram: &Ram) -> Result<(), VmError> {
        let mut file = &self.memory;
        let mut load = || -> io::Result<()> {
            let mut file_for_holes = self.memory.try_clone()?;
            let mut offset = 0;
            while let Some(start) = file_for_holes.seek_data(offset)? {
                let end = file_for_holes.seek_hole(start)?.unwrap_or(memory::size(ram));
                file.seek(SeekFrom::Start(start))?;
                for (address, range) in memory::pieces(ram, start, end - start) {
                    ram.read_exact_volatile_from(address, &mut file, range.len()).map_err(io::Error::other)?;
                }
                offset = end;
            }
            Ok(())
        };
        load().map_err(|source| error(&self.path, source))
    }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn error(path: &Path, reason: impl std::fmt::Display) -> VmError {
    VmError::Snapshot { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::sample;
    use crate::state::x86_64;
    use guest_debug::{Arch as _, X86_64};
    use std::sync::Arc;
    use vm_memory::GuestAddress;
    use vmm_sys_util::tempdir::TempDir;

    fn write(name: &Path, ram: &Ram) -> Result<(), VmError> {
        write_as(name, ram, &sample())
    }

    fn write_as<G: Guest>(name: &Path, ram: &Ram, state: &VmState<G>) -> Result<(), VmError> {
        let writer = Writer::create(name)?;
        writer.write_memory(ram)?;
        writer.write_state(state)?;
        writer.commit()
    }

    fn ram() -> Arc<Ram> {
        memory::allocate(&Arm64::ram(8)).unwrap()
    }

    #[test]
    fn what_is_written_comes_back() {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        let ram = ram();
        for (offset, byte) in [(0, 1_u8), (5 << 20, 2), ((8 << 20) - 1, 3)] {
            ram.write_obj(byte, GuestAddress(crate::layout::RAM_BASE + offset)).unwrap();
        }
        write(&name, &ram).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(name.join(MEMORY_FILE)).unwrap());
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks: zeroes were written");
        let snapshot = Snapshot::<Arm64>::open(&name).unwrap();
        assert_eq!(snapshot.state, sample());
        let restored = self::ram();
        snapshot.load_memory(&restored).unwrap();
        assert!(bytes(&ram) == bytes(&restored));
    }

    fn bytes(ram: &Ram) -> Vec<u8> {
        let mut bytes = vec![0_u8; usize::try_from(memory::size(ram)).unwrap()];
        for (address, range) in memory::pieces(ram, 0, u64::MAX) {
            ram.read_slice(&mut bytes[range], address).unwrap();
        }
        bytes
    }

    #[test]
    fn memory_with_a_gap_is_one_file() {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        let regions = [(GuestAddress(0), 5 << 20), (GuestAddress(1 << 32), 3 << 20)];
        let ram = memory::allocate(&regions).unwrap();
        for (address, byte) in [(0, 1_u8), ((5 << 20) - 1, 2), (1 << 32, 3), ((1 << 32) + (3 << 20) - 1, 4)] {
            ram.write_obj(byte, GuestAddress(address)).unwrap();
        }
        write_as(&name, &ram, &x86_64::tests::sample()).unwrap();
        let restored = memory::allocate(&regions).unwrap();
        Snapshot::<X86_64>::open(&name).unwrap().load_memory(&restored).unwrap();
        assert!(bytes(&ram) == bytes(&restored));
    }

    #[test]
    fn each_architecture_refuses_the_others_snapshot() {
        let directory = TempDir::new().unwrap();
        let (arm64, pc) = (directory.as_path().join("arm64"), directory.as_path().join("pc"));
        write(&arm64, &ram()).unwrap();
        write_as(&pc, &memory::allocate(&X86_64::ram(8)).unwrap(), &x86_64::tests::sample()).unwrap();
        let error = Snapshot::<X86_64>::open(&arm64).unwrap_err().to_string();
        assert!(error.contains("architecture is aarch64; it can be x86_64 here"), "{error}");
        let error = Snapshot::<Arm64>::open(&pc).unwrap_err().to_string();
        assert!(error.contains("architecture is x86_64; it can be aarch64 here"), "{error}");
        assert_eq!(header(&pc).unwrap().architecture, X86_64::ARCHITECTURE);
        Snapshot::<X86_64>::open(&pc).unwrap();
    }

    #[test]
    fn a_name_that_is_taken_is_left_alone() {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        fs::write(&name, "mine").unwrap();
        let text = Writer::create(&name).unwrap_err().to_string();
        assert!(text.contains("exists already"), "{text}");
        assert_eq!(fs::read(&name).unwrap(), b"mine");
    }

    #[test]
    fn a_snapshot_that_is_not_completed_leaves_nothing() {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        let writer = Writer::create(&name).unwrap();
        writer.write_state(&sample()).unwrap();
        let text = Writer::create(&name).unwrap_err().to_string();
        assert!(text.contains("is being written"), "{text}");
        drop(writer);
        assert_eq!(fs::read_dir(directory.as_path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_swept_away() {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        let left = directory.as_path().join("snapshot.partial");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(MEMORY_FILE), "half").unwrap();
        write(&name, &ram()).unwrap();
        Snapshot::<Arm64>::open(&name).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn each_way_to_be_bad_is_named() {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        let open = || Snapshot::<Arm64>::open(&name).unwrap_err().to_string();
        assert!(open().contains(STATE_FILE));
        write(&name, &ram()).unwrap();
        let good = fs::read(name.join(STATE_FILE)).unwrap();
        for cut in [0, 1, good.len() / 2] {
            fs::write(name.join(STATE_FILE), &good[..cut]).unwrap();
            assert!(open().contains("EOF"), "{}", open());
        }
        let newer = String::from_utf8(good.clone()).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(name.join(STATE_FILE), newer).unwrap();
        assert!(open().contains("version is 2"), "{}", open());
        fs::write(name.join(STATE_FILE), good).unwrap();
        OpenOptions::new().write(true).open(name.join(MEMORY_FILE)).unwrap().set_len(1 << 20).unwrap();
        assert!(open().contains("8388608 by machine.memory_mib"), "{}", open());
        fs::remove_file(name.join(MEMORY_FILE)).unwrap();
        assert!(open().contains(MEMORY_FILE));
    }
}
