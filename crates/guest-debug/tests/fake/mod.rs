//! A vCPU that interprets a handful of A64 instructions with the MMU off, so that a session's logic can be
//! tested on any host. It shows our idea of KVM; the KVM tests show KVM.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test support")]

#[allow(dead_code, reason = "not every suite uses all of them")]
mod names;
#[allow(dead_code, reason = "most suites save nothing")]
mod saved;

#[allow(unused_imports, reason = "the gdb server's suite uses none of them")]
pub use names::*;
#[allow(unused_imports, reason = "most suites save nothing")]
pub use saved::*;

use guest_debug::arm64::{Pstate, Reg, SysReg};
use guest_debug::state::GuestDebugState;
use guest_debug::{
    DebugCaps, DebugConfig, DebugExit, DebugSession, DebugVcpu, Entry, Restore, SessionError, StopEvent, VcpuDebugger,
    VcpuError, VcpuId, VcpuState, VmHost, Wait,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Memory that notes every page that is written.
pub type Ram = GuestMemoryMmap<AtomicBitmap>;

pub const RAM: u64 = 0x8000_0000;
pub const VBAR: u64 = RAM + 0x8000;

pub const NOP: u32 = 0xd503_201f;
pub const WFI: u32 = 0xd503_207f;
pub const SVC: u32 = 0xd400_0001;
pub const ERET: u32 = 0xd69f_03e0;
#[allow(dead_code, reason = "not every suite has BRKs of the guest's")]
pub const BRK_7: u32 = 0xd420_00e0;
/// MSR DAIFSet, #2
pub const DAIFSET_I: u32 = 0xd503_42df;
/// MSR DAIFClr, #2
pub const DAIFCLR_I: u32 = 0xd503_42ff;
/// MRS X3, DAIF
pub const MRS_X3_DAIF: u32 = 0xd53b_4223;
/// MSR DAIF, X3
pub const MSR_DAIF_X3: u32 = 0xd51b_4223;
/// ADD X1, X1, #1
pub const COUNT: u32 = 0x9100_0421;
/// STR X1, [X0]
pub const STR_X1_X0: u32 = 0xf900_0001;

/// `B` to `offset` bytes from itself.
pub const fn branch(offset: i32) -> u32 {
    0x1400_0000 | ((offset / 4) as u32 & 0x03ff_ffff)
}

#[derive(Default)]
struct State {
    regs: BTreeMap<Reg, u64>,
    config: DebugConfig,
}

pub struct FakeVcpu {
    state: Mutex<State>,
    ram: Arc<Ram>,
    kick: Mutex<bool>,
    kicked: Condvar,
    pub irq_pending: AtomicBool,
    pub config_calls: AtomicUsize,
    pub register_reads: AtomicUsize,
    pub entries: AtomicUsize,
    pub kicks: AtomicUsize,
}

enum Exit {
    Debug(DebugExit),
    Kicked,
}

impl FakeVcpu {
    fn new(ram: Arc<Ram>) -> Self {
        let mut regs = BTreeMap::new();
        regs.insert(Reg::Pc, RAM);
        regs.insert(Reg::Pstate, Pstate::EL1H);
        regs.insert(Reg::Sys(SysReg::VBAR_EL1), VBAR);
        // 40-bit physical addresses.
        regs.insert(Reg::Sys(SysReg::ID_AA64MMFR0_EL1), 2);
        Self {
            state: Mutex::new(State { regs, config: DebugConfig::disabled() }),
            ram,
            kick: Mutex::new(false),
            kicked: Condvar::new(),
            irq_pending: AtomicBool::new(false),
            config_calls: AtomicUsize::new(0),
            register_reads: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
            kicks: AtomicUsize::new(0),
        }
    }

    /// A vCPU with the registers that this one has, for the other VM.
    #[allow(dead_code, reason = "not every suite moves sessions")]
    fn moved(&self, ram: Arc<Ram>) -> Self {
        let moved = Self::new(ram);
        moved.state.lock().unwrap().regs = self.state.lock().unwrap().regs.clone();
        moved
    }

    #[allow(dead_code, reason = "not every suite looks at it")]
    pub fn config(&self) -> DebugConfig {
        self.state.lock().unwrap().config.clone()
    }

    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
        *self.kick.lock().unwrap() = true;
        self.kicked.notify_all();
    }

    fn run(&self) -> Exit {
        self.entries.fetch_add(1, Ordering::Relaxed);
        loop {
            if std::mem::take(&mut *self.kick.lock().unwrap()) {
                return Exit::Kicked;
            }
            if let Some(exit) = self.step() {
                return exit;
            }
        }
    }

    fn step(&self) -> Option<Exit> {
        let mut state = self.state.lock().unwrap();
        let State { regs, config } = &mut *state;
        let pc = regs[&Reg::Pc];
        let pstate = Pstate(regs[&Reg::Pstate]);
        let exit = |ec: u64, iss: u64, far| Some(Exit::Debug(DebugExit { syndrome: ec << 26 | 1 << 25 | iss, far }));
        if self.irq_pending.load(Ordering::Relaxed) && !pstate.irq_masked() {
            take(regs, pc, 0x280);
            return None;
        }
        if config.enabled && config.hw.breakpoints.iter().any(|slot| slot.address == pc) {
            return exit(0x30, 0x22, 0);
        }
        let word: u32 = self.ram.read_obj(GuestAddress(pc)).unwrap();
        let mut next = pc + 4;
        let x1 = regs.get(&Reg::X(1)).copied().unwrap_or(0);
        match word {
            NOP => {}
            COUNT => drop(regs.insert(Reg::X(1), x1 + 1)),
            DAIFSET_I => drop(regs.insert(Reg::Pstate, pstate.with(Pstate::I).0)),
            DAIFCLR_I => drop(regs.insert(Reg::Pstate, pstate.without(Pstate::I).0)),
            MRS_X3_DAIF => drop(regs.insert(Reg::X(3), pstate.0 & Pstate::DAIF)),
            MSR_DAIF_X3 => {
                let new = Pstate(regs.get(&Reg::X(3)).copied().unwrap_or(0));
                regs.insert(Reg::Pstate, pstate.with_bits_of(new, Pstate::DAIF).0);
            }
            STR_X1_X0 => {
                let at = regs.get(&Reg::X(0)).copied().unwrap_or(0);
                let watched = |slot: &guest_debug::arm64::WatchSlot| {
                    let covers = slot.covers();
                    *covers.start() < at + 8 && *covers.end() >= at
                };
                if config.enabled && config.hw.watchpoints.iter().any(watched) {
                    return exit(0x34, 0x62, at);
                }
                self.ram.write_obj(x1, GuestAddress(at)).unwrap();
            }
            SVC => {
                take(regs, pc + 4, 0x200);
                next = VBAR + 0x200;
            }
            ERET => {
                next = regs[&Reg::ElrEl1];
                regs.insert(Reg::Pstate, regs[&Reg::SpsrEl1]);
            }
            WFI => {
                drop(state);
                let guard = self.kick.lock().unwrap();
                drop(self.kicked.wait_while(guard, |kick| !*kick).unwrap());
                return None;
            }
            word if word >> 26 == 0b00_0101 => {
                next = pc.wrapping_add_signed(i64::from((word << 6) as i32 >> 4));
            }
            word if word & 0xffe0_001f == 0xd420_0000 => {
                if config.enabled {
                    return exit(0x3c, u64::from(word >> 5 & 0xffff), 0);
                }
                take(regs, pc, 0x200);
                return None;
            }
            other => panic!("the fake vCPU does not know {other:#x} at {pc:#x}"),
        }
        regs.insert(Reg::Pc, next);
        if config.single_step { exit(0x32, 0x22, 0) } else { None }
    }
}

