//! What lldb asks for beside gdb's packets.

use super::GuestTarget;
use crate::vm::{DebugVm, VmError};
use gdbstub::common::{Endianness, Pid};
use gdbstub::target::ext::host_info::{HostInfo, HostInfoResponse};
use gdbstub::target::ext::process_info::{ProcessInfo, ProcessInfoResponse};

/// No operating system: the guest's is its own business, and lldb would look for a dynamic linker.
const TRIPLE: &str = "aarch64-unknown-unknown";

impl<V: DebugVm> HostInfo for GuestTarget<'_, V> {
    fn host_info(&self, write_item: &mut dyn FnMut(&HostInfoResponse<'_>)) -> Result<(), VmError> {
        write_item(&HostInfoResponse::Triple(TRIPLE));
        write_item(&HostInfoResponse::Endianness(Endianness::Little));
        write_item(&HostInfoResponse::PointerSize(8));
        Ok(())
    }
}

impl<V: DebugVm> ProcessInfo for GuestTarget<'_, V> {
    fn process_info(&self, write_item: &mut dyn FnMut(&ProcessInfoResponse<'_>)) -> Result<(), VmError> {
        write_item(&ProcessInfoResponse::Pid(Pid::MIN));
        write_item(&ProcessInfoResponse::Triple(TRIPLE));
        write_item(&ProcessInfoResponse::Endianness(Endianness::Little));
        write_item(&ProcessInfoResponse::PointerSize(8));
        Ok(())
    }
}
