//! What is in guest memory when the first vCPU starts: a kernel with what Linux's 64-bit boot protocol asks for
//! (kernel: Documentation/arch/x86/boot.rst), or a bare-metal program, which gets the same.

use super::acpi;
use super::layout::{
    ABOVE_DEVICES, ACPI, BASE_END, CMDLINE, CODE, DATA, DEVICES, GDT, HIGH_RAM, PAGE_DIRECTORIES, PDPT, PML4, ZERO_PAGE,
};
use crate::config::VmConfig;
use crate::error::VmError;
use crate::memory::{self, PAGE, Ram};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader as _, KernelLoaderResult};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use vm_memory::{Address as _, Bytes as _, GuestAddress};

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// `setup_header.header`, at its offset in a bzImage.
const HDRS: u32 = 0x5372_6448;
const HDRS_OFFSET: u64 = 0x202;
/// The 64-bit entry of a bzImage, behind its 32-bit one.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: one without a number of its own.
const LOADER: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
/// Where a kernel that does not say wants its initramfs at most.
const INITRD_MAX: u64 = 0x37ff_ffff;
const E820_RAM: u32 = 1;

/// Opened files of a guest. They stay open, so that a reboot loads the same ones.
#[derive(Debug)]
pub(crate) struct Payload {
    path: PathBuf,
    kernel: File,
    initrd: Option<(File, u64)>,
    cmdline: String,
}

/// How the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryPoint {
    /// Address of the first instruction, in 64-bit mode.
    pub(crate) rip: u64,
    /// Address of the zero page.
    pub(crate) rsi: u64,
}

impl Payload {
    /// Opens the files of `config`.
    ///
    /// # Errors
    ///
    /// A file that can't be opened.
    pub(crate) fn open(config: &VmConfig) -> Result<Self, VmError> {
        let open = |path: &Path| -> Result<(File, u64), VmError> {
            let error = |source| VmError::File { path: path.to_owned(), source };
            let file = File::open(path).map_err(error)?;
            let size = file.metadata().map_err(error)?.len();
            Ok((file, size))
        };
        Ok(Self {
            path: config.kernel.clone(),
            kernel: open(&config.kernel)?.0,
            initrd: config.initrd.as_deref().map(open).transpose()?,
            cmdline: config.cmdline.clone(),
        })
    }

    /// Writes everything to guest memory, for a machine with so many vCPUs.
    ///
    /// # Errors
    ///
    /// A kernel that can't be one, and what does not fit.
    pub(crate) fn load(&self, ram: &Ram, cpus: u32) -> Result<EntryPoint, VmError> {
        let (size, low) = (memory::size(ram), low_end(ram));
        let Kernel { rip, end, header } = self.load_kernel(ram)?;
        let initrd = self.load_initrd(ram, end, low.min(u64::from(header.initrd_addr_max).max(INITRD_MAX) + 1))?;
        let write = |what, bytes: &[u8], at| {
            let error = |error: vm_memory::GuestMemoryError| VmError::Write { what, reason: error.to_string() };
            ram.write_slice(bytes, GuestAddress(at)).map_err(error)
        };
        write("the command line", &[self.cmdline.as_bytes(), &[0]].concat(), CMDLINE)?;
        write("ACPI tables", &acpi::build(cpus), ACPI)?;
        let mut params = boot_params { hdr: header, ..boot_params::default() };
        params.hdr.type_of_loader = LOADER;
        params.hdr.cmd_line_ptr = CMDLINE as u32;
        params.hdr.cmdline_size = self.cmdline.len() as u32;
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = initrd;
        let e820 = [(0, BASE_END), (HIGH_RAM, low - HIGH_RAM), (ABOVE_DEVICES, size - low)];
        let e820 = e820.get(..if size > low { 3 } else { 2 }).unwrap_or_default();
        for (entry, &(addr, size)) in params.e820_table.iter_mut().zip(e820) {
            *entry = boot_e820_entry { addr, size, r#type: E820_RAM };
        }
        params.e820_entries = e820.len() as u8;
        LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), ram)
            .map_err(|error| VmError::Write { what: "the zero page", reason: error.to_string() })?;

