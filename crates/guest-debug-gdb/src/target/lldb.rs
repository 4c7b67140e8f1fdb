//! What lldb asks for beside gdb's packets.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::vm::{DebugVm, VmError};
use gdbstub::common::{Endianness, Pid};
use gdbstub::target::ext::host_info::{HostInfo, HostInfoResponse};
use gdbstub::target::ext::process_info::{ProcessInfo, ProcessInfoResponse};

impl<A: GdbArch, V: DebugVm<A>> HostInfo for GuestTarget<'_, A, V> {
    fn host_info(&self, write_item: &mut dyn FnMut(&HostInfoResponse<'_>)) -> Result<(), VmError> {
        write_item(&HostInfoResponse::Triple(A::TRIPLE));
        write_item(&HostInfoResponse::Endianness(Endianness::Little));
        write_item(&HostInfoResponse::PointerSize(8));
        Ok(())
    }
}

impl<A: GdbArch, V: DebugVm<A>> ProcessInfo for GuestTarget<'_, A, V> {
    fn process_info(&self, write_item: &mut dyn FnMut(&ProcessInfoResponse<'_>)) -> Result<(), VmError> {
        write_item(&ProcessInfoResponse::Pid(Pid::MIN));
        write_item(&ProcessInfoResponse::Triple(A::TRIPLE));
        write_item(&ProcessInfoResponse::Endianness(Endianness::Little));
        write_item(&ProcessInfoResponse::PointerSize(8));
        Ok(())
    }
}
