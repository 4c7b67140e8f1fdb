//! Interrupt controllers and timers in the kernel: their state, read and written.

use super::kvm_error;
use crate::error::VmError;
use crate::kvm::Vcpu;
use crate::state::x86_64::{Devices, IoApicState, PicState, PitChannelState, PitState};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_ioapic_state, kvm_irqchip,
    kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use std::sync::Arc;

const PICS: [u32; 2] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE];

/// The chips of a VM, which were made with it.
#[derive(Debug)]
pub(in crate::kvm) struct Chips;

impl Chips {
    pub(in crate::kvm) fn new(_: &VmFd, _: &[Arc<Vcpu>]) -> Result<Self, VmError> {
        Ok(Self)
    }

    /// Reads all state.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub(in crate::kvm) fn state(&self, vm: &VmFd) -> Result<Devices, VmError> {
        let [master, slave] = PICS.map(|id| get_chip(vm, id).map(|chip| pic(&chip)));
        let pit = vm.get_pit2().map_err(kvm_error("KVM_GET_PIT2"))?;
        Ok(Devices {
            pics: [master?, slave?],
            ioapic: ioapic(&get_chip(vm, KVM_IRQCHIP_IOAPIC)?),
            pit: PitState { channels: pit.channels.map(PitChannelState::from), flags: pit.flags },
            clock: vm.get_clock().map_err(kvm_error("KVM_GET_CLOCK"))?.clock,
        })
    }

    /// Writes all state. The vCPUs, whom an interrupt that waits in the IOAPIC is delivered to, have theirs.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`].
    pub(in crate::kvm) fn set_state(&self, vm: &VmFd, state: &Devices) -> Result<(), VmError> {
        let clock = kvm_clock_data { clock: state.clock, ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(kvm_error("KVM_SET_CLOCK"))?;
        let pit = kvm_pit_state2 {
            channels: state.pit.channels.map(kvm_pit_channel_state::from),
            flags: state.pit.flags,
            ..kvm_pit_state2::default()
        };
        vm.set_pit2(&pit).map_err(kvm_error("KVM_SET_PIT2"))?;
        for (chip_id, pic) in PICS.into_iter().zip(state.pics) {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            chip.chip.pic = pic.into();
            vm.set_irqchip(&chip).map_err(kvm_error("KVM_SET_IRQCHIP (PIC)"))?;
        }
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..kvm_irqchip::default() };
        chip.chip.ioapic = state.ioapic.into();
        vm.set_irqchip(&chip).map_err(kvm_error("KVM_SET_IRQCHIP (IOAPIC)"))
    }
}

fn get_chip(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, VmError> {
    let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
    vm.get_irqchip(&mut chip).map_err(kvm_error("KVM_GET_IRQCHIP"))?;
    Ok(chip)
}

#[expect(unsafe_code, reason = "reads a union")]
fn pic(chip: &kvm_irqchip) -> PicState {
    // SAFETY: every value of these bytes is one of the structure.
    unsafe { chip.chip.pic }.into()
}

#[expect(unsafe_code, reason = "reads a union")]
fn ioapic(chip: &kvm_irqchip) -> IoApicState {
    // SAFETY: every value of these bytes is one of the structure.
    let kvm_ioapic_state { base_address, ioregsel, id, irr, redirtbl, pad: _ } = unsafe { chip.chip.ioapic };
    // SAFETY: the same, of an entry's bits and fields.
    let redirtbl = redirtbl.map(|entry| unsafe { entry.bits });
    IoApicState { base_address, ioregsel, id, irr, redirtbl }
}

impl From<IoApicState> for kvm_ioapic_state {
    fn from(state: IoApicState) -> Self {
        let IoApicState { base_address, ioregsel, id, irr, redirtbl } = state;
        let mut chip = Self { base_address, ioregsel, id, irr, ..Self::default() };
        chip.redirtbl.iter_mut().zip(redirtbl).for_each(|(entry, bits)| entry.bits = bits);
        chip
    }
}

/// Conversions between two structures whose fields have the same names; `..` for what only KVM's has.
macro_rules! same_fields {
    ($ours:ident, $kvm:ident { $($field:ident),* $(,)? } $(, $kvms_own:ident)?) => {
        impl From<$kvm> for $ours {
            fn from($kvm { $($field,)* $($kvms_own: _)? }: $kvm) -> Self {
                Self { $($field),* }
            }
        }

        impl From<$ours> for $kvm {
            fn from($ours { $($field),* }: $ours) -> Self {
                Self { $($field,)* $($kvms_own: Default::default())? }
            }
        }
    };
}
pub(super) use same_fields;

same_fields!(
    PicState,
    kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    }
);

// KVM loads the counters when they are written, and takes the time itself.
same_fields!(
    PitChannelState,
    kvm_pit_channel_state {
        count,
        latched_count,
        count_latched,
        status_latched,
        status,
        read_state,
        write_state,
        write_latch,
        rw_mode,
        mode,
        bcd,
        gate,
    },
    count_load_time
);
