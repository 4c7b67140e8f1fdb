//! A vCPU that interprets a handful of x86_64 instructions without paging, in 64-bit mode and in segments with a base, so that
//! a session's logic can be tested on any host. It shows our idea of KVM; the KVM tests show KVM.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test support")]

mod cpu;
mod names;

use cpu::Exit;
pub use cpu::FakeVcpu;
pub use names::*;

use guest_debug::state::GuestDebugState;
use guest_debug::x86_64::Reg;
use guest_debug::{
    Breakpoint, DebugCaps, DebugSession, DebugVcpu, Entry, Restore, SessionError, StopEvent, StopReason, VcpuDebugger,
    VcpuId, VcpuState, VmHost, Wait, X86_64,
};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A VM of fake vCPUs, their threads running.
pub struct Vm {
    pub session: Arc<DebugSession<X86_64>>,
    pub vcpus: Vec<Arc<FakeVcpu>>,
    pub ram: Arc<GuestMemoryMmap>,
    threads: Vec<JoinHandle<()>>,
}

struct Host(Vec<Arc<FakeVcpu>>);

impl VmHost<X86_64> for Host {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu<X86_64>>> {
        self.0.get(id.0 as usize).map(|vcpu| vcpu.clone() as _)
    }

    fn kick(&self, id: VcpuId) {
        self.0[id.0 as usize].kick();
    }
}

/// With `KVM_GUESTDBG_BLOCKIRQ`.
pub const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 4, hw_wps: 4, control_flags: 0x1f_0003 };
/// Linux before 5.16.
pub const OLD: DebugCaps = DebugCaps { control_flags: 0, ..CAPS };

impl Vm {
    /// `count` vCPUs about to execute `code` at [`RAM`], attached to and stopped.
    pub fn new(count: u32, caps: DebugCaps, code: &[&[u8]]) -> Self {
        let ram = memory();
        let vm_ram = Arc::new(ram.clone());
        let session = DebugSession::new(count, caps, vm_ram, true).unwrap();
        let vcpus: Vec<_> = (0..count).map(|_| Arc::new(FakeVcpu::new(ram.clone()))).collect();
        session.set_host(Box::new(Host(vcpus.clone()))).unwrap();
        let vm = Self { session, vcpus, ram, threads: Vec::new() };
        vm.load(RAM, code);
        vm.load(ENTRY, &[NOP, SPIN]);
        for vector in 0..=255 {
            vm.gate(vector);
            let drops = if vector == 14 { DROP } else { NOP };
            vm.load(handler(vector), &[drops, IRETQ]);
        }
        let vm = vm.run();
        vm.session.attach().unwrap();
        vm
    }

    /// A VM with the memory and registers that this one has now, and a session from `state`. Its threads do not run yet.
    pub fn restored(&self, state: &GuestDebugState, caps: DebugCaps) -> Result<Self, SessionError> {
        let ram = memory();
        let mut image = vec![0; RAM_SIZE];
        self.ram.read_slice(&mut image, GuestAddress(RAM)).unwrap();
        ram.write_slice(&image, GuestAddress(RAM)).unwrap();
        let vm_ram = Arc::new(ram.clone());
        let session = DebugSession::from_state(state, self.vcpus.len() as u32, caps, vm_ram, Restore::Arm)?;
        let vcpus: Vec<_> = self.vcpus.iter().map(|vcpu| Arc::new(vcpu.moved(ram.clone()))).collect();
        session.set_host(Box::new(Host(vcpus.clone()))).unwrap();
        Ok(Self { session, vcpus, ram, threads: Vec::new() })
    }

    /// Starts the threads.
    pub fn run(mut self) -> Self {
        for (id, vcpu) in (0..).map(VcpuId).zip(self.vcpus.clone()) {
            let debugger = self.session.vcpu_thread(id).unwrap();
            self.threads.push(std::thread::spawn(move || run(debugger, &vcpu)));
        }
        while self.session.vcpu_states().contains(&VcpuState::Offline) {
            std::thread::yield_now();
        }
        self
    }

    /// An interrupt gate.
    fn gate(&self, vector: u8) {
        let at = handler(vector);
        let low = at & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        self.ram.write_obj([low, at >> 32], GuestAddress(IDT + u64::from(vector) * 16)).unwrap();
    }

    pub fn load(&self, at: u64, code: &[&[u8]]) {
        self.ram.write_slice(&code.concat(), GuestAddress(at)).unwrap();
    }

    pub fn byte(&self, at: u64) -> u8 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    pub fn word(&self, at: u64) -> u64 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    pub fn get(&self, reg: Reg) -> u64 {
        self.vcpus[0].get_u64(reg).unwrap()
    }

    pub fn set(&self, reg: Reg, value: u64) {
        self.vcpus[0].set_u64(reg, value).unwrap();
    }

    pub fn insert(&self, breakpoint: Breakpoint) {
        self.session.insert(V0, breakpoint).unwrap();
    }

    /// Lets everything run, until something stops.
    pub fn go(&self) -> StopReason {
        self.session.resume(&[]).unwrap();
        self.stop().reason
    }

    /// Steps vCPU 0 alone, and answers where it is then.
    pub fn step(&self) -> u64 {
        self.session.resume(&self.only(guest_debug::ResumeAction::Step)).unwrap();
        assert_eq!(self.stop(), StopEvent { vcpu: V0, reason: StopReason::Step });
        self.get(Reg::Rip)
    }

    pub fn only(&self, action: guest_debug::ResumeAction) -> Vec<(VcpuId, guest_debug::ResumeAction)> {
        let others = (1..self.vcpus.len() as u32).map(|id| (VcpuId(id), guest_debug::ResumeAction::Stay));
        std::iter::once((V0, action)).chain(others).collect()
    }

    /// The next stop, which must come.
    pub fn stop(&self) -> StopEvent {
        for _ in 0..10_000 {
            if let Some(event) = self.session.take_stop().unwrap() {
                return event;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the VM did not stop");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.session.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap())
}

fn run(mut debugger: VcpuDebugger<X86_64>, vcpu: &FakeVcpu) {
    while debugger.wait() == Wait::Run {
        if debugger.before_run(vcpu).unwrap() == Entry::Again {
            continue;
        }
        if let Exit::Debug(exit) = vcpu.run() {
            debugger.on_debug_exit(vcpu, exit).unwrap();
        }
    }
}
