//! What is to hold of one input, whatever its bytes are: the fuzz targets and `tests/inputs.rs` look at it in the same way.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is the finding")]

use crate::fake::{CAPS, RAM, Vm};
use guest_debug::agent::{EvalError, Expression, MAX_READS, MAX_TEXT, Machine, renumber};
use guest_debug::state::{GuestDebugState, RuleState, VcpuMode, check, envelope, fits, versioned};
use guest_debug::{DebugCaps, Entry, Restore, SessionError, StopReason, VcpuId, Wait};
use vm_memory::{Bytes, GuestAddress};

/// The state as JSON.
pub fn json(bytes: &[u8]) {
    let Ok(state) = serde_json::from_slice::<GuestDebugState>(bytes) else { return };
    let again = serde_json::to_vec(&state).unwrap();
    assert_eq!(serde_json::from_slice::<GuestDebugState>(&again).unwrap(), state);
    judge(&state);
}

/// The state in versionize's format, of which there is one for each state.
pub fn versioned(bytes: &[u8]) {
    let Ok(state) = versioned::read(bytes) else { return };
    assert_eq!(versioned::write(&state).unwrap(), bytes);
    judge(&state);
}

/// An envelope, or what comes behind one's header.
pub fn envelope(bytes: &[u8]) {
    let mut rest = bytes;
    if let Ok(state) = envelope::open(&mut rest) {
        let sealed = envelope::seal(&state).unwrap();
        assert_eq!(envelope::open(&sealed[..]).unwrap(), state);
        judge(&state);
    }
    // Chance finds no checksum, so a right one is put before whatever stands for the payload.
    let (Some(header), Some(payload)) = (bytes.get(..24), bytes.get(28..)) else { return };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    let sum = hasher.finalize().to_le_bytes();
    if let Ok(state) = envelope::open(&[header, &sum, payload].concat()[..]) {
        judge(&state);
    }
}

/// A session from a state in versionize's format, on a host with many slots and on one with few: armed, looked at, attached
/// to, saved again, given up.
pub fn session(bytes: &[u8]) {
    let Ok(state) = versioned::read(bytes) else { return };
    if state.vcpus.len() > 8 {
        return;
    }
    let few = DebugCaps { hw_bps: 1, ..CAPS };
    for caps in [CAPS, few] {
        for restore in [Restore::Arm, Restore::Dormant] {
            client(&state, caps, restore);
        }
        vcpus(&state, caps);
    }
}

/// A condition or a command: the first byte seeds what the machine answers, the others are the bytecode.
pub fn expression(bytes: &[u8]) {
    let Some((seed, bytes)) = bytes.split_first() else { return };
    let kinds = [Expression::condition(bytes.to_vec()), Expression::command(bytes.to_vec())];
    for expression in kinds.into_iter().flatten() {
        assert_eq!(renumber(bytes, Some).unwrap(), bytes, "what is verified can be renumbered");
        let mut machine = Anything { seed: *seed, reads: 0 };
        match expression.evaluate(&mut machine) {
            Ok(outcome) => assert!(outcome.text.len() <= 3 * MAX_TEXT + 3),
            Err(EvalError::Unverified { at }) => panic!("byte {at} was not seen by the verification"),
            Err(_) => {}
        }
        assert!(machine.reads <= MAX_READS);
    }
}

/// Answers whatever it is asked, with something that depends on the question.
struct Anything {
    seed: u8,
    reads: usize,
}

impl Machine for Anything {
    fn register(&mut self, number: u16) -> Result<u64, EvalError> {
        Ok(u64::from(number) * u64::from(self.seed))
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), EvalError> {
        self.reads += 1;
        data.fill(self.seed ^ address as u8);
        Ok(())
    }
}

fn judge(state: &GuestDebugState) {
    let good = check(state).is_ok();
    let fit = fits(state, &CAPS);
    assert!(good || fit.is_err());
    if let Ok(fit) = fit {
        assert!(fit.watch_slots <= CAPS.hw_wps && fit.as_software <= 16);
    }
}

