//! A vCPU whose every exit the test writes, on the test's own thread. It executes nothing.

#![expect(clippy::unwrap_used, reason = "test support")]

use super::fake::*;
use guest_debug::arm64::{Pstate, Reg, SysReg};
use guest_debug::{
    DebugConfig, DebugExit, DebugSession, DebugVcpu, Entry, GuestRam, RamError, VcpuDebugger, VcpuError, VcpuId,
    VmHost, Wait,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Exits as KVM reports them.
pub const STEPPED: DebugExit = DebugExit { syndrome: 0xca00_0022, far: 0 };
pub const OUR_BRK: DebugExit = DebugExit { syndrome: 0xf200_67db, far: 0 };
/// Hardware breakpoint, from a lower level.
pub const AT_BREAKPOINT: DebugExit = DebugExit { syndrome: 0xc200_0022, far: 0 };

/// Guest memory that remembers the longest buffer anybody brought.
pub struct Recording {
    pub ram: Arc<GuestMemoryMmap>,
    pub longest: AtomicUsize,
}

impl GuestRam for Recording {
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        self.longest.fetch_max(data.len(), Ordering::Relaxed);
        GuestRam::read(&self.ram, address, data)
    }

    fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), RamError> {
        GuestRam::write(&self.ram, address, data)
    }
}

/// A session with one vCPU that does what the test says, on the test's own thread.
pub struct Script {
    pub session: Arc<DebugSession>,
    pub vcpu: Arc<Plain>,
    pub ram: Arc<Recording>,
}

#[derive(Default)]
pub struct Plain {
    regs: Mutex<BTreeMap<Reg, u64>>,
    pub config: Mutex<DebugConfig>,
    pub kicked: AtomicBool,
}

impl DebugVcpu for Plain {
    fn set_guest_debug(&self, config: &DebugConfig) -> Result<(), VcpuError> {
        *self.config.lock().unwrap() = config.clone();
        Ok(())
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let bytes = self.regs.lock().unwrap().get(&reg).copied().unwrap_or(0).to_le_bytes();
        value.copy_from_slice(&bytes[..value.len()]);
        Ok(())
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        self.regs.lock().unwrap().insert(reg, u64::from_le_bytes(bytes));
        Ok(())
    }
}

struct PlainHost(Arc<Plain>);

impl VmHost for PlainHost {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        (id == V0).then(|| self.0.clone() as _)
    }

    fn kick(&self, _: VcpuId) {
        self.0.kicked.store(true, Ordering::SeqCst);
    }
}

impl Script {
    pub fn new(code: &[u32]) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 1 << 20)]).unwrap());
        for (index, word) in (0..).zip(code) {
            memory.write_obj(*word, GuestAddress(RAM + index * 4)).unwrap();
        }
        let ram = Arc::new(Recording { ram: memory, longest: AtomicUsize::new(0) });
        let session = DebugSession::new(1, CAPS, ram.clone(), true).unwrap();
        let vcpu = Arc::new(Plain::default());
        for (reg, value) in [
            (Reg::Pc, RAM),
            (Reg::Pstate, Pstate::EL1H),
            (Reg::Sys(SysReg::VBAR_EL1), VBAR),
            (Reg::Sys(SysReg::ID_AA64MMFR0_EL1), 2),
        ] {
            vcpu.set_u64(reg, value).unwrap();
        }
        session.set_host(Box::new(PlainHost(vcpu.clone()))).unwrap();
        Self { session, vcpu, ram }
    }

    pub fn get(&self, reg: Reg) -> u64 {
        self.vcpu.get_u64(reg).unwrap()
    }

    pub fn set(&self, reg: Reg, value: u64) {
        self.vcpu.set_u64(reg, value).unwrap();
    }

    pub fn enter(&self, debugger: &mut VcpuDebugger) {
        assert_eq!(debugger.wait(), Wait::Run);
        assert_eq!(debugger.before_run(&*self.vcpu).unwrap(), Entry::Run);
    }
}
