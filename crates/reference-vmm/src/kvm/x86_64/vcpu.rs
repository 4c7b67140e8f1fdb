//! A vCPU: how it is made, and its state, read out of KVM and written into a new vCPU.
//!
//! The guest's own debug registers are part of it. KVM keeps those apart from the debugger's: KVM_GET_DEBUGREGS answers what
//! the guest has in DR0 to DR7, whatever KVM_SET_GUEST_DEBUG was told (kernel: arch/x86/kvm/x86.c, `vcpu->arch.db` and
//! `eff_db`). RFLAGS come without the debugger's TF.

use super::features::{Features, Kept};
use super::{convert, kvm_error, msrs};
use crate::error::VmError;
use crate::kvm::Vcpu;
use crate::pc::EntryPoint;
use crate::pc::layout::{CODE, DATA, GDT, PML4, STACK};
use crate::state::x86_64::{MsrState, VcpuState};
use kvm_bindings::{kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

/// CR0: PE, ET, PG.
const CR0: u64 = 1 | 1 << 4 | 1 << 31;
/// CR4: PAE.
const CR4: u64 = 1 << 5;
/// IA32_EFER: LME and LMA.
const EFER: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 2;

/// What a vCPU has beside its descriptor.
#[derive(Debug)]
pub(in crate::kvm) struct Parts {
    kept: Kept,
    /// Its state after power-on.
    new: VcpuState,
}

impl Vcpu {
    /// Makes a vCPU. All but the first wait for the first one's INIT and SIPI.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] with the KVM call that failed, [`VmError::State`] with what this host does not have.
    pub(in crate::kvm) fn new(vm: &VmFd, index: u32, features: &Features) -> Result<Self, VmError> {
        let fd = vm.create_vcpu(index.into()).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        features.give(&fd, index)?;
        let kept = features.kept().clone();
        let mut new = read(&fd, &kept)?;
        // A reset leaves the counter alone: they go on, all alike.
        new.msrs.retain(|msr| msr.index != msrs::TSC);
        Ok(Self::with(index, fd, Parts { kept, new }))
    }

    /// All registers as after power-on.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub(in crate::kvm) fn reset(&self) -> Result<(), VmError> {
        let refused = write(&self.lock(), &self.parts.kept, &self.parts.new).map_err(|error| self.refusal(error))?;
        for MsrState { index, value } in refused {
            log::warn!("vCPU {}: MSR {index:#x} does not become {value:#x} again", self.index());
        }
        Ok(())
    }

    /// Sets where the vCPU starts: in 64-bit mode, every address its own, interrupts off.
    pub(super) fn set_entry(&self, entry: EntryPoint) -> Result<(), VmError> {
        let fd = self.lock();
        let mut sregs = fd.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
        let flat = kvm_segment { limit: u32::MAX, s: 1, present: 1, g: 1, ..kvm_segment::default() };
        let data = kvm_segment { selector: DATA, type_: 3, db: 1, ..flat };
        sregs.cs = kvm_segment { selector: CODE, type_: 11, l: 1, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x1f);
        (sregs.idt.base, sregs.idt.limit) = (0, 0);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4, EFER);
        fd.set_sregs(&sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
        let EntryPoint { rip, rsi } = entry;
        let regs = kvm_regs { rip, rsi, rsp: STACK, rbp: STACK, rflags: RFLAGS, ..kvm_regs::default() };
        fd.set_regs(&regs).map_err(kvm_error("KVM_SET_REGS"))
    }

    /// Everything that a guest can have changed. The vCPU is out of KVM_RUN, and has no device access to complete.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub fn state(&self) -> Result<VcpuState, VmError> {
        read(&self.lock(), &self.parts.kept)
    }

    /// The inverse, on a vCPU that was made with the same features. Memory has its contents, and tables for PAE paging are
    /// read from there.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] with the registers that this host can't have so, [`VmError::Os`].
    pub fn set_state(&self, state: &VcpuState) -> Result<(), VmError> {
        let refused = write(&self.lock(), &self.parts.kept, state).map_err(|error| self.refusal(error))?;
        match refused.first() {
            None => Ok(()),
            Some(MsrState { index, value }) => Err(VmError::State {
                field: format!("vcpus[{}].msrs, index {index:#x}", self.index()),
                value: format!("{value:#x}"),
                acceptable: "what KVM lets an MSR be on this host".to_owned(),
            }),
        }
    }

    fn refusal(&self, error: WriteError) -> VmError {
        match error {
            WriteError::Kvm { part, source } => VmError::State {
                field: format!("vcpus[{}].{part}", self.index()),
                value: "refused by KVM".to_owned(),
                acceptable: format!("what a vCPU can have on this host ({source})"),
            },
            WriteError::Other(error) => error,
        }
    }
}

