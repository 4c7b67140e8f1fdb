//! `Z` and `z`.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::vm::{DebugVm, VmError};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::{TargetError, TargetResult};
use guest_debug::{Breakpoint, Gva};

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    fn insert(&mut self, breakpoint: Breakpoint) -> Result<bool, TargetError<VmError>> {
        match self.vm.insert(self.current(), breakpoint) {
            Ok(()) => {
                self.client.last_refusal = None;
                self.client.inserted.insert(breakpoint);
                Ok(true)
            }
            Err(error) => {
                self.client.last_refusal = Some(format!("{breakpoint:x?}: {error}"));
                Err(self.refuse_aloud(error))
            }
        }
    }

    fn remove(&mut self, breakpoint: Breakpoint) -> Result<bool, TargetError<VmError>> {
        match self.vm.remove(self.current(), breakpoint) {
            // Removing is idempotent in the protocol.
            Ok(()) | Err(VmError::NoSuchBreakpoint(_)) => Ok(true),
            Err(error) => Err(self.refuse_aloud(error)),
        }
    }
}

impl<A: GdbArch, V: DebugVm<A>> Breakpoints for GuestTarget<'_, A, V> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl<A: GdbArch, V: DebugVm<A>> SwBreakpoint for GuestTarget<'_, A, V> {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.insert(Breakpoint::Software(Gva(addr)))
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.remove(Breakpoint::Software(Gva(addr)))
    }
}

impl<A: GdbArch, V: DebugVm<A>> HwBreakpoint for GuestTarget<'_, A, V> {
    fn add_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.insert(Breakpoint::Hardware(Gva(addr)))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.remove(Breakpoint::Hardware(Gva(addr)))
    }
}

impl<A: GdbArch, V: DebugVm<A>> HwWatchpoint for GuestTarget<'_, A, V> {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.insert(watch(addr, len, kind))
    }

    fn remove_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.remove(watch(addr, len, kind))
    }
}

fn watch(address: u64, length: u64, kind: WatchKind) -> Breakpoint {
    let kind = match kind {
        WatchKind::Write => guest_debug::WatchKind::Write,
        WatchKind::Read => guest_debug::WatchKind::Read,
        WatchKind::ReadWrite => guest_debug::WatchKind::Access,
    };
    Breakpoint::Watch { kind, address: Gva(address), length }
}