        // Code at 0x10 and data at 0x18, flat.
        let mut gdt = [0u64; 4];
        gdt[usize::from(CODE / 8)] = 0x00af_9b00_0000_ffff;
        gdt[usize::from(DATA / 8)] = 0x00cf_9300_0000_ffff;
        write("the descriptor table", &gdt.map(u64::to_le_bytes).concat(), GDT)?;
        write("page tables", &(PDPT | 3).to_le_bytes(), PML4)?;
        for gib in 0..4 {
            let directory = PAGE_DIRECTORIES + gib * PAGE;
            write("page tables", &(directory | 3).to_le_bytes(), PDPT + gib * 8)?;
            let pages = (0..512u64).map(|page| (gib << 30 | page << 21 | 0x83).to_le_bytes());
            write("page tables", &pages.collect::<Vec<_>>().concat(), directory)?;
        }
        Ok(EntryPoint { rip, rsi: ZERO_PAGE })
    }

    fn load_kernel(&self, ram: &Ram) -> Result<Kernel, VmError> {
        let mut magic = [0; 4];
        let mut is =
            |offset, expected: &[u8]| self.kernel.read_exact_at(&mut magic, offset).is_ok() && magic == *expected;
        let (linux, elf) = (is(HDRS_OFFSET, &HDRS.to_le_bytes()), is(0, ELF_MAGIC));
        // Their Read would move an offset that clones share; this one is ours alone.
        let mut file = self.kernel.try_clone().map_err(VmError::io("dup"))?;
        let high = Some(GuestAddress(HIGH_RAM));
        let error = |error: linux_loader::loader::Error| VmError::Write {
            what: "the kernel",
            reason: format!("{}: {error}", self.path.display()),
        };
        // One that is no Linux gets a header that Linux would understand.
        let plain = setup_header { boot_flag: BOOT_FLAG, header: HDRS, ..setup_header::default() };
        if linux {
            let KernelLoaderResult { kernel_load, kernel_end, setup_header, .. } =
                BzImage::load(ram, None, &mut file, high).map_err(error)?;
            let header = setup_header.unwrap_or(plain);
            // What it unpacks and its BSS come behind it.
            let end = kernel_end.max(kernel_load.raw_value() + u64::from(header.init_size));
            return Ok(Kernel { rip: kernel_load.raw_value() + ENTRY_64, end, header });
        }
        if elf {
            let loaded = Elf::load(ram, None, &mut file, high).map_err(error)?;
            return Ok(Kernel { rip: loaded.kernel_load.raw_value(), end: loaded.kernel_end, header: plain });
        }
        let size = file.metadata().map_err(VmError::io("fstat"))?.len();
        let room = low_end(ram) - HIGH_RAM;
        if size == 0 || size > room {
            let acceptable = format!("a bzImage, an ELF file, or a flat binary of 1 to {room:#x} bytes is needed");
            return Err(VmError::Kernel { path: self.path.clone(), field: "size", value: size, acceptable });
        }
        read_into(ram, "the kernel", &mut file, HIGH_RAM, size)?;
        Ok(Kernel { rip: HIGH_RAM, end: HIGH_RAM + size, header: plain })
    }

    /// As high as it may be. Answers its address and size.
    fn load_initrd(&self, ram: &Ram, kernel_end: u64, limit: u64) -> Result<(u32, u32), VmError> {
        let Some((file, size)) = &self.initrd else { return Ok((0, 0)) };
        let at = limit.checked_sub(*size).map(|at| at & !(PAGE - 1)).filter(|at| *at >= kernel_end);
        let available = limit.saturating_sub(kernel_end);
        let at = at.ok_or(VmError::OutOfMemory { what: "the initramfs", needed: *size, available })?;
        let mut file = file.try_clone().map_err(VmError::io("dup"))?;
        read_into(ram, "the initramfs", &mut file, at, *size)?;
        Ok((at as u32, *size as u32))
    }
}

/// Where RAM below the devices ends; all that is loaded is there.
fn low_end(ram: &Ram) -> u64 {
    memory::size(ram).min(DEVICES)
}

/// A kernel in guest memory.
struct Kernel {
    rip: u64,
    end: u64,
    header: setup_header,
}

fn read_into(ram: &Ram, what: &'static str, file: &mut File, at: u64, size: u64) -> Result<(), VmError> {
    use std::io::{Seek as _, SeekFrom};
    let error = |reason: String| VmError::Write { what, reason };
    file.seek(SeekFrom::Start(0)).map_err(|e| error(e.to_string()))?;
    let size = usize::try_from(size).map_err(|e| error(e.to_string()))?;
    ram.read_exact_volatile_from(GuestAddress(at), file, size).map_err(|e| error(e.to_string()))
}

const _: () = assert!(CMDLINE + crate::config::CMDLINE_CAPACITY as u64 <= BASE_END);
