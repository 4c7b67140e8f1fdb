//! The CPU: what it executes, and what KVM would do for it.

use super::names::*;
use guest_debug::x86_64::insn::CodeSize;
use guest_debug::x86_64::mode::{CodeRegisters, CodeSegment, Mode};
use guest_debug::x86_64::stop::{DebugExitArch, Exception};
use guest_debug::x86_64::{Dr6, HwDebug, Reg, Slot};
use guest_debug::{DebugConfig, DebugVcpu, VcpuError, WatchKind, X86_64};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[derive(Default)]
struct State {
    regs: BTreeMap<Reg, u64>,
    config: DebugConfig<HwDebug>,
    /// RFLAGS.TF, which KVM keeps out of what it tells.
    tf: bool,
    injected: Option<Exception>,
    /// Address of a breakpoint of the guest's own, in its debug registers.
    own_breakpoint: Option<u64>,
}

impl State {
    fn get(&self, reg: Reg) -> u64 {
        self.regs.get(&reg).copied().unwrap_or(0)
    }

    fn set(&mut self, reg: Reg, value: u64) {
        self.regs.insert(reg, value);
    }

    fn code(&self) -> CodeSegment {
        let [cr0, efer, rflags, cs, base, access_rights] =
            [Reg::Cr0, Reg::Efer, Reg::Eflags, Reg::Cs, Reg::CsBase, Reg::CsAr].map(|reg| self.get(reg));
        CodeSegment::new(&CodeRegisters { cr0, efer, rflags, cs, base, access_rights })
    }

    /// Bytes of a word on the stack.
    fn word(&self) -> u64 {
        match self.code().size {
            CodeSize::Bits16 => 2,
            CodeSize::Bits32 => 4,
            CodeSize::Bits64 => 8,
        }
    }

    fn set_code(&mut self, segment: u16, offset: u16) {
        self.set(Reg::Cs, segment.into());
        self.set(Reg::CsBase, u64::from(segment) << 4);
        self.set(Reg::Rip, offset.into());
    }

    fn rflags(&self) -> u64 {
        self.get(Reg::Eflags) | if self.tf { TF } else { 0 }
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.tf = rflags & TF != 0;
        self.set(Reg::Eflags, rflags & !TF);
    }
}

pub struct FakeVcpu {
    state: Mutex<State>,
    ram: Arc<GuestMemoryMmap>,
    kick: Mutex<bool>,
    kicked: Condvar,
    pub irq_pending: AtomicBool,
    /// Calls that program its debugging, and that read or write registers, however many at once.
    pub config_calls: AtomicUsize,
    pub register_calls: AtomicUsize,
    /// How many steps are told to be done before their instruction executes.
    pub early_traps: AtomicU32,
    pub injections: Mutex<Vec<Exception>>,
    /// Hits of [`Self::break_itself`].
    pub own_hits: AtomicUsize,
}

pub(super) enum Exit {
    Debug(DebugExitArch),
    Kicked,
}

impl FakeVcpu {
    pub(super) fn new(ram: Arc<GuestMemoryMmap>) -> Self {
        let regs = [
            (Reg::Rip, RAM),
            (Reg::Rsp, STACK),
            (Reg::Eflags, 2 | IF),
            (Reg::Cs, 0x10),
            (Reg::CsAr, 0xa09b),
            (Reg::Cr0, 1),
            (Reg::Efer, 0x501),
            (Reg::IdtBase, IDT),
            (Reg::Lstar, ENTRY),
            (Reg::Fmask, FMASK),
            (Reg::Rax, DATA),
        ];
        Self {
            state: Mutex::new(State { regs: regs.into(), ..State::default() }),
            ram,
            kick: Mutex::new(false),
            kicked: Condvar::new(),
            irq_pending: AtomicBool::new(false),
            config_calls: AtomicUsize::new(0),
            register_calls: AtomicUsize::new(0),
            early_traps: AtomicU32::new(0),
            injections: Mutex::default(),
            own_hits: AtomicUsize::new(0),
        }
    }

    pub fn config(&self) -> DebugConfig<HwDebug> {
        self.state.lock().unwrap().config.clone()
    }

    /// Has the guest's own debugger step it.
    pub fn trap_itself(&self) {
        self.state.lock().unwrap().tf = true;
    }

    /// Has it execute the same code as 8086 code, RIP counted from `segment`.
    pub fn enter_real_mode(&self, segment: u16) {
        let mut state = self.state.lock().unwrap();
        let offset = state.get(Reg::Rip) - (u64::from(segment) << 4);
        state.set_code(segment, offset as u16);
        for (reg, value) in [(Reg::Cr0, 0x10), (Reg::Efer, 0), (Reg::CsAr, 0x9b), (Reg::SsAr, 0x93)] {
            state.set(reg, value);
        }
        state.set(Reg::SsBase, RAM);
        state.set(Reg::Rsp, STACK - RAM);
        for vector in 0..=255 {
            let entry = [(handler(vector) - (u64::from(SEGMENT) << 4)) as u16, SEGMENT];
            self.ram.write_obj(entry, GuestAddress(IDT + u64::from(vector) * 4)).unwrap();
        }
    }

