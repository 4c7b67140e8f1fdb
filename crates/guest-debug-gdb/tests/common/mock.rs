//! A VM without a hypervisor: registers, a few pages of memory, and a guest that runs to its next breakpoint.

use guest_debug::arm64::{Reg, SysReg};
use guest_debug::{
    Breakpoint, DebugCaps, Gva, HitCounts, HitRule, Messages, ResumeAction, RuleInfo, StopEvent, StopReason, VcpuId,
    VcpuState, WatchKind,
};
use guest_debug_gdb::{DebugVm, InsertedBreakpoint, MemoryAddress, VmError, VmEvent};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const VIRTUAL: u64 = 0xffff_8000_0800_0000;
pub const PHYSICAL: u64 = 0x4000_0000;
/// Mapped bytes at [`VIRTUAL`] and [`PHYSICAL`].
pub const LENGTH: u64 = 0x80000;
pub const SLOTS: usize = 2;

#[derive(Debug, Default)]
pub struct State {
    pub registers: Vec<BTreeMap<Reg, Vec<u8>>>,
    pub memory: Vec<u8>,
    pub breakpoints: Vec<Breakpoint>,
    pub events: VecDeque<VmEvent>,
    pub attached: bool,
    pub running: bool,
    /// Everything that was resumed, and how.
    pub resumes: Vec<Vec<(VcpuId, ResumeAction)>>,
    pub attaches: usize,
    pub detaches: usize,
    /// Lists of registers that were read, one per call.
    pub reads: Vec<Vec<Reg>>,
    /// Attaching twice is right: the last client vanished, and the server keeps everything.
    pub keep: bool,
    /// How often the server looked for an event.
    pub looks: usize,
    pub rules: BTreeMap<Breakpoint, HitRule>,
    /// What breakpoints have printed.
    pub messages: Messages,
    /// Refuse the next resume.
    pub refuse_resume: bool,
}

/// Cheap to clone; all clones are the same VM.
#[derive(Clone)]
pub struct MockVm {
    state: Arc<Mutex<State>>,
    event: Arc<EventFd>,
}

impl MockVm {
    pub fn new(vcpus: u32) -> Self {
        Self::with_registers(vcpus, &[])
    }

