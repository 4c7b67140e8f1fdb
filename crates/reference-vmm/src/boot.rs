//! The boot payload: kernel, initramfs and device tree, as they are in guest memory when vCPU 0 starts.

use crate::config::VmConfig;
use crate::error::VmError;
use crate::fdt::{self, FdtConfig};
use crate::kernel::Kernel;
use crate::layout::{self, Placement};
use crate::memory::Ram;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};

/// Opened and checked files of a guest. They stay open, so that a reboot loads the same ones.
#[derive(Debug)]
pub struct Payload {
    kernel: Kernel,
    initrd: Option<File>,
    placement: Placement,
    cmdline: String,
    memory: u64,
}

/// How vCPU 0 starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint {
    /// Address of the first instruction.
    pub pc: u64,
    /// Address of the device tree, in X0.
    pub fdt: u64,
}

impl Payload {
    /// Opens the files of `config` and finds a place for each in guest memory.
    ///
    /// # Errors
    ///
    /// A file that can't be read, a bad kernel header, or memory that is too small.
    pub fn open(config: &VmConfig) -> Result<Self, VmError> {
        let memory = config.memory_mib << 20;
        let kernel = Kernel::open(&config.kernel, layout::ram_end(memory))?;
        let initrd = config.initrd.as_deref().map(open_sized).transpose()?;
        let size = initrd.as_ref().map_or(0, |(_, size)| *size);
        let placement = layout::place(memory, kernel.end(), size)?;
        Ok(Self { kernel, initrd: initrd.map(|(file, _)| file), placement, cmdline: config.cmdline.clone(), memory })
    }

    /// Writes everything to guest memory; `mpidrs` as in [`FdtConfig::mpidrs`].
    ///
    /// # Errors
    ///
    /// A file that has become shorter, or a device tree that can't be made.
    pub fn load(&self, memory: &Ram, mpidrs: &[u64]) -> Result<EntryPoint, VmError> {
        self.kernel.load(memory)?;
        let initrd = self.placement.initrd.clone();
        if let Some(mut file) = self.initrd.as_ref() {
            let error = |reason: String| VmError::Write { what: "the initramfs", reason };
            let size = usize::try_from(initrd.end - initrd.start).map_err(|e| error(e.to_string()))?;
            file.seek(SeekFrom::Start(0)).map_err(|e| error(e.to_string()))?;
            memory
                .read_exact_volatile_from(GuestAddress(initrd.start), &mut file, size)
                .map_err(|e| error(e.to_string()))?;
        }
        let blob = fdt::build(&FdtConfig { cmdline: &self.cmdline, memory: self.memory, initrd, mpidrs })?;
        memory
            .write_slice(&blob, GuestAddress(self.placement.fdt))
            .map_err(|e| VmError::Write { what: "the device tree", reason: e.to_string() })?;
        Ok(EntryPoint { pc: self.kernel.entry(), fdt: self.placement.fdt })
    }
}

fn open_sized(path: &Path) -> Result<(File, u64), VmError> {
    let error = |source| VmError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let size = file.metadata().map_err(error)?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest as _;
    use crate::memory;
    use guest_debug::Arm64;
    use std::io::Write;
    use vmm_sys_util::tempfile::TempFile;

    fn file(bytes: &[u8]) -> TempFile {
        let file = TempFile::new().unwrap();
        file.as_file().write_all(bytes).unwrap();
        file
    }

    #[test]
    fn loads_the_same_payload_twice() {
        let (kernel, initrd) = (file(&[1; 100]), file(&[2; 70_000]));
        let config = VmConfig {
            initrd: Some(initrd.as_path().to_owned()),
            memory_mib: 8,
            ..VmConfig::new(kernel.as_path().to_owned())
        };
        let payload = Payload::open(&config).unwrap();
        let ram = memory::allocate(&Arm64::ram(8)).unwrap();
        let first = payload.load(&ram, &[0]).unwrap();
        assert_eq!(first.pc, layout::FLAT_BASE);
        ram.write_slice(&[9; 100], GuestAddress(layout::FLAT_BASE)).unwrap();
        ram.write_slice(&[9; 100], GuestAddress(payload.placement.initrd.start)).unwrap();
        ram.write_slice(&[9; 100], GuestAddress(first.fdt)).unwrap();
        assert_eq!(payload.load(&ram, &[0]).unwrap(), first);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(layout::FLAT_BASE + 99)).unwrap(), 1);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(payload.placement.initrd.start)).unwrap(), 2);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(payload.placement.initrd.end - 1)).unwrap(), 2);
        assert_eq!(ram.read_obj::<u32>(GuestAddress(first.fdt)).unwrap(), 0xd00d_feed_u32.to_be());
    }

    #[test]
    fn a_missing_initramfs_is_named() {
        let kernel = file(&[1]);
        let config = VmConfig { initrd: Some("/nonexistent/i".into()), ..VmConfig::new(kernel.as_path().to_owned()) };
        assert!(Payload::open(&config).unwrap_err().to_string().starts_with("/nonexistent/i: "));
    }

    #[test]
    fn a_file_that_shrank_is_an_error_at_the_reboot() {
        let kernel = file(&[1; 5000]);
        let payload = Payload::open(&VmConfig { memory_mib: 8, ..VmConfig::new(kernel.as_path().to_owned()) }).unwrap();
        kernel.as_file().set_len(10).unwrap();
        let error = payload.load(&memory::allocate(&Arm64::ram(8)).unwrap(), &[0]).unwrap_err();
        assert!(matches!(error, VmError::Write { what: "the kernel", .. }), "{error}");
    }
}
