//! Places, instructions and breakpoints of the tests' guests.

use guest_debug::{Breakpoint, Gva, VcpuId, WatchKind};

pub const V0: VcpuId = VcpuId(0);
pub const V1: VcpuId = VcpuId(1);

/// Code; a stack that grows down from below the IDT; handlers, sixteen bytes each; what SYSCALL goes to.
pub const RAM: u64 = 0x10_0000;
pub const STACK: u64 = RAM + 0x7000;
pub const IDT: u64 = RAM + 0x8000;
pub const HANDLERS: u64 = RAM + 0x9000;
pub const ENTRY: u64 = RAM + 0xa000;
pub const DATA: u64 = RAM + 0xb000;
/// The last segment, which most of this is in.
pub const SEGMENT: u16 = 0xffff;
pub(super) const RAM_SIZE: usize = 1 << 16;

pub const TF: u64 = 0x100;
pub const IF: u64 = 0x200;
/// What Linux has in IA32_FMASK, TF and IF among it.
pub const FMASK: u64 = 0x4_7700;

pub const NOP: &[u8] = &[0x90];
pub const INT3: &[u8] = &[0xcc];
pub const HLT: &[u8] = &[0xf4];
pub const PUSHFQ: &[u8] = &[0x9c];
pub const POPFQ: &[u8] = &[0x9d];
pub const CLI: &[u8] = &[0xfa];
pub const STI: &[u8] = &[0xfb];
pub const IRETQ: &[u8] = &[0x48, 0xcf];
pub const SYSCALL: &[u8] = &[0x0f, 0x05];
/// INT 0x80
pub const INT_80: &[u8] = &[0xcd, 0x80];
/// INC RBX
pub const COUNT: &[u8] = &[0x48, 0xff, 0xc3];
/// MOV [RAX], RBX
pub const STORE: &[u8] = &[0x48, 0x89, 0x18];
/// MOV RCX, [RAX]
pub const LOAD: &[u8] = &[0x48, 0x8b, 0x08];
/// ADD RSP, 8
pub(super) const DROP: &[u8] = &[0x48, 0x83, 0xc4, 0x08];
/// JMP to itself
pub const SPIN: &[u8] = &[0xeb, 0xfe];

/// JMP to `offset` bytes from its beginning.
pub fn jump(offset: i8) -> Vec<u8> {
    vec![0xeb, (offset - 2) as u8]
}

pub fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

pub fn hardware(address: u64) -> Breakpoint {
    Breakpoint::Hardware(Gva(address))
}

pub fn software(address: u64) -> Breakpoint {
    Breakpoint::Software(Gva(address))
}

pub fn watch(kind: WatchKind, address: u64, length: u64) -> Breakpoint {
    Breakpoint::Watch { kind, address: Gva(address), length }
}
