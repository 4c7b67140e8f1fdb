//! The kernel file: which of three formats it has, and how it is loaded.
//!
//! * arm64 Linux `Image`: magic `ARM\x64` at offset 56 (Linux, Documentation/arch/arm64/booting.rst). Loaded at the
//!   first byte of RAM plus its `text_offset`, entered at its first byte.
//! * ELF64, little-endian, AArch64: each PT_LOAD segment at its physical address, entered at `e_entry`.
//! * anything else is flat: loaded at [`FLAT_BASE`] and entered there.
//!
//! Entered means: vCPU 0, EL1, MMU and caches off, interrupts masked, X0 = address of the device tree.

use crate::error::VmError;
use crate::layout::{FLAT_BASE, RAM_BASE};
use crate::memory::Ram;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress};

const IMAGE_HEADER_SIZE: usize = 64;
const IMAGE_MAGIC: &[u8] = b"ARM\x64";
const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PHDR_SIZE: usize = 56;

/// A kernel file that stays open, so that a reboot loads the same file again.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
    /// Pieces to load, in file order.
    segments: Vec<Segment>,
    entry: u64,
    end: u64,
}

/// Bytes of the file that go to one place in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    file_size: u64,
    address: u64,
    /// What is beyond `file_size` is zeroed.
    memory_size: u64,
}

impl Kernel {
    /// Opens a kernel file and reads its headers; `ram_end` is the end of guest memory.
    ///
    /// # Errors
    ///
    /// [`VmError::File`] when it can't be read, [`VmError::Kernel`] with the header field that is bad,
    /// [`VmError::OutOfMemory`] when memory is too small for it.
    pub fn open(path: &Path, ram_end: u64) -> Result<Self, VmError> {
        let error = |source| VmError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        let length = file.metadata().map_err(error)?.len();
        let mut header = [0; IMAGE_HEADER_SIZE];
        let known = usize::try_from(length).unwrap_or(usize::MAX).min(header.len());
        file.read_exact_at(&mut header[..known], 0).map_err(error)?;

        let mut kernel = Self { path: path.to_owned(), file, segments: Vec::new(), entry: 0, end: RAM_BASE };
        if length == 0 {
            return Err(kernel.bad("size", 0, "an arm64 Image, an ELF file or a flat binary is needed"));
        } else if header.starts_with(ELF_MAGIC) {
            kernel.parse_elf(&header, length, ram_end)?;
        } else if header[56..].starts_with(IMAGE_MAGIC) {
            kernel.parse_image(&header, length)?;
        } else {
            kernel.entry = FLAT_BASE;
            kernel.segments.push(Segment {
                file_offset: 0,
                file_size: length,
                address: FLAT_BASE,
                memory_size: length,
            });
        }
        for segment in &kernel.segments {
            // Each sum was checked when the segment was made.
            kernel.end = kernel.end.max(segment.address.saturating_add(segment.memory_size));
        }
        if kernel.end > ram_end {
            let (needed, available) = (kernel.end - RAM_BASE, ram_end - RAM_BASE);
            return Err(VmError::OutOfMemory { what: "the kernel", needed, available });
        }
        Ok(kernel)
    }

    /// Address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// First address above everything that the kernel needs, its BSS included.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Writes the kernel to guest memory.
    ///
    /// # Errors
    ///
    /// [`VmError::Write`] when the file has become shorter than it was, or can't be read.
    pub fn load(&self, memory: &Ram) -> Result<(), VmError> {
        let error = |reason: String| VmError::Write { what: "the kernel", reason };
        // A Read for &File would move an offset that all clones share; this one is ours alone.
        let mut file = &self.file;
        for segment in &self.segments {
            file.seek(SeekFrom::Start(segment.file_offset)).map_err(|e| error(e.to_string()))?;
            let file_size = usize::try_from(segment.file_size).map_err(|e| error(e.to_string()))?;
            memory
                .read_exact_volatile_from(GuestAddress(segment.address), &mut file, file_size)
                .map_err(|e| error(e.to_string()))?;
            let rest = segment.address + segment.file_size..segment.address + segment.memory_size;
            let zeroes = [0; 4096];
            for address in rest.clone().step_by(zeroes.len()) {
                let length = (rest.end - address).min(zeroes.len() as u64) as usize;
                memory.write_slice(&zeroes[..length], GuestAddress(address)).map_err(|e| error(e.to_string()))?;
            }
        }
        Ok(())
    }

