//! Interrupt controllers and timers of a PC, which KVM has in the kernel.

use super::{at_most, bad, only};
use crate::error::VmError;
use crate::guest::Part;
use serde::{Deserialize, Serialize};

/// Mode of a counter that nobody has set yet, as KVM has it.
const NO_MODE: u8 = 0xff;
/// Pins of the IOAPIC.
const PINS: usize = 24;

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Devices {
    /// The 8259 interrupt controllers, master and slave.
    pub pics: [PicState; 2],
    /// The IOAPIC.
    pub ioapic: IoApicState,
    /// The 8254 timer.
    pub pit: PitState,
    /// Nanoseconds on the guest's kvmclock (KVM_GET_CLOCK). It stands still while the guest is on its way.
    pub clock: u64,
}

/// `struct kvm_pic_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the kernel, which names them as the 8259's data sheet does")]
pub struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// `struct kvm_ioapic_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IoApicState {
    /// Its physical address.
    pub base_address: u64,
    /// The register that the data window shows.
    pub ioregsel: u32,
    /// Its id.
    pub id: u32,
    /// Interrupts that wait, one bit for each pin.
    pub irr: u32,
    /// The redirection table.
    pub redirtbl: [u64; PINS],
}

/// `struct kvm_pit_state2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PitState {
    /// Its counters.
    pub channels: [PitChannelState; 3],
    /// KVM_PIT_FLAGS_...
    pub flags: u32,
}

/// `struct kvm_pit_channel_state` without the time at which the counter was loaded: KVM takes that of the restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the kernel, which names them as the 8254's data sheet does")]
pub struct PitChannelState {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
}

impl Part for Devices {
    fn check(&self, _: &str) -> Result<(), VmError> {
        for (index, pic) in self.pics.iter().enumerate() {
            pic.check(&format!("pics[{index}]"))?;
        }
        at_most("ioapic", "id", self.ioapic.id, 15_u8)?;
        only("ioapic", "irr", self.ioapic.irr, (1 << PINS) - 1)?;
        for (index, channel) in self.pit.channels.iter().enumerate() {
            channel.check(&format!("pit.channels[{index}]"))?;
        }
        // KVM_PIT_FLAGS_HPET_LEGACY and KVM_PIT_FLAGS_SPEAKER_DATA_ON.
        only("pit", "flags", self.pit.flags, 3)
    }
}

impl PicState {
    fn check(&self, path: &str) -> Result<(), VmError> {
        let limits: [(_, u8, u8); 9] = [
            ("priority_add", self.priority_add, 7),
            ("read_reg_select", self.read_reg_select, 1),
            ("poll", self.poll, 1),
            ("special_mask", self.special_mask, 1),
            ("init_state", self.init_state, 3),
            ("auto_eoi", self.auto_eoi, 1),
            ("rotate_on_auto_eoi", self.rotate_on_auto_eoi, 1),
            ("special_fully_nested_mode", self.special_fully_nested_mode, 1),
            ("init4", self.init4, 1),
        ];
        limits.into_iter().try_for_each(|(name, value, most)| at_most(path, name, value, most))
    }
}

impl PitChannelState {
    fn check(&self, path: &str) -> Result<(), VmError> {
        at_most(path, "count", self.count, 1_u32 << 16)?;
        if self.mode > 5 && self.mode != NO_MODE {
            return Err(bad(format!("{path}.mode"), self.mode, format!("0 to 5, or {NO_MODE}")));
        }
        let limits: [(_, u8, u8); 7] = [
            ("count_latched", self.count_latched, 4),
            ("status_latched", self.status_latched, 1),
            ("read_state", self.read_state, 4),
            ("write_state", self.write_state, 4),
            ("rw_mode", self.rw_mode, 4),
            ("bcd", self.bcd, 1),
            ("gate", self.gate, 1),
        ];
        limits.into_iter().try_for_each(|(name, value, most)| at_most(path, name, value, most))
    }
}
