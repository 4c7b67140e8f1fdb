//! The disk through which files go into the emulated host, and out of one that has no network.
//!
//! Its network carries some 7 MB/s, because each packet costs emulated instructions; a disk carries hundreds. So an
//! upload is written to the disk's image, and the agent copies it from there. Each file has a place of its own: what
//! the host's kernel has once read it keeps, and would not see being changed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// What the disk is called inside, on virtio.
pub(super) const VIRTIO: &str = "/dev/vda";
/// The same on an IDE controller.
pub(super) const IDE: &str = "/dev/sda";

/// Size of the image in bytes; it takes room only for what is written.
const SIZE: u64 = 16 << 30;

/// Files start at multiples of this and have as much space behind them, far more than a kernel reads ahead.
pub(super) const ALIGNMENT: u64 = 2 << 20;

/// The image. Several processes may use it at once.
#[derive(Clone, Debug)]
pub(super) struct UploadDisk {
    image: PathBuf,
    device: &'static str,
}

impl UploadDisk {
    /// An empty image.
    pub(super) fn create(directory: &Path, device: &'static str) -> Result<Self> {
        let disk = Self::open(&directory.join("uploads.img"), device);
        let image = File::create(&disk.image).with_context(|| format!("cannot create {}", disk.image.display()))?;
        image.set_len(SIZE)?;
        File::create(disk.counter())?.write_all(&0_u64.to_le_bytes())?;
        Ok(disk)
    }

    /// An image that another process has created.
    pub(super) fn open(image: &Path, device: &'static str) -> Self {
        Self { image: image.to_owned(), device }
    }

    /// What the disk is called inside.
    pub(super) fn device(&self) -> &'static str {
        self.device
    }

    pub(super) fn path(&self) -> &Path {
        &self.image
    }

    /// Copies a file into the image; returns its offset and length in bytes.
    pub(super) fn add(&self, mut file: impl Read, length: u64) -> Result<(u64, u64)> {
        let offset = self.reserve(length)?;
        let mut image = File::options().write(true).open(&self.image).context("cannot open the upload disk")?;
        image.seek(SeekFrom::Start(offset))?;
        let copied = io::copy(&mut file.by_ref().take(length), &mut image).context("cannot write the upload disk")?;
        if copied != length {
            bail!("the file became shorter while it was read");
        }
        Ok((offset, length))
    }

    /// What the host has written there.
    pub(super) fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut image = File::open(&self.image).context("cannot open the upload disk")?;
        image.seek(SeekFrom::Start(offset))?;
        let mut content = vec![0; usize::try_from(length)?];
        image.read_exact(&mut content).context("cannot read the upload disk")?;
        Ok(content)
    }

    /// The offset of a place for so many bytes.
    pub(super) fn reserve(&self, length: u64) -> Result<u64> {
        let mut counter = File::options().read(true).write(true).open(self.counter())?;
        counter.lock()?;
        let mut bytes = [0; 8];
        counter.read_exact(&mut bytes)?;
        let offset = u64::from_le_bytes(bytes);
        let next = offset + length.next_multiple_of(ALIGNMENT) + ALIGNMENT;
        if next > SIZE {
            bail!("the upload disk is full: {offset} of {SIZE} bytes are used, {length} more do not fit");
        }
        counter.rewind()?;
        counter.write_all(&next.to_le_bytes())?;
        Ok(offset)
    }

    fn counter(&self) -> PathBuf {
        self.image.with_extension("next")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_do_not_touch_each_other() {
        let directory = std::env::temp_dir().join(format!("xtask-disk-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let disk = UploadDisk::create(&directory, VIRTIO).unwrap();
        let first = disk.add(&b"first"[..], 5).unwrap();
        let second = UploadDisk::open(disk.path(), VIRTIO).add(&b"second"[..], 6).unwrap();
        assert_eq!((first, second), ((0, 5), (2 * ALIGNMENT, 6)));
        assert_eq!(disk.read(second.0, second.1).unwrap(), b"second");
        assert!(disk.add(&b"short"[..], 6).is_err());
        assert!(disk.add(&b""[..], SIZE).unwrap_err().to_string().contains("full"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