    fn parse_image(&mut self, header: &[u8], length: u64) -> Result<(), VmError> {
        let image_size = u64_at(header, 16);
        // Kernels before 3.17 leave image_size 0 and mean a text_offset of 0x8_0000.
        let text_offset = if image_size == 0 { 0x8_0000 } else { u64_at(header, 8) };
        if text_offset >= 0x20_0000 {
            return Err(self.bad("text_offset", text_offset, "it must be below 2 MiB"));
        }
        let address = RAM_BASE + text_offset;
        let memory_size = image_size.max(length);
        if address.checked_add(memory_size).is_none() {
            return Err(self.bad("image_size", image_size, "it must fit in guest memory"));
        }
        self.entry = address;
        // What is beyond the file is the kernel's BSS, which it clears itself.
        self.segments.push(Segment { file_offset: 0, file_size: length, address, memory_size });
        Ok(())
    }

    fn parse_elf(&mut self, header: &[u8], length: u64, ram_end: u64) -> Result<(), VmError> {
        let (class, data, machine) = (header[4], header[5], u16_at(header, 18));
        if class != ELFCLASS64 {
            return Err(self.bad("EI_CLASS", class.into(), "it must be 2 (64-bit)"));
        }
        if data != ELFDATA2LSB {
            return Err(self.bad("EI_DATA", data.into(), "it must be 1 (little-endian)"));
        }
        if machine != EM_AARCH64 {
            return Err(self.bad("e_machine", machine.into(), "it must be 183 (AArch64)"));
        }
        let (entry, phoff) = (u64_at(header, 24), u64_at(header, 32));
        let (phentsize, phnum) = (u16_at(header, 54), u16_at(header, 56));
        if usize::from(phentsize) != PHDR_SIZE {
            return Err(self.bad("e_phentsize", phentsize.into(), "it must be 56"));
        }
        let mut entered = None;
        for index in 0..u64::from(phnum) {
            let mut phdr = [0; PHDR_SIZE];
            let read = phoff
                .checked_add(index * PHDR_SIZE as u64)
                .filter(|offset| *offset < length)
                .map(|offset| self.file.read_exact_at(&mut phdr, offset));
            if !matches!(read, Some(Ok(()))) {
                return Err(self.bad("e_phoff", phoff, "the program headers must be inside the file"));
            }
            if u32_at(&phdr, 0) != PT_LOAD || u64_at(&phdr, 40) == 0 {
                continue;
            }
            let segment = Segment {
                file_offset: u64_at(&phdr, 8),
                file_size: u64_at(&phdr, 32),
                address: u64_at(&phdr, 24),
                memory_size: u64_at(&phdr, 40),
            };
            self.check_segment(&segment, length, ram_end)?;
            // The MMU is off: the entry point is needed as a physical address.
            let vaddr = u64_at(&phdr, 16);
            if let Some(offset) = entry.checked_sub(vaddr).filter(|offset| *offset < segment.memory_size) {
                entered = Some(segment.address + offset);
            }
            self.segments.push(segment);
        }
        self.entry = entered.ok_or_else(|| self.bad("e_entry", entry, "it must be inside a PT_LOAD segment"))?;
        Ok(())
    }

    fn check_segment(&self, segment: &Segment, length: u64, ram_end: u64) -> Result<(), VmError> {
        let file_end = segment.file_offset.checked_add(segment.file_size);
        if file_end.is_none_or(|end| end > length) {
            return Err(self.bad("p_offset", segment.file_offset, "the segment must be inside the file"));
        }
        if segment.file_size > segment.memory_size {
            return Err(self.bad("p_filesz", segment.file_size, "it can't be above p_memsz"));
        }
        let end = segment.address.checked_add(segment.memory_size);
        if segment.address < RAM_BASE || end.is_none_or(|end| end > ram_end) {
            let acceptable = format!(
                "the segment must be in guest memory, {RAM_BASE:#x} to {ram_end:#x} (Linux boots from its Image, not from vmlinux)"
            );
            return Err(self.bad("p_paddr", segment.address, &acceptable));
        }
        Ok(())
    }

    fn bad(&self, field: &'static str, value: u64, acceptable: &str) -> VmError {
        VmError::Kernel { path: self.path.clone(), field, value, acceptable: acceptable.to_owned() }
    }
}

// The callers' offsets are constants inside headers of constant size; what is outside reads as 0.
fn bytes_at<const N: usize>(header: &[u8], offset: usize) -> [u8; N] {
    header.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(header: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes_at(header, offset))
}

fn u32_at(header: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes_at(header, offset))
}

fn u64_at(header: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes_at(header, offset))
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