    /// Has it execute the same code as 32-bit code in a segment with this base.
    pub fn enter_protected_mode(&self, base: u64) {
        let mut state = self.state.lock().unwrap();
        let rip = state.get(Reg::Rip) - base;
        for (reg, value) in [(Reg::Rip, rip), (Reg::CsBase, base), (Reg::Efer, 0), (Reg::CsAr, 0xc09b)] {
            state.set(reg, value);
        }
    }

    /// Has the guest set a breakpoint in its debug registers. Its handler does no more than count.
    pub fn break_itself(&self, address: u64) {
        self.state.lock().unwrap().own_breakpoint = Some(address);
    }

    /// A vCPU with the registers that this one has, for the other VM.
    pub(super) fn moved(&self, ram: Arc<GuestMemoryMmap>) -> Self {
        let moved = Self::new(ram);
        moved.state.lock().unwrap().regs = self.state.lock().unwrap().regs.clone();
        moved
    }

    pub(super) fn kick(&self) {
        *self.kick.lock().unwrap() = true;
        self.kicked.notify_all();
    }

    pub(super) fn run(&self) -> Exit {
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
        let segment = state.code();
        let pc = segment.linear(state.get(Reg::Rip));
        match state.injected.take() {
            Some(Exception::Breakpoint) => return self.take(&mut state, 3, pc + 1),
            Some(Exception::Debug { .. }) => return self.take(&mut state, 1, pc),
            None => {}
        }
        let blocked = state.config.single_step && state.config.block_interrupts;
        if self.irq_pending.load(Ordering::Relaxed) && state.get(Reg::Eflags) & IF != 0 && !blocked {
            return self.take(&mut state, 0x20, pc);
        }
        // KVM writes DR7 for what the CPU has raised, and nothing where it emulates.
        let debug = |pc, dr6| Some(Exit::Debug(DebugExitArch { exception: 1, pc, dr6: Dr6::ACTIVE_LOW | dr6, dr7: 0 }));
        let slots = if state.config.enabled { state.config.hw.slots } else { [None; 4] };
        let executes =
            |slot: &Option<Slot>| slot.is_some_and(|slot| slot.watch_kind().is_none() && slot.address() == pc);
        if let Some(n) = slots.iter().position(executes) {
            return debug(pc, 1 << n);
        }
        if state.tf && self.early_traps.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        {
            return debug(pc, 0x4000);
        }
        // Without KVM_GUESTDBG_USE_HW_BP or a step the guest has its debug registers and #DB for itself.
        let own = state.config.hw == HwDebug::default() && !state.config.single_step;
        if own && state.own_breakpoint == Some(pc) {
            self.own_hits.fetch_add(1, Ordering::Relaxed);
        }
        let mut code = [0; 4];
        self.ram.read_slice(&mut code, GuestAddress(pc)).unwrap();
        let is = |insn: &[u8]| code.starts_with(insn);
        let traps = state.tf;
        let (rax, rbx, rsp) = (state.get(Reg::Rax), state.get(Reg::Rbx), state.get(Reg::Rsp));
        let (stack, word) = (state.get(Reg::SsBase) + rsp, state.word());
        let mut matched = 0;
        let mut access = |write: bool| {
            for (n, slot) in slots.iter().enumerate() {
                let counts = |slot: &Slot| match slot.watch_kind() {
                    Some(WatchKind::Write) => write,
                    kind => kind.is_some(),
                };
                let overlaps = |slot: &Slot| *slot.covers().start() < rax + 8 && *slot.covers().end() >= rax;
                if slot.as_ref().is_some_and(|slot| counts(slot) && overlaps(slot)) {
                    matched |= 1 << n;
                }
            }
        };
        let length = match () {
            () if is(NOP) => 1,
            () if is(COUNT) => {
                state.set(Reg::Rbx, rbx + 1);
                COUNT.len()
            }
            () if is(DROP) => {
                state.set(Reg::Rsp, rsp + 8);
                DROP.len()
            }
            () if is(STORE) => {
                self.ram.write_obj(rbx, GuestAddress(rax)).unwrap();
                access(true);
                STORE.len()
            }
            () if is(LOAD) => {
                let Ok(value) = self.ram.read_obj(GuestAddress(rax)) else {
                    return self.fault(&mut state, 14, pc);
                };
                state.set(Reg::Rcx, value);
                access(false);
                LOAD.len()
            }
            () if is(PUSHFQ) => {
                let rflags = &state.rflags().to_le_bytes()[..word as usize];
                self.ram.write_slice(rflags, GuestAddress(stack - word)).unwrap();
                state.set(Reg::Rsp, rsp - word);
                1
            }
            () if is(POPFQ) => {
                let rflags = self.ram.read_obj(GuestAddress(rsp)).unwrap();
                state.set_rflags(rflags);
                state.set(Reg::Rsp, rsp + 8);
                1
            }
            () if is(CLI) => {
                let rflags = state.get(Reg::Eflags) & !IF;
                state.set(Reg::Eflags, rflags);
                1
            }
            () if is(STI) => {
                let rflags = state.get(Reg::Eflags) | IF;
                state.set(Reg::Eflags, rflags);
                1
            }
            () if is(INT3) => {
                if state.config.enabled {
                    return Some(Exit::Debug(DebugExitArch { exception: 3, pc, dr6: 0, dr7: 0 }));
                }
                return self.take(&mut state, 3, pc + 1);
            }
            () if code[0] == 0xcd => return self.take(&mut state, code[1], pc + 2),
            () if is(SYSCALL) => {
                let rflags = state.rflags();
                state.set(Reg::R(11), rflags);
                state.set(Reg::Rcx, pc + 2);
                let fmask = state.get(Reg::Fmask);
                state.set_rflags(rflags & !fmask);
                state.set(Reg::Rip, ENTRY);
                return if state.tf { debug(ENTRY, 0x4000) } else { None };
            }
            () if is(IRETQ) => {
                let frame: [u64; 5] =
                    std::array::from_fn(|n| self.ram.read_obj(GuestAddress(rsp + 8 * n as u64)).unwrap());
                state.set_rflags(frame[2]);
                state.set(Reg::Rip, frame[0]);
                state.set(Reg::Rsp, frame[3]);
                return if traps { debug(frame[0], 0x4000) } else { None };
            }
            () if is(HLT) => {
                drop(state);
                let guard = self.kick.lock().unwrap();
                drop(self.kicked.wait_while(guard, |kick| !*kick).unwrap());
                return None;
            }
            () if code[0] == 0xeb => (2 + i64::from(code[1] as i8)) as usize,
            () => panic!("the fake vCPU does not know {code:x?} at {pc:#x}"),
        };
        let next = pc.wrapping_add(length as u64);
        state.set(Reg::Rip, segment.offset(next));
        let dr6 = matched | if traps { 0x4000 } else { 0 };
        if dr6 == 0 { None } else { debug(next, dr6) }
    }

