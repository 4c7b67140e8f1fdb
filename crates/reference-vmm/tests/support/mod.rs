//! Guests for the tests: machine code from the test binary itself, in a VM with its output kept.

pub mod client;

use reference_vmm::config::VmConfig;
use reference_vmm::kvm::Vm;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

/// Where a flat payload starts.
pub const BASE: u64 = 0x8000_0000;
/// Where the payloads here keep what they tell.
pub const DATA: u64 = 0x8010_0000;

/// Makes a function `$name() -> &'static [u8]` that answers the code assembled from the lines. The code must be
/// position-independent; its start is the symbol `$name_start`.
macro_rules! guest_code {
    ($name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            ".balign 8",
            concat!(stringify!($name), "_start:"),
            $($line,)+
            concat!(stringify!($name), "_end:"),
            ".popsection"
        );

        fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: the labels bound bytes of a read-only section of this binary.
            unsafe {
                std::arch::asm!(
                    concat!("adrp {0}, ", stringify!($name), "_start"),
                    concat!("add {0}, {0}, :lo12:", stringify!($name), "_start"),
                    concat!("adrp {1}, ", stringify!($name), "_end"),
                    concat!("add {1}, {1}, :lo12:", stringify!($name), "_end"),
                    out(reg) start,
                    out(reg) end,
                    options(nomem, nostack, preserves_flags)
                );
                std::slice::from_raw_parts(start, end.addr() - start.addr())
            }
        }
    };
}
pub(crate) use guest_code;

/// Says that this test, or a part of it, was skipped. Past libtest, which would keep it to itself.
pub fn skipped(reason: &str) {
    let test = std::thread::current();
    let name = test.name().unwrap_or("a test").to_owned();
    let _ = writeln!(io::stderr(), "SKIPPED: {name}: {reason}");
}

/// What the guest wrote to its serial port.
#[derive(Debug, Clone, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A VM with a payload.
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// Its serial output.
    pub output: Output,
    /// Stays open for resets.
    _kernel: TempFile,
}

impl Guest {
    /// A VM with `payload` as its kernel, after `change` to its settings; `None`, with the reason printed, where
    /// there is no KVM.
    pub fn new(payload: &[u8], change: impl FnOnce(&mut VmConfig)) -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            skipped("there is no /dev/kvm");
            return None;
        }
        let kernel = TempFile::new().unwrap();
        kernel.as_file().write_all(payload).unwrap();
        let mut config = VmConfig { memory_mib: 16, ..VmConfig::new(kernel.as_path()) };
        change(&mut config);
        let output = Output::default();
        let vm = Vm::new(&config, Box::new(output.clone())).unwrap();
        Some(Self { vm, output, _kernel: kernel })
    }

    /// Doublewords of guest memory.
    pub fn read<const N: usize>(&self, address: u64) -> [u64; N] {
        std::array::from_fn(|i| self.vm.ram().read_obj(GuestAddress(address + 8 * i as u64)).unwrap())
    }
}