fn take(regs: &mut BTreeMap<Reg, u64>, elr: u64, offset: u64) {
    regs.insert(Reg::SpsrEl1, regs[&Reg::Pstate]);
    regs.insert(Reg::ElrEl1, elr);
    regs.insert(Reg::Pstate, Pstate::EL1H | Pstate::DAIF);
    regs.insert(Reg::Pc, VBAR + offset);
}

impl DebugVcpu for FakeVcpu {
    fn set_guest_debug(&self, config: &DebugConfig) -> Result<(), VcpuError> {
        self.config_calls.fetch_add(1, Ordering::Relaxed);
        self.state.lock().unwrap().config = config.clone();
        Ok(())
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.register_reads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.state.lock().unwrap().regs.get(&reg).copied().unwrap_or(0).to_le_bytes();
        value.copy_from_slice(&bytes[..value.len()]);
        Ok(())
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        self.state.lock().unwrap().regs.insert(reg, u64::from_le_bytes(bytes));
        Ok(())
    }
}

/// A VM of fake vCPUs, their threads running.
pub struct Vm {
    pub session: Arc<DebugSession>,
    pub vcpus: Vec<Arc<FakeVcpu>>,
    pub ram: Arc<Ram>,
    threads: Vec<JoinHandle<()>>,
}

struct Host(Vec<Arc<FakeVcpu>>);

impl VmHost for Host {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        self.0.get(id.0 as usize).map(|vcpu| vcpu.clone() as _)
    }

    fn kick(&self, id: VcpuId) {
        self.0[id.0 as usize].kick();
    }
}

