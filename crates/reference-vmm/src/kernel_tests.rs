use super::*;
use crate::guest::Guest as _;
use crate::memory;
use guest_debug::Arm64;
use std::io::Write;
use vmm_sys_util::tempfile::TempFile;

const RAM_SIZE: u64 = 16 << 20;
const RAM_END: u64 = RAM_BASE + RAM_SIZE;

fn open(bytes: &[u8]) -> Result<Kernel, VmError> {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(bytes).unwrap();
    Kernel::open(file.as_path(), RAM_END)
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn image(text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut bytes = vec![0x55; 4096];
    put(&mut bytes, 8, &text_offset.to_le_bytes());
    put(&mut bytes, 16, &image_size.to_le_bytes());
    put(&mut bytes, 56, IMAGE_MAGIC);
    bytes
}

/// One segment: 16 bytes of the file at `address`, 32 in memory, linked at 0xffff_0000_0000_0000.
fn elf(address: u64) -> Vec<u8> {
    let mut bytes = vec![0; 64 + PHDR_SIZE + 16];
    put(&mut bytes, 0, &[0x7f, b'E', b'L', b'F', ELFCLASS64, ELFDATA2LSB, 1]);
    put(&mut bytes, 18, &EM_AARCH64.to_le_bytes());
    put(&mut bytes, 24, &0xffff_0000_0000_0004_u64.to_le_bytes());
    put(&mut bytes, 32, &64_u64.to_le_bytes());
    put(&mut bytes, 54, &(PHDR_SIZE as u16).to_le_bytes());
    put(&mut bytes, 56, &1_u16.to_le_bytes());
    put(&mut bytes, 64, &PT_LOAD.to_le_bytes());
    put(&mut bytes, 64 + 8, &120_u64.to_le_bytes());
    put(&mut bytes, 64 + 16, &0xffff_0000_0000_0000_u64.to_le_bytes());
    put(&mut bytes, 64 + 24, &address.to_le_bytes());
    put(&mut bytes, 64 + 32, &16_u64.to_le_bytes());
    put(&mut bytes, 64 + 40, &32_u64.to_le_bytes());
    put(&mut bytes, 120, &[0xaa; 16]);
    bytes
}

#[track_caller]
fn assert_bad(bytes: &[u8], expected: &str) {
    match open(bytes) {
        Err(VmError::Kernel { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn flat_binary() {
    let memory = memory::allocate(&Arm64::ram(16)).unwrap();
    let kernel = open(&[1, 2, 3]).unwrap();
    assert_eq!((kernel.entry(), kernel.end()), (FLAT_BASE, FLAT_BASE + 3));
    kernel.load(&memory).unwrap();
    let mut loaded = [0; 4];
    memory.read_slice(&mut loaded, GuestAddress(FLAT_BASE)).unwrap();
    assert_eq!(loaded, [1, 2, 3, 0]);
}

#[test]
fn linux_image() {
    let kernel = open(&image(0x1000, 0x10_0000)).unwrap();
    assert_eq!((kernel.entry(), kernel.end()), (RAM_BASE + 0x1000, RAM_BASE + 0x10_1000));
    let old = open(&image(0x1000, 0)).unwrap();
    assert_eq!((old.entry(), old.end()), (RAM_BASE + 0x8_0000, RAM_BASE + 0x8_1000));
    assert_bad(&image(0x20_0000, 1), "text_offset");
    assert_bad(&image(0, u64::MAX), "image_size");
    assert!(matches!(open(&image(0, RAM_SIZE + 1)), Err(VmError::OutOfMemory { what: "the kernel", .. })));
}

#[test]
fn elf_file_is_entered_by_physical_address() {
    let memory = memory::allocate(&Arm64::ram(16)).unwrap();
    let address = RAM_BASE + 0x10_0000;
    memory.write_slice(&[0xff; 40], GuestAddress(address)).unwrap();
    let kernel = open(&elf(address)).unwrap();
    assert_eq!((kernel.entry(), kernel.end()), (address + 4, address + 32));
    kernel.load(&memory).unwrap();
    let mut loaded = [0; 40];
    memory.read_slice(&mut loaded, GuestAddress(address)).unwrap();
    assert_eq!(loaded[..16], [0xaa; 16]);
    assert_eq!(loaded[16..32], [0; 16], "BSS is cleared, on a reboot as well");
    assert_eq!(loaded[32..], [0xff; 8]);
}

#[test]
fn each_bad_elf_field_is_named() {
    let good = elf(RAM_BASE);
    assert!(open(&good).is_ok());
    let cases: [(usize, &[u8], &str); 12] = [
        (4, &[1], "EI_CLASS"),
        (5, &[2], "EI_DATA"),
        (18, &[62, 0], "e_machine"),
        (24, &[0; 8], "e_entry"),
        (32, &[0xff; 8], "e_phoff"),
        (32, &[130, 0], "e_phoff"),
        (54, &[0, 0], "e_phentsize"),
        (56, &[0, 0], "e_entry"),
        (64 + 8, &[0xff; 8], "p_offset"),
        (64 + 24, &[0; 8], "p_paddr"),
        (64 + 32, &[16, 0xff], "p_offset"),
        (64 + 40, &[8, 0], "p_filesz"),
    ];
    for (offset, value, field) in cases {
        let mut bytes = good.clone();
        put(&mut bytes, offset, value);
        assert_bad(&bytes, field);
    }
    let mut huge = good;
    put(&mut huge, 64 + 40, &[0xff; 8]);
    assert_bad(&huge, "p_paddr");
}

#[test]
fn cut_anywhere_it_does_not_panic() {
    for bytes in [elf(RAM_BASE), image(0, 0x1000)] {
        for length in 0..bytes.len().min(200) {
            let _ = open(&bytes[..length]);
        }
    }
    assert_bad(&[], "size");
}

#[test]
fn missing_file_is_named() {
    let error = Kernel::open(Path::new("/nonexistent/Image"), RAM_END).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/Image: "), "{error}");
}
