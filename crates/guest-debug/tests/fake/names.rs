//! Short names for what the tests write all the time.

use guest_debug::{Breakpoint, Gva, VcpuId, WatchKind};

pub const V0: VcpuId = VcpuId(0);
pub const V1: VcpuId = VcpuId(1);

pub fn hardware(address: u64) -> Breakpoint {
    Breakpoint::Hardware(Gva(address))
}

pub fn software(address: u64) -> Breakpoint {
    Breakpoint::Software(Gva(address))
}

pub fn write_watch(address: u64, length: u64) -> Breakpoint {
    Breakpoint::Watch { kind: WatchKind::Write, address: Gva(address), length }
}