pub const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0x3_0003 };

impl Vm {
    /// `count` vCPUs about to execute `code` at [`RAM`], held until a client resumes them.
    pub fn new(count: u32, code: &[u32]) -> Self {
        Self::with_caps(count, code, CAPS)
    }

    pub fn with_caps(count: u32, code: &[u32], caps: DebugCaps) -> Self {
        let ram = Arc::new(Ram::from_ranges(&[(GuestAddress(RAM), 1 << 20)]).unwrap());
        let vm_ram: Arc<Ram> = ram.clone();
        let session = DebugSession::new(count, caps, Arc::new(vm_ram), true).unwrap();
        let vcpus: Vec<_> = (0..count).map(|_| Arc::new(FakeVcpu::new(ram.clone()))).collect();
        session.set_host(Box::new(Host(vcpus.clone()))).unwrap();
        let vm = Self { session, vcpus, ram, threads: Vec::new() };
        vm.load(RAM, code);
        // A handler of branches to themselves at every vector.
        for vector in 0..16 {
            vm.load(VBAR + vector * 0x80, &[NOP, ERET]);
        }
        vm
    }

    pub fn load(&self, at: u64, code: &[u32]) {
        for (index, word) in (0..).zip(code) {
            self.ram.write_obj(*word, GuestAddress(at + index * 4)).unwrap();
        }
    }

    #[allow(dead_code, reason = "not every suite wants it")]
    pub fn word(&self, at: u64) -> u32 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    /// Starts the threads and attaches.
    pub fn start(self) -> Self {
        let vm = self.run();
        vm.session.attach().unwrap();
        vm
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

    /// A VM with the memory and registers that this one has now, and a session from `state`. Its threads do not run yet.
    #[allow(dead_code, reason = "not every suite moves sessions")]
    pub fn restored(&self, state: &GuestDebugState, caps: DebugCaps, restore: Restore) -> Self {
        let ram = Arc::new(Ram::from_ranges(&[(GuestAddress(RAM), 1 << 20)]).unwrap());
        let mut image = vec![0; 1 << 20];
        self.ram.read_slice(&mut image, GuestAddress(RAM)).unwrap();
        ram.write_slice(&image, GuestAddress(RAM)).unwrap();
        let vm_ram: Arc<Ram> = ram.clone();
        let session =
            DebugSession::from_state(state, self.vcpus.len() as u32, caps, Arc::new(vm_ram), restore).unwrap();
        let vcpus: Vec<_> = self.vcpus.iter().map(|source| Arc::new(source.moved(ram.clone()))).collect();
        session.set_host(Box::new(Host(vcpus.clone()))).unwrap();
        Self { session, vcpus, ram, threads: Vec::new() }
    }

    /// A VM that was never saved, of as many vCPUs as `state` has, and a session from that. Its threads do not run yet.
    #[allow(dead_code, reason = "for states from nowhere")]
    pub fn from_state(state: &GuestDebugState, caps: DebugCaps, restore: Restore) -> Result<Self, SessionError> {
        let ram = Arc::new(Ram::from_ranges(&[(GuestAddress(RAM), 1 << 16)]).unwrap());
        let vm_ram: Arc<Ram> = ram.clone();
        let count = state.vcpus.len() as u32;
        let session = DebugSession::from_state(state, count, caps, Arc::new(vm_ram), restore)?;
        let vcpus: Vec<_> = (0..count).map(|_| Arc::new(FakeVcpu::new(ram.clone()))).collect();
        session.set_host(Box::new(Host(vcpus.clone()))).unwrap();
        Ok(Self { session, vcpus, ram, threads: Vec::new() })
    }

    pub fn get(&self, vcpu: u32, reg: Reg) -> u64 {
        self.vcpus[vcpu as usize].get_u64(reg).unwrap()
    }

    #[allow(dead_code, reason = "not every suite wants it")]
    pub fn set(&self, vcpu: u32, reg: Reg, value: u64) {
        self.vcpus[vcpu as usize].set_u64(reg, value).unwrap();
    }

    #[allow(dead_code, reason = "not every suite wants it")]
    pub fn pc(&self, vcpu: u32) -> u64 {
        self.get(vcpu, Reg::Pc)
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

fn run(mut debugger: VcpuDebugger, vcpu: &FakeVcpu) {
    while debugger.wait() == Wait::Run {
        if debugger.before_run(vcpu).unwrap() == Entry::Again {
            continue;
        }
        if let Exit::Debug(exit) = vcpu.run() {
            debugger.on_debug_exit(vcpu, exit).unwrap();
        }
    }
}