/// A part of a vCPU's state that KVM does not take.
enum WriteError {
    Kvm { part: &'static str, source: errno::Error },
    Other(VmError),
}

fn refused(part: &'static str) -> impl FnOnce(errno::Error) -> WriteError {
    move |source| WriteError::Kvm { part, source }
}

fn read(fd: &VcpuFd, kept: &Kept) -> Result<VcpuState, VmError> {
    // First: KVM has the local APIC take an INIT or SIPI that waits, and both are changed by it.
    let mp_state = fd.get_mp_state().map_err(kvm_error("KVM_GET_MP_STATE"))?.mp_state;
    let xsave = fd.get_xsave().map_err(kvm_error("KVM_GET_XSAVE"))?;
    let lapic = fd.get_lapic().map_err(kvm_error("KVM_GET_LAPIC"))?;
    let xcrs = if kept.xcrs { convert::xcrs(&fd.get_xcrs().map_err(kvm_error("KVM_GET_XCRS"))?) } else { Vec::new() };
    Ok(VcpuState {
        mp_state,
        regs: fd.get_regs().map_err(kvm_error("KVM_GET_REGS"))?.into(),
        sregs: fd.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?.into(),
        debug_regs: fd.get_debug_regs().map_err(kvm_error("KVM_GET_DEBUGREGS"))?.into(),
        xcrs,
        xsave: xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect(),
        lapic: lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect(),
        msrs: msrs::read(fd, &kept.msrs)?,
        events: fd.get_vcpu_events().map_err(kvm_error("KVM_GET_VCPU_EVENTS"))?.into(),
    })
}

/// Answers the MSRs that can't have the values that they have in it.
///
/// The order is one of dependencies (kernel: arch/x86/kvm/x86.c and lapic.c). The system registers have the APIC's base, which
/// decides about the layout of its registers; its timer must be in deadline mode before the deadline, an MSR, is set. Writing the
/// integer registers forgets an exception that waits, and the system registers may start the vCPU, so that events and
/// the run state come last.
fn write<'a>(fd: &VcpuFd, kept: &Kept, state: &'a VcpuState) -> Result<Vec<&'a MsrState>, WriteError> {
    fd.set_sregs(&state.sregs.into()).map_err(refused("sregs"))?;
    fd.set_regs(&state.regs.into()).map_err(refused("regs"))?;
    set_xsave(fd, &state.xsave).map_err(refused("xsave"))?;
    if kept.xcrs || !state.xcrs.is_empty() {
        fd.set_xcrs(&convert::kvm_xcrs(&state.xcrs)).map_err(refused("xcrs"))?;
    }
    fd.set_debug_regs(&state.debug_regs.into()).map_err(refused("debug_regs"))?;
    let mut lapic = kvm_lapic_state::default();
    lapic.regs.iter_mut().zip(&state.lapic).for_each(|(to, from)| *to = from.cast_signed());
    fd.set_lapic(&lapic).map_err(refused("lapic"))?;
    let refused_msrs = msrs::write(fd, &state.msrs).map_err(WriteError::Other)?;
    fd.set_vcpu_events(&state.events.into()).map_err(refused("events"))?;
    fd.set_mp_state(kvm_mp_state { mp_state: state.mp_state }).map_err(refused("mp_state"))?;
    Ok(refused_msrs)
}

#[expect(unsafe_code, reason = "KVM_SET_XSAVE has no safe call, as its length depends on what was enabled")]
fn set_xsave(fd: &VcpuFd, bytes: &[u8]) -> Result<(), errno::Error> {
    let mut xsave = kvm_xsave::default();
    let words = bytes.chunks_exact(4).filter_map(|bytes| bytes.first_chunk()).map(|word| u32::from_le_bytes(*word));
    xsave.region.iter_mut().zip(words).for_each(|(to, word)| *to = word);
    // SAFETY: KVM reads more than a `kvm_xsave` only where the process has asked for dynamic features (AMX) with
    // arch_prctl, which this one does not.
    unsafe { fd.set_xsave(&xsave) }
}