    /// Goes to a handler, without an exit.
    fn take(&self, state: &mut State, vector: u8, back: u64) -> Option<Exit> {
        let rsp = state.get(Reg::Rsp);
        if state.code().mode == Mode::Real {
            let frame = [state.code().offset(back), state.get(Reg::Cs), state.rflags()].map(|value| value as u16);
            self.ram.write_obj(frame, GuestAddress(state.get(Reg::SsBase) + rsp - 6)).unwrap();
            state.set(Reg::Rsp, rsp - 6);
            let entry = GuestAddress(state.get(Reg::IdtBase) + u64::from(vector) * 4);
            let [offset, segment]: [u16; 2] = self.ram.read_obj(entry).unwrap();
            let rflags = state.get(Reg::Eflags) & !IF;
            state.set_rflags(rflags);
            state.set_code(segment, offset);
            return None;
        }
        let top = (rsp & !15) - 40;
        let frame = [back, state.get(Reg::Cs), state.rflags(), rsp, 0];
        for (n, value) in (0..).zip(frame) {
            self.ram.write_obj(value, GuestAddress(top + 8 * n)).unwrap();
        }
        state.set(Reg::Rsp, top);
        let rflags = state.get(Reg::Eflags) & !IF;
        state.set_rflags(rflags);
        state.set(Reg::Rip, handler(vector));
        None
    }

    fn fault(&self, state: &mut State, vector: u8, pc: u64) -> Option<Exit> {
        self.take(state, vector, pc);
        let top = state.get(Reg::Rsp) - 8;
        self.ram.write_obj(0u64, GuestAddress(top)).unwrap();
        state.set(Reg::Rsp, top);
        None
    }
}

impl DebugVcpu<X86_64> for FakeVcpu {
    fn set_guest_debug(&self, config: &DebugConfig<HwDebug>) -> Result<(), VcpuError> {
        self.config_calls.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        if state.config.single_step || config.single_step {
            state.tf = config.single_step;
        }
        state.config = config.clone();
        Ok(())
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.register_calls.fetch_add(1, Ordering::Relaxed);
        let bytes = self.state.lock().unwrap().get(reg).to_le_bytes();
        value.fill(0);
        value.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn get_u64s(&self, regs: &[Reg], values: &mut [u64]) -> Result<(), VcpuError> {
        self.register_calls.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        regs.iter().zip(values).for_each(|(reg, value)| *value = state.get(*reg));
        Ok(())
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        self.register_calls.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        let mut state = self.state.lock().unwrap();
        state.set(reg, u64::from_le_bytes(bytes));
        // KVM writes all of them, RFLAGS without TF.
        state.tf = false;
        Ok(())
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        let lists = [&Reg::CORE[..], &Reg::SSE, &Reg::SEGMENTS, &Reg::AVX, &Reg::SYSTEM, &Reg::HIDDEN];
        Ok(lists.concat())
    }

    fn inject(&self, exception: Exception) -> Result<(), VcpuError> {
        self.state.lock().unwrap().injected = Some(exception);
        self.injections.lock().unwrap().push(exception);
        Ok(())
    }
}