/// The client's side.
fn client(state: &GuestDebugState, caps: DebugCaps, restore: Restore) {
    let Some(vm) = restored(state, caps, restore) else { return };
    let clean = image(&vm);
    assert_eq!(vm.session.state().unwrap(), *state, "nothing is lost before it is armed");
    let Ok(stand_ins) = vm.session.arm() else {
        assert_eq!(image(&vm), clean, "nothing is planted then");
        assert_eq!(vm.session.state().unwrap(), *state);
        return;
    };
    let mut state = state.clone();
    if !stand_ins.is_empty() {
        // One that waits for the code that it was asked for in is planted with the one that stands in there.
        vm.session.freeze().unwrap();
        state.software = vm.session.state().unwrap().software;
        vm.session.thaw().unwrap();
    }
    let state = &state;
    saved(&vm, state, &clean);
    vm.session.attach().expect("a session that is armed can be attached to");
    saved(&vm, state, &clean);
    while let Some(stop) = vm.session.take_stop().unwrap() {
        let told = vm.session.state().unwrap();
        assert_eq!(check(&told), Ok(()));
        if stop.reason != StopReason::Interrupt {
            assert!(told.reported.is_some() && told.vcpus[stop.vcpu.0 as usize].told.is_some());
        }
    }
    saved(&vm, state, &clean);
    vm.session.detach().unwrap();
    assert_eq!(image(&vm), clean, "nothing stays behind");
}

/// The vCPUs' side: those that do not stay stopped are made ready for the guest.
fn vcpus(state: &GuestDebugState, caps: DebugCaps) {
    let Some(vm) = restored(state, caps, Restore::Arm) else { return };
    if vm.session.arm().is_err() {
        return;
    }
    let debugger = |id| vm.session.vcpu_thread(VcpuId(id)).unwrap();
    let mut debuggers: Vec<_> = (0..state.vcpus.len() as u32).map(debugger).collect();
    for (debugger, vcpu) in debuggers.iter().zip(&state.vcpus) {
        assert_eq!(debugger.stop_requested(), vcpu.mode == VcpuMode::Stopped);
    }
    for (debugger, vcpu) in debuggers.iter_mut().zip(&vm.vcpus) {
        // One that has its step behind it without having entered the guest stops the others.
        if debugger.stop_requested() {
            continue;
        }
        assert_eq!(debugger.wait(), Wait::Run);
        if debugger.before_run(&**vcpu).unwrap() == Entry::Run {
            let config = vcpu.config();
            assert_eq!(config.enabled, state.attached || config.single_step);
            assert!(config.hw.breakpoints.len() <= caps.hw_bps && config.hw.watchpoints.len() <= caps.hw_wps);
        }
    }
}

fn restored(state: &GuestDebugState, caps: DebugCaps, restore: Restore) -> Option<Vm> {
    match Vm::from_state(state, caps, restore) {
        Ok(vm) => {
            assert_eq!(check(state), Ok(()));
            Some(vm)
        }
        Err(SessionError::State(_)) => None,
        Err(error) => panic!("a bad state is refused as one, not with: {error}"),
    }
}

/// A session that is in force is saved as something that can be restored, and keeps what was inserted.
fn saved(vm: &Vm, first: &GuestDebugState, clean: &[u8]) {
    vm.session.freeze().unwrap();
    let state = vm.session.state().unwrap();
    assert_eq!(check(&state), Ok(()));
    assert_eq!((&state.hardware, &state.watches), (&first.hardware, &first.watches));
    assert_eq!(state.software, first.software);
    let bytecode = |state: &GuestDebugState| {
        let parts = |rule: &RuleState| (rule.breakpoint, rule.conditions.clone(), rule.commands.clone(), rule.ignore);
        state.rules.iter().map(parts).collect::<Vec<_>>()
    };
    assert_eq!(bytecode(&state), bytecode(first));
    assert_eq!(image(vm), clean, "no breakpoint instruction leaves");
    vm.session.thaw().unwrap();
}

fn image(vm: &Vm) -> Vec<u8> {
    let mut image = vec![0; 1 << 16];
    vm.ram.read_slice(&mut image, GuestAddress(RAM)).unwrap();
    image
}
