//! A vCPU's registers as KVM has them, and as they are saved.

use super::chips::same_fields;
use crate::state::x86_64::{
    DebugRegisters, EventState, ExceptionState, GeneralRegisters, InterruptState, NmiState, SegmentState, SmiState,
    SystemRegisters, TableState, XcrState,
};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    KVM_VCPUEVENT_VALID_SMM, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs,
};

same_fields!(
    GeneralRegisters,
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
);

impl From<kvm_sregs> for SystemRegisters {
    /// Without `interrupt_bitmap`: the interrupt is among the events, too.
    fn from(sregs: kvm_sregs) -> Self {
        Self {
            cs: sregs.cs.into(),
            ds: sregs.ds.into(),
            es: sregs.es.into(),
            fs: sregs.fs.into(),
            gs: sregs.gs.into(),
            ss: sregs.ss.into(),
            tr: sregs.tr.into(),
            ldt: sregs.ldt.into(),
            gdt: sregs.gdt.into(),
            idt: sregs.idt.into(),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
        }
    }
}

impl From<SystemRegisters> for kvm_sregs {
    fn from(sregs: SystemRegisters) -> Self {
        Self {
            cs: sregs.cs.into(),
            ds: sregs.ds.into(),
            es: sregs.es.into(),
            fs: sregs.fs.into(),
            gs: sregs.gs.into(),
            ss: sregs.ss.into(),
            tr: sregs.tr.into(),
            ldt: sregs.ldt.into(),
            gdt: sregs.gdt.into(),
            idt: sregs.idt.into(),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            interrupt_bitmap: [0; 4],
        }
    }
}

impl From<kvm_dtable> for TableState {
    fn from(table: kvm_dtable) -> Self {
        Self { base: table.base, limit: table.limit }
    }
}

impl From<TableState> for kvm_dtable {
    fn from(TableState { base, limit }: TableState) -> Self {
        Self { base, limit, ..Self::default() }
    }
}

impl From<kvm_segment> for SegmentState {
    fn from(segment: kvm_segment) -> Self {
        let fields = [
            (segment.type_, 0),
            (segment.s, 4),
            (segment.dpl, 5),
            (segment.present, 7),
            (segment.avl, 12),
            (segment.l, 13),
            (segment.db, 14),
            (segment.g, 15),
            (segment.unusable, 16),
        ];
        let access = fields.into_iter().fold(0, |bits, (field, shift)| bits | u32::from(field) << shift);
        Self { selector: segment.selector, base: segment.base, limit: segment.limit, access }
    }
}

impl From<SegmentState> for kvm_segment {
    fn from(SegmentState { selector, base, limit, access }: SegmentState) -> Self {
        let field = |shift: u32, bits: u32| (access >> shift & ((1 << bits) - 1)) as u8;
        Self {
            base,
            limit,
            selector,
            type_: field(0, 4),
            s: field(4, 1),
            dpl: field(5, 2),
            present: field(7, 1),
            avl: field(12, 1),
            l: field(13, 1),
            db: field(14, 1),
            g: field(15, 1),
            unusable: field(16, 1),
            padding: 0,
        }
    }
}

impl From<kvm_debugregs> for DebugRegisters {
    fn from(kvm_debugregs { db, dr6, dr7, .. }: kvm_debugregs) -> Self {
        Self { db, dr6, dr7 }
    }
}

impl From<DebugRegisters> for kvm_debugregs {
    fn from(DebugRegisters { db, dr6, dr7 }: DebugRegisters) -> Self {
        Self { db, dr6, dr7, ..Self::default() }
    }
}

pub(super) fn xcrs(xcrs: &kvm_xcrs) -> Vec<XcrState> {
    let list = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    list.map(|&kvm_xcr { xcr, value, .. }| XcrState { xcr, value }).collect()
}

/// No more than there is room for.
pub(super) fn kvm_xcrs(state: &[XcrState]) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs::default();
    for (to, &XcrState { xcr, value }) in xcrs.xcrs.iter_mut().zip(state) {
        *to = kvm_xcr { xcr, value, ..kvm_xcr::default() };
        xcrs.nr_xcrs += 1;
    }
    xcrs
}

impl From<kvm_vcpu_events> for EventState {
    fn from(events: kvm_vcpu_events) -> Self {
        let kvm_vcpu_events { exception, interrupt, nmi, smi, .. } = events;
        // Without KVM_CAP_EXCEPTION_PAYLOAD, which this VMM does not ask for, KVM tells one that is pending as injected.
        let taken = exception.injected != 0;
        Self {
            exception: taken.then_some(ExceptionState {
                vector: exception.nr,
                error_code: (exception.has_error_code != 0).then_some(exception.error_code),
            }),
            interrupt: (interrupt.injected != 0)
                .then_some(InterruptState { vector: interrupt.nr, soft: interrupt.soft != 0 }),
            shadow: interrupt.shadow,
            nmi: NmiState { injected: nmi.injected != 0, pending: nmi.pending, masked: nmi.masked != 0 },
            sipi_vector: events.sipi_vector,
            smi: (events.flags & KVM_VCPUEVENT_VALID_SMM != 0).then_some(SmiState {
                smm: smi.smm != 0,
                pending: smi.pending != 0,
                smm_inside_nmi: smi.smm_inside_nmi != 0,
                latched_init: smi.latched_init != 0,
            }),
        }
    }
}

impl From<EventState> for kvm_vcpu_events {
    fn from(state: EventState) -> Self {
        let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
        let mut events = Self { flags, ..Self::default() };
        if let Some(ExceptionState { vector, error_code }) = state.exception {
            (events.exception.injected, events.exception.nr) = (1, vector);
            events.exception.has_error_code = error_code.is_some().into();
            events.exception.error_code = error_code.unwrap_or(0);
        }
        if let Some(InterruptState { vector, soft }) = state.interrupt {
            (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, soft.into());
        }
        events.interrupt.shadow = state.shadow;
        let NmiState { injected, pending, masked } = state.nmi;
        (events.nmi.injected, events.nmi.pending, events.nmi.masked) = (injected.into(), pending, masked.into());
        events.sipi_vector = state.sipi_vector;
        if let Some(SmiState { smm, pending, smm_inside_nmi, latched_init }) = state.smi {
            events.flags |= KVM_VCPUEVENT_VALID_SMM;
            (events.smi.smm, events.smi.pending) = (smm.into(), pending.into());
            (events.smi.smm_inside_nmi, events.smi.latched_init) = (smm_inside_nmi.into(), latched_init.into());
        }
        events
    }
}