    /// With registers beside those that every vCPU has.
    pub fn with_registers(vcpus: u32, more: &[(Reg, Vec<u8>)]) -> Self {
        let mut state = State::default();
        for n in 0..vcpus {
            let mut regs: BTreeMap<Reg, Vec<u8>> = (0..31).map(|x| (Reg::X(x), number(u64::from(x) + 0x100))).collect();
            regs.extend([
                (Reg::Pc, number(VIRTUAL + 0x1000 * u64::from(n))),
                (Reg::Pstate, number(0x3c5)),
                (Reg::SpEl0, number(0x1111)),
                (Reg::SpEl1, number(VIRTUAL + 0x8000)),
                (Reg::ElrEl1, number(0x2222)),
                (Reg::SpsrEl1, number(0x3c4)),
                (Reg::Fpsr, 0x0800_0000u32.to_le_bytes().to_vec()),
                (Reg::Fpcr, 0x0100_0000u32.to_le_bytes().to_vec()),
                (Reg::Sys(SysReg::SCTLR_EL1), number(0x30d0_0800)),
                (Reg::Sys(SysReg::TCR_EL1), number(0x20_0010_0010)),
                (Reg::Sys(SysReg::TPIDR_EL0), number(0x7777)),
                (Reg::Sys(SysReg::MPIDR_EL1), number(u64::from(n))),
                (Reg::Sys(SysReg::new(3, 0, 15, 1, 2)), number(0x1234)),
            ]);
            regs.extend((0..32).map(|v| (Reg::V(v), vec![v; 16])));
            regs.extend(more.iter().cloned());
            state.registers.push(regs);
        }
        state.memory = (0..LENGTH).map(|n| (n >> 2) as u8).collect();
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { state: Arc::new(Mutex::new(state)), event }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Stops the guest with this event.
    pub fn stop(&self, event: VmEvent) {
        let mut state = self.state();
        state.running = false;
        state.events.push_back(event);
        self.event.write(1).unwrap();
    }

    /// Makes the event readable, and nothing else.
    pub fn stop_without_event(&self) {
        self.event.write(1).unwrap();
    }

    pub fn register(&self, vcpu: usize, reg: Reg) -> u64 {
        let state = self.state();
        let mut bytes = state.registers[vcpu][&reg].clone();
        bytes.resize(8, 0);
        u64::from_le_bytes(bytes.try_into().unwrap())
    }
}

pub fn number(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// The index into memory, and how many bytes there are from it on.
fn place(address: MemoryAddress) -> Result<(usize, usize), VmError> {
    let (base, at, error) = match address {
        MemoryAddress::Virtual(_, Gva(at)) => (VIRTUAL, at, VmError::Unmapped(format!("{at:#x} is not mapped"))),
        MemoryAddress::Physical(at) => (PHYSICAL, at.0, VmError::NotRam(at)),
    };
    match at.checked_sub(base) {
        Some(offset) if offset < LENGTH => Ok((offset as usize, (LENGTH - offset) as usize)),
        _ => Err(error),
    }
}

impl State {
    fn known(&mut self, vcpu: VcpuId) -> Result<&mut BTreeMap<Reg, Vec<u8>>, VmError> {
        self.registers.get_mut(vcpu.0 as usize).ok_or(VmError::NoSuchVcpu(vcpu))
    }

    fn run(&mut self, vcpu: VcpuId, action: &ResumeAction) -> Option<StopReason> {
        let breakpoints = self.breakpoints.clone();
        let regs = self.registers.get_mut(vcpu.0 as usize)?;
        let pc = u64::from_le_bytes(regs[&Reg::Pc].clone().try_into().unwrap());
        let (to, reason) = match action {
            ResumeAction::Stay => return None,
            ResumeAction::Step => (pc + 4, StopReason::Step),
            ResumeAction::StepRange(range) => (range.end, StopReason::Step),
            ResumeAction::Continue => {
                let hit = |breakpoint: &Breakpoint| match *breakpoint {
                    Breakpoint::Hardware(at) => Some((at.0, StopReason::HardwareBreakpoint(at))),
                    Breakpoint::Software(at) => Some((at.0, StopReason::SoftwareBreakpoint(at))),
                    Breakpoint::Watch { kind, address, .. } => Some((pc + 4, StopReason::Watchpoint { kind, address })),
                };
                breakpoints.iter().filter_map(hit).filter(|(at, _)| *at > pc).min_by_key(|(at, _)| *at)?
            }
        };
        regs.insert(Reg::Pc, number(to));
        Some(reason)
    }
}

impl DebugVm for MockVm {
    fn vcpu_states(&self) -> Result<Vec<VcpuState>, VmError> {
        let state = self.state();
        let one = if state.running { VcpuState::Running } else { VcpuState::Stopped };
        Ok(vec![one; state.registers.len()])
    }

    fn capabilities(&self) -> Result<DebugCaps, VmError> {
        Ok(DebugCaps { guest_debug: true, hw_bps: SLOTS, hw_wps: SLOTS, control_flags: 0 })
    }

    fn attach(&self) -> Result<(), VmError> {
        let mut state = self.state();
        assert!(!state.attached || state.keep, "attached twice");
        (state.attached, state.running) = (true, false);
        state.attaches += 1;
        Ok(())
    }

    fn detach(&self) -> Result<(), VmError> {
        let mut state = self.state();
        assert!(state.attached, "detached without attach");
        (state.attached, state.running) = (false, true);
        state.breakpoints.clear();
        state.events.clear();
        state.detaches += 1;
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.event
    }

    fn take_event(&self) -> Result<Option<VmEvent>, VmError> {
        let mut state = self.state();
        state.looks += 1;
        Ok(state.events.pop_front())
    }

    fn interrupt(&self) -> Result<(), VmError> {
        self.stop(VmEvent::Stopped(StopEvent { vcpu: VcpuId(0), reason: StopReason::Interrupt }));
        Ok(())
    }

    fn resume(&self, actions: Vec<(VcpuId, ResumeAction)>) -> Result<(), VmError> {
        let mut state = self.state();
        if std::mem::take(&mut state.refuse_resume) {
            return Err(VmError::Other("the mock does not want to".to_owned()));
        }
        state.resumes.push(actions.clone());
        state.running = true;
        let named = |vcpu| actions.iter().find(|(id, _)| *id == vcpu).map(|(_, action)| action.clone());
        let all: Vec<_> = (0..state.registers.len() as u32).map(VcpuId).collect();
        // Whoever was named goes first: it is the one that the client looks at.
        let order: Vec<_> = actions.iter().map(|(id, _)| *id).chain(all).collect();
        let stop = order.into_iter().find_map(|vcpu| {
            let reason = state.run(vcpu, &named(vcpu).unwrap_or(ResumeAction::Continue))?;
            Some(StopEvent { vcpu, reason })
        });
        drop(state);
        if let Some(event) = stop {
            self.stop(VmEvent::Stopped(event));
        }
        Ok(())
    }

    fn insert(&self, _: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError> {
        let mut state = self.state();
        let same = |other: &&Breakpoint| std::mem::discriminant(*other) == std::mem::discriminant(&breakpoint);
        match breakpoint {
            Breakpoint::Software(Gva(at)) => {
                place(MemoryAddress::Virtual(VcpuId(0), Gva(at)))?;
            }
            _ if state.breakpoints.iter().filter(same).count() >= SLOTS => {
                return Err(VmError::NoSlot(format!("no slot left: all {SLOTS} are in use")));
            }
            _ => {}
        }
        if !state.breakpoints.contains(&breakpoint) {
            state.breakpoints.push(breakpoint);
        }
        Ok(())
    }

    fn remove(&self, _: VcpuId, breakpoint: Breakpoint) -> Result<(), VmError> {
        let mut state = self.state();
        let at = state.breakpoints.iter().position(|other| *other == breakpoint);
        state.breakpoints.remove(at.ok_or(VmError::NoSuchBreakpoint(Gva(0)))?);
        Ok(())
    }

    fn breakpoints(&self) -> Result<Vec<InsertedBreakpoint>, VmError> {
        let inserted = |breakpoint: &Breakpoint| InsertedBreakpoint {
            breakpoint: *breakpoint,
            slots: usize::from(!matches!(breakpoint, Breakpoint::Software(_))),
            note: String::new(),
        };
        Ok(self.state().breakpoints.iter().map(inserted).collect())
    }

    fn has_rules(&self) -> bool {
        true
    }

    fn set_rule(&self, breakpoint: Breakpoint, rule: HitRule) -> Result<(), VmError> {
        self.state().rules.insert(breakpoint, rule);
        Ok(())
    }

    fn rules(&self) -> Result<Vec<RuleInfo>, VmError> {
        let info = |(breakpoint, rule): (&Breakpoint, &HitRule)| RuleInfo {
            breakpoint: *breakpoint,
            rule: rule.clone(),
            counts: HitCounts::default(),
        };
        Ok(self.state().rules.iter().map(info).collect())
    }

    fn take_messages(&self) -> Result<Messages, VmError> {
        Ok(std::mem::take(&mut self.state().messages))
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Vec<Reg>, VmError> {
        Ok(self.state().known(vcpu)?.keys().copied().collect())
    }

    fn read_registers(&self, vcpu: VcpuId, regs: Vec<Reg>) -> Result<Vec<Option<Vec<u8>>>, VmError> {
        let mut state = self.state();
        state.reads.push(regs.clone());
        let known = state.known(vcpu)?;
        Ok(regs.iter().map(|reg| known.get(reg).cloned()).collect())
    }

    fn write_registers(&self, vcpu: VcpuId, values: Vec<(Reg, Vec<u8>)>) -> Result<(), VmError> {
        let mut state = self.state();
        let known = state.known(vcpu)?;
        for (reg, value) in values {
            assert_eq!(value.len(), reg.size(), "{reg}");
            known
                .insert(reg, value)
                .ok_or(VmError::Register { reg: reg.into(), message: "there is none".to_owned() })?;
        }
        Ok(())
    }

    fn read_memory(&self, address: MemoryAddress, length: usize) -> Result<Vec<u8>, VmError> {
        let (at, left) = place(address)?;
        Ok(self.state().memory[at..at + length.min(left)].to_vec())
    }

    fn write_memory(&self, address: MemoryAddress, data: Vec<u8>) -> Result<(), VmError> {
        let (at, left) = place(address)?;
        if data.len() > left {
            return Err(VmError::Unmapped("the end is not mapped".to_owned()));
        }
        self.state().memory[at..at + data.len()].copy_from_slice(&data);
        Ok(())
    }

    fn translate(&self, vcpu: VcpuId, address: Gva) -> Result<GuestAddress, VmError> {
        let (at, _) = place(MemoryAddress::Virtual(vcpu, address))?;
        Ok(GuestAddress(PHYSICAL + at as u64))
    }

    fn monitor(&self, vcpu: VcpuId, command: String) -> Result<Option<String>, VmError> {
        Ok(command.strip_prefix("echo ").map(|text| format!("{vcpu} says {text}\n")))
    }

    fn monitor_help(&self) -> Vec<(String, String)> {
        vec![("echo TEXT".to_owned(), "a command of the VMM".to_owned())]
    }
}

/// A watch, for tests.
pub fn watch(kind: WatchKind, address: u64, length: u64) -> Breakpoint {
    Breakpoint::Watch { kind, address: Gva(address), length }
}
