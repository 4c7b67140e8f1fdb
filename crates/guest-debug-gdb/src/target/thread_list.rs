//! `qXfer:threads:read`: all threads in one answer, which gdb wants at every stop.

use super::GuestTarget;
use crate::description::GdbArch;
use crate::vm::{DebugVm, VmError};
use crate::vm_thread::Tid;

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// The list, with thread ids as `format` writes them. Each thread's text is that of `qThreadExtraInfo`, which gdb does
    /// not send to a server that has this.
    pub(crate) fn thread_list(&self, format: impl Fn(Tid) -> String) -> Result<String, VmError> {
        let mut xml = "<threads>".to_owned();
        for (vcpu, state) in self.threads()? {
            let (id, text) = (format(Tid::of(vcpu)), self.describe_state(vcpu, state));
            xml += &format!("<thread id=\"{id}\">{text}</thread>");
        }
        Ok(xml + "</threads>")
    }
}
