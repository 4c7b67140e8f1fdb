//! A state's fields: each way in which one can be bad, and the formats that they are written in.

use guest_debug::agent::ExpressionError;
use guest_debug::arm64::dbgreg::DbgRegError;
use guest_debug::arm64::watch::WatchError;
use guest_debug::state::*;
use guest_debug::{DebugCaps, DebugSession, Restore, SessionError, WatchKind};
use proptest::prelude::*;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0 };
const TEXT: u64 = 0xffff_8000_8001_0000;

fn stopped() -> VcpuDebugState {
    VcpuDebugState { mode: VcpuMode::Stopped, told: None }
}

/// A state with something in every field.
fn sample() -> GuestDebugState {
    GuestDebugState {
        version: 2,
        architecture: Architecture::Aarch64,
        attached: true,
        held: false,
        selected_vcpu: Some(1),
        hardware: vec![0x40_0000, TEXT],
        watches: vec![
            WatchState { address: 0x1000, length: 8, kind: WatchKind::Write },
            WatchState { address: 0x1000, length: 16, kind: WatchKind::Read },
            WatchState { address: 0x2000, length: 4096, kind: WatchKind::Access },
        ],
        software: vec![
            SoftwareState { physical: 0x8001_0010, original: [0x1f, 0x20, 0x03, 0xd5], names: vec![0x10, TEXT + 0x10] },
            SoftwareState { physical: 0x8001_0020, original: [0; 4], names: vec![TEXT + 0x20] },
        ],
        vcpus: vec![
            VcpuDebugState { told: Some(ToldState { pc: TEXT, watches: vec![0x1008] }), ..stopped() },
            stopped(),
        ],
        reported: Some(StopState { vcpu: 0, pc: TEXT, reason: StopReasonState::HardwareBreakpoint(TEXT) }),
        pending: vec![StopState {
            vcpu: 1,
            pc: TEXT + 0x40,
            reason: StopReasonState::Watchpoint(WatchHit { kind: WatchKind::Read, address: 0x1008 }),
        }],
        put_aside: vec![StopState {
            vcpu: 1,
            pc: 0x8000,
            reason: StopReasonState::Unsupported(UnsupportedState::AArch32),
        }],
        rules: vec![
            RuleState { conditions: vec![X0_IS_5.to_vec()], ..rule(BreakpointState::Hardware(TEXT)) },
            RuleState {
                conditions: vec![X0_IS_5.to_vec(), vec![0x22, 1, 0x27]],
                commands: vec![PRINTS_HI.to_vec()],
                ..rule(BreakpointState::Software(TEXT + 0x10))
            },
            RuleState {
                ignore: u64::MAX,
                ..rule(BreakpointState::Watch(WatchState { address: 0x1000, length: 8, kind: WatchKind::Write }))
            },
        ],
    }
}

/// `reg 0; const8 5; equal; end`
const X0_IS_5: [u8; 7] = [0x26, 0, 0, 0x22, 5, 0x13, 0x27];
/// `const8 0; const8 0; printf 0, "hi"; end`
const PRINTS_HI: [u8; 12] = [0x22, 0, 0x22, 0, 0x34, 0, 0, 3, b'h', b'i', 0, 0x27];

fn rule(breakpoint: BreakpointState) -> RuleState {
    RuleState { breakpoint, conditions: Vec::new(), commands: Vec::new(), ignore: 3, reached: 7, hits: 2 }
}

/// What a version 1 could say of it.
fn version_1(state: GuestDebugState) -> GuestDebugState {
    GuestDebugState { version: 1, rules: Vec::new(), ..state }
}

/// A state whose vCPUs do something: nothing has stopped the VM.
fn running() -> GuestDebugState {
    let range = StepRange { start: TEXT, end: TEXT + 0x40 };
    let mode = |mode| VcpuDebugState { mode, told: None };
    GuestDebugState {
        reported: None,
        pending: Vec::new(),
        put_aside: Vec::new(),
        vcpus: vec![
            mode(VcpuMode::Running),
            mode(VcpuMode::Stepping),
            mode(VcpuMode::SteppingRange(range)),
            mode(VcpuMode::Stopped),
        ],
        ..sample()
    }
}

/// A change makes a good state bad, in this field and for this reason.
fn bad_in(mut state: GuestDebugState, change: impl FnOnce(&mut GuestDebugState), path: &str, reason: FieldError) {
    assert_eq!(check(&state), Ok(()), "good before");
    change(&mut state);
    assert_eq!(check(&state), Err(StateError::Field { field: path.into(), problem: reason }));
}

fn bad(change: impl FnOnce(&mut GuestDebugState), path: &str, reason: FieldError) {
    bad_in(sample(), change, path, reason);
}

#[test]
fn version() {
    for found in [0, STATE_VERSION + 1] {
        assert_eq!(check(&GuestDebugState { version: found, ..sample() }), Err(StateError::Version { found }));
    }
}

#[test]
fn architecture() {
    let error = check(&GuestDebugState { architecture: Architecture::X86_64, ..sample() }).unwrap_err();
    let expected = Architecture::Aarch64;
    assert_eq!(error, StateError::Architecture { found: Architecture::X86_64, expected });
    assert_eq!(error.to_string(), "architecture: the state is of a guest on x86_64, this host runs aarch64");
}

#[test]
fn attached() {
    let client = |field: &str| StateError::Field { field: field.into(), problem: FieldError::NotAttached };
    let mut state = GuestDebugState { attached: false, ..sample() };
    assert_eq!(check(&state), Err(client("selected_vcpu")));
    state.selected_vcpu = None;
    assert_eq!(check(&state), Err(client("hardware")));
    state.hardware.clear();
    assert_eq!(check(&state), Err(client("watches")));
    state.watches.clear();
    assert_eq!(check(&state), Err(client("software")));
    state.software.clear();
    assert_eq!(check(&state), Err(client("reported")));
    state.reported = None;
    assert_eq!(check(&state), Err(client("pending")));
    state.pending.clear();
    assert_eq!(check(&state), Err(client("put_aside")));
    state.put_aside.clear();
    assert_eq!(check(&state), Err(client("rules")));
    state.rules.clear();
    assert_eq!(check(&state), Err(client("vcpus[0].told")));
    state.vcpus[0].told = None;
    let stranded = StateError::Field { field: "vcpus[0].mode".into(), problem: FieldError::Stranded };
    assert_eq!(check(&state), Err(stranded));
    state.held = true;
    assert_eq!(check(&state), Ok(()));
}

#[test]
fn held() {
    let because = "held is true";
    bad_in(running(), |state| state.held = true, "vcpus[0].mode", FieldError::NotStopped { because });
}

#[test]
fn selected_vcpu() {
    bad(|state| state.selected_vcpu = Some(2), "selected_vcpu", FieldError::Vcpu { vcpu: 2, count: 2 });
}

#[test]
fn hardware() {
    let misaligned = DbgRegError::Misaligned { address: TEXT + 2 };
    bad(|state| state.hardware[1] += 2, "hardware[1]", misaligned.into());
    let beyond = DbgRegError::NonCanonical { address: 1 << 60 };
    bad(|state| state.hardware[1] = 1 << 60, "hardware[1]", beyond.into());
    bad(|state| state.hardware.reverse(), "hardware[1]", FieldError::Order);
    bad(|state| state.hardware[0] = TEXT, "hardware[1]", FieldError::Order);
    let many = FieldError::TooMany { count: 17, most: 16 };
    bad(|state| state.hardware = (0..17).map(|index| index * 4).collect(), "hardware", many);
}

#[test]
fn watches() {
    bad(|state| state.watches.swap(0, 1), "watches[1]", FieldError::Order);
    let empty = WatchError::Empty { address: 0x2000 };
    bad(|state| state.watches[2].length = 0, "watches[2].length", empty.into());
    let wraps = WatchError::Wraps { address: 0x2000, length: u64::MAX };
    bad(|state| state.watches[2].length = u64::MAX, "watches[2].length", wraps.into());
    let beyond = WatchError::NonCanonical { address: 1 << 60 };
    bad(|state| state.watches[2].address = 1 << 60, "watches[2].address", beyond.into());
    // Three of the sample's and one more for every doubleword.
    let doublewords = |count| (0..count).map(|index| 0x1_0000 + index * 16).collect::<Vec<_>>();
    let watch = |address| WatchState { address, length: 8, kind: WatchKind::Write };
    let slots = FieldError::Slots { needed: 17, most: 16 };
    bad(|state| state.watches.extend(doublewords(14).into_iter().map(watch)), "watches", slots);
    let many = FieldError::TooMany { count: 257, most: 256 };
    bad(|state| state.watches = doublewords(257).into_iter().map(watch).collect(), "watches", many);
}

#[test]
fn told() {
    let told = |state: &mut GuestDebugState, watches| state.vcpus[1].told = Some(ToldState { pc: 3, watches });
    let mut anywhere = sample();
    told(&mut anywhere, vec![0x1000, u64::MAX]);
    assert_eq!(check(&anywhere), Ok(()), "a guest can branch to any address");
    let beyond = WatchError::NonCanonical { address: 1 << 60 };
    bad(|state| told(state, vec![0, 1 << 60]), "vcpus[1].told.watches[1]", beyond.into());
    bad(|state| told(state, vec![8, 16, 8]), "vcpus[1].told.watches[2]", FieldError::Twice);
    let many = FieldError::TooMany { count: 65, most: 64 };
    bad(|state| told(state, (0..65).collect()), "vcpus[1].told.watches", many);
    let elsewhere = |state: &mut GuestDebugState| state.vcpus[0].told.iter_mut().for_each(|told| told.pc += 4);
    bad(elsewhere, "vcpus[0].told", FieldError::NotTold { pc: TEXT });
    bad(|state| state.vcpus[0].told = None, "vcpus[0].told", FieldError::NotTold { pc: TEXT });
    let interrupt = StopState { vcpu: 1, pc: 0, reason: StopReasonState::Interrupt };
    let interrupted = GuestDebugState { reported: Some(interrupt), ..sample() };
    assert_eq!(check(&interrupted), Ok(()), "an interrupt says nothing of the place");
}

#[test]
fn software() {
    bad(|state| state.software.reverse(), "software[1].physical", FieldError::Order);
    let misaligned = DbgRegError::Misaligned { address: 0x8001_0022 };
    bad(|state| state.software[1].physical += 2, "software[1].physical", misaligned.into());
    let brk = (0xd420_0000_u32 | 0x67db << 5).to_le_bytes();
    bad(|state| state.software[0].original = brk, "software[0].original", FieldError::OwnBreakpoint);
    bad(|state| state.software[0].names.clear(), "software[0].names", FieldError::Empty);
    bad(|state| state.software[0].names.reverse(), "software[0].names[1]", FieldError::Order);
    let offset = FieldError::PageOffset { name: TEXT + 0x14, physical: 0x8001_0010 };
    bad(|state| state.software[0].names[1] = TEXT + 0x14, "software[0].names[1]", offset);
}

#[test]
fn vcpus() {
    bad(|state| state.vcpus.clear(), "vcpus", FieldError::Empty);
    let because = "nothing has run since the stop in reported";
    bad(|state| state.vcpus[1].mode = VcpuMode::Running, "vcpus[1].mode", FieldError::NotStopped { because });
    let pending = GuestDebugState { reported: None, ..sample() };
    let because = "stops are pending";
    bad_in(
        pending,
        |state| state.vcpus[1].mode = VcpuMode::Stepping,
        "vcpus[1].mode",
        FieldError::NotStopped { because },
    );
    let backwards = |state: &mut GuestDebugState| {
        state.vcpus[2].mode = VcpuMode::SteppingRange(StepRange { start: 8, end: 4 });
    };
    bad_in(running(), backwards, "vcpus[2].mode.end", FieldError::Range { start: 8, end: 4 });
}

#[test]
fn the_number_of_vcpus_is_the_vms() {
    let ram = Arc::new(GuestMemoryMmap::<()>::new());
    for restore in [Restore::Arm, Restore::Dormant] {
        let error = <DebugSession>::from_state(sample(), 3, CAPS, Arc::new(ram.clone()), restore).unwrap_err();
        assert!(matches!(error, SessionError::State(StateError::VcpuCount { found: 2, expected: 3 })), "{error}");
    }
}

#[test]
fn stops() {
    let nobody = || FieldError::Vcpu { vcpu: 9, count: 2 };
    let nobodys = |stop: &mut StopState| stop.vcpu = 9;
    bad(|state| state.reported.iter_mut().for_each(nobodys), "reported.vcpu", nobody());
    bad(|state| state.pending.iter_mut().for_each(nobodys), "pending[0].vcpu", nobody());
    bad(|state| state.put_aside.iter_mut().for_each(nobodys), "put_aside[0].vcpu", nobody());
    let elsewhere = FieldError::Pc { pc: 4, address: TEXT };
    bad(|state| state.reported.iter_mut().for_each(|stop| stop.pc = 4), "reported.pc", elsewhere);
    let moved = |state: &mut GuestDebugState| state.pending[0].reason = StopReasonState::SoftwareBreakpoint(4);
    bad(moved, "pending[0].pc", FieldError::Pc { pc: TEXT + 0x40, address: 4 });
    let reason = |reason, problem| bad(|state| state.pending[0].reason = reason, "pending[0].reason", problem);
    let misaligned = |address| FieldError::from(DbgRegError::Misaligned { address });
    reason(StopReasonState::SoftwareBreakpoint(6), misaligned(6));
    reason(StopReasonState::HardwareBreakpoint(6), misaligned(6));
    let beyond = 1 << 60;
    reason(StopReasonState::HardwareBreakpoint(beyond), DbgRegError::NonCanonical { address: beyond }.into());
    let hit = WatchHit { kind: WatchKind::Read, address: beyond };
    reason(StopReasonState::Watchpoint(hit), WatchError::NonCanonical { address: beyond }.into());
    let more = |list: &mut Vec<StopState>, count| *list = vec![list[0]; count];
    bad(|state| more(&mut state.pending, 7), "pending", FieldError::TooMany { count: 7, most: 6 });
    bad(|state| more(&mut state.put_aside, 3), "put_aside", FieldError::TooMany { count: 3, most: 2 });
    for reason in [StopReasonState::Step, StopReasonState::Interrupt] {
        bad(|state| state.put_aside[0].reason = reason, "put_aside[0].reason", FieldError::Reason);
    }
    let aside = GuestDebugState { put_aside: sample().put_aside, ..running() };
    let because = "its stop is put aside";
    let state = StateError::Field { field: "vcpus[1].mode".into(), problem: FieldError::NotStopped { because } };
    assert_eq!(check(&aside), Err(state));
}

#[test]
fn rules() {
    let since = FieldError::TooNew { version: 1, since: 2 };
    bad(|state| state.version = 1, "rules", since);
    bad(|state| state.rules.swap(0, 1), "rules[1].breakpoint", FieldError::Order);
    let breakpoint = |at: usize, breakpoint, problem: FieldError| {
        let path = format!("rules[{at}].breakpoint");
        bad(|state| state.rules[at].breakpoint = breakpoint, &path, problem);
    };
    let misaligned = |address| FieldError::from(DbgRegError::Misaligned { address });
    breakpoint(0, BreakpointState::Hardware(6), misaligned(6));
    breakpoint(1, BreakpointState::Software(6), misaligned(6));
    let empty = WatchState { address: 8, length: 0, kind: WatchKind::Read };
    breakpoint(2, BreakpointState::Watch(empty), WatchError::Empty { address: 8 }.into());
    let many = || FieldError::TooMany { count: 17, most: 16 };
    bad(|state| state.rules[0].conditions = vec![X0_IS_5.to_vec(); 17], "rules[0].conditions", many());
    bad(|state| state.rules[1].commands = vec![PRINTS_HI.to_vec(); 17], "rules[1].commands", many());
    let prints = ExpressionError::Prints { at: 4 };
    bad(|state| state.rules[1].conditions[1] = PRINTS_HI.to_vec(), "rules[1].conditions[1]", prints.into());
    let underflow = ExpressionError::Underflow { at: 0, height: 0, needed: 2 };
    bad(|state| state.rules[1].commands[0] = vec![2, 0x27], "rules[1].commands[0]", underflow.into());
    let numbered = |index: u64| rule(BreakpointState::Hardware(index * 4));
    let count = FieldError::TooMany { count: 1025, most: 1024 };
    bad(|state| state.rules = (0..1025).map(numbered).collect(), "rules", count);
    // `goto` over everything behind it, to an `end` that has a value to answer.
    let long = [[0x22_u8, 1, 0x29].repeat(1364), vec![0x22, 1, 0x27]].concat();
    let length = 65 * long.len();
    let full = |index: u64| RuleState { conditions: vec![long.clone(); 13], ..numbered(index) };
    bad(|state| state.rules = (0..5).map(full).collect(), "rules", FieldError::Bytecode { length });
}

prop_compose! {
    fn any_stop()(vcpu: u32, pc: u64, which in 0..6, address: u64) -> StopState {
        let reason = match which {
            0 => StopReasonState::Step,
            1 => StopReasonState::HardwareBreakpoint(address),
            2 => StopReasonState::SoftwareBreakpoint(address),
            3 => StopReasonState::Watchpoint(WatchHit { kind: WatchKind::Access, address }),
            4 => StopReasonState::Interrupt,
            _ => StopReasonState::Unsupported(UnsupportedState::VectorCatch),
        };
        StopState { vcpu, pc, reason }
    }
}

prop_compose! {
    fn any_vcpu()(which in 0..4, start: u64, end: u64, told: Option<(u64, Vec<u64>)>) -> VcpuDebugState {
        let mode = match which {
            0 => VcpuMode::Running,
            1 => VcpuMode::Stopped,
            2 => VcpuMode::Stepping,
            _ => VcpuMode::SteppingRange(StepRange { start, end }),
        };
        VcpuDebugState { mode, told: told.map(|(pc, watches)| ToldState { pc, watches }) }
    }
}

prop_compose! {
    fn any_rule()(
        which in 0..3,
        (address, length) in any::<(u64, u64)>(),
        (conditions, commands) in any::<(Vec<Vec<u8>>, Vec<Vec<u8>>)>(),
        (ignore, reached, hits) in any::<(u64, u64, u64)>(),
    ) -> RuleState {
        let breakpoint = match which {
            0 => BreakpointState::Hardware(address),
            1 => BreakpointState::Software(address),
            _ => BreakpointState::Watch(WatchState { address, length, kind: WatchKind::Access }),
        };
        RuleState { breakpoint, conditions, commands, ignore, reached, hits }
    }
}

prop_compose! {
    /// Any state that can be written, good or bad.
    fn any_state()(
        (attached, held, selected_vcpu) in any::<(bool, bool, Option<u32>)>(),
        hardware: Vec<u64>,
        watches: Vec<(u64, u64)>,
        software: Vec<(u64, [u8; 4], Vec<u64>)>,
        vcpus in prop::collection::vec(any_vcpu(), 0..8),
        reported in prop::option::of(any_stop()),
        pending in prop::collection::vec(any_stop(), 0..4),
        put_aside in prop::collection::vec(any_stop(), 0..4),
        rules in prop::collection::vec(any_rule(), 0..4),
    ) -> GuestDebugState {
        let watch = |(address, length)| WatchState { address, length, kind: WatchKind::Read };
        let planted = |(physical, original, names)| SoftwareState { physical, original, names };
        GuestDebugState {
            version: STATE_VERSION,
            architecture: Architecture::Aarch64,
            attached,
            held,
            selected_vcpu,
            hardware,
            watches: watches.into_iter().map(watch).collect(),
            software: software.into_iter().map(planted).collect(),
            vcpus,
            reported,
            pending,
            put_aside,
            rules,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_state_is_checked_without_panic(state in any_state()) {
        let _ = fits(&state, &CAPS);
        let ram = Arc::new(GuestMemoryMmap::<()>::new());
        let _ = <DebugSession>::from_state(&state, 2, CAPS, Arc::new(ram), Restore::Dormant);
    }
}

#[cfg(feature = "serde")]
mod json {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn round_trip(state in any_state()) {
            let text = serde_json::to_string(&state).unwrap();
            prop_assert_eq!(serde_json::from_str::<GuestDebugState>(&text).unwrap(), state);
        }
    }

    /// A newer state has fields and reasons that this build does not know; it must be refused by its version, not by those.
    #[test]
    fn an_older_reader_refuses_a_newer_state_before_decoding_it() {
        let newer = GuestDebugState { version: STATE_VERSION + 1, ..sample() };
        let text = serde_json::to_string(&newer).unwrap().replace("hardware_breakpoint", "not_thought_of");
        let error = serde_json::from_str::<GuestDebugState>(&text).unwrap_err().to_string();
        assert!(error.starts_with("version: the state has version 3, this build reads 1 to 2"), "{error}");
    }

    /// The example in docs/state-format.md is a state, and has every field there is.
    #[test]
    fn the_documented_example_is_a_state() {
        let document = include_str!("../../../docs/state-format.md");
        let (_, example) = document.split_once("```json\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let state: GuestDebugState = serde_json::from_str(example).unwrap();
        assert_eq!(check(&state), Ok(()));
        let value: serde_json::Value = serde_json::from_str(example).unwrap();
        assert_eq!(value, serde_json::to_value(&state).unwrap());
        for name in value.as_object().unwrap().keys() {
            assert!(document.contains(&format!("| `{name}")), "{name} is in the table of fields");
        }
    }

    /// What version 1 wrote is read for ever.
    #[test]
    fn golden_version_1() {
        let golden = include_str!("data/state-v1.json");
        let states = [sample(), running()].map(version_1);
        assert_eq!(serde_json::from_str::<[GuestDebugState; 2]>(golden).unwrap(), states);
        assert!(states.iter().all(|state| check(state) == Ok(())));
    }

    /// What version 2 wrote is read for ever, and is still what is written.
    #[test]
    fn golden_version_2() {
        let golden = include_str!("data/state-v2.json");
        let states = [sample(), running()];
        assert_eq!(serde_json::from_str::<[GuestDebugState; 2]>(golden).unwrap(), states);
        assert_eq!(serde_json::to_string_pretty(&states).unwrap(), golden.trim_end());
    }

    #[test]
    fn instructions_are_read_as_they_are_written() {
        let read = |original: &str| {
            let text = format!(r#"{{"physical": 4, "original": {original}, "names": [4]}}"#);
            serde_json::from_str::<SoftwareState>(&text).map(|software| software.original)
        };
        assert_eq!(read(r#""1F2003d5""#).unwrap(), [0x1f, 0x20, 3, 0xd5]);
        assert_eq!(read("[31, 32, 3, 213]").unwrap(), [0x1f, 0x20, 3, 0xd5], "as version 1 has it");
        let strings = [r#""""#, r#""1f2003""#, r#""1f2003d5d5""#, r#""1f2003dg""#, r#""+f2003d5""#, r#""1f2003é""#];
        let others = ["[1, 2, 3]", "[1, 2, 3, 4, 5]", "[1, 2, 3, 256]", "5", "null"];
        for bad in strings.into_iter().chain(others) {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read(strings[0]).unwrap_err().to_string().contains("eight hexadecimal digits"));
    }
}

#[cfg(feature = "versionize")]
mod versioned {
    use super::*;
    use guest_debug::state::versioned::{MAX_LENGTH, VersionedError, read, write};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn round_trip(state in any_state()) {
            prop_assert_eq!(read(&write(&state).unwrap()).unwrap(), state);
        }
    }

    /// What version 1 wrote is read for ever, and is still what is written.
    #[test]
    fn golden_version_1() {
        let golden: [&[u8]; 2] =
            [include_bytes!("data/state-v1-stopped.versionize"), include_bytes!("data/state-v1-running.versionize")];
        for (bytes, state) in golden.into_iter().zip([sample(), running()].map(version_1)) {
            assert_eq!(read(bytes).unwrap(), state);
            assert_eq!(write(&state).unwrap(), bytes);
        }
    }

    /// What version 2 wrote is read for ever, and is still what is written.
    #[test]
    fn golden_version_2() {
        let golden: [&[u8]; 2] =
            [include_bytes!("data/state-v2-stopped.versionize"), include_bytes!("data/state-v2-running.versionize")];
        for (bytes, state) in golden.into_iter().zip([sample(), running()]) {
            assert_eq!(read(bytes).unwrap(), state);
            assert_eq!(write(&state).unwrap(), bytes);
        }
    }

    #[test]
    fn an_older_reader_refuses_a_newer_state_before_decoding_it() {
        for found in [0, STATE_VERSION + 1, 1 << 16 | 1] {
            let error = read(&found.to_le_bytes()).unwrap_err();
            assert!(matches!(error, VersionedError::Version { found: it } if it == found), "{error}");
            let error = write(&GuestDebugState { version: found, ..sample() }).unwrap_err();
            assert!(matches!(error, VersionedError::Version { found: it } if it == found), "{error}");
        }
        let message = read(&3_u32.to_le_bytes()).unwrap_err().to_string();
        assert_eq!(message, "the debug state has version 3, this build reads 1 to 2");
    }

    #[test]
    fn length() {
        let bytes = write(&sample()).unwrap();
        for length in 0..bytes.len() {
            let error = read(&bytes[..length]).unwrap_err();
            let cut = matches!(error, VersionedError::Truncated { found } if found == length);
            assert_eq!(cut, length < 4, "{error}");
        }
        let more = [bytes, vec![0; 3]].concat();
        assert!(matches!(read(&more), Err(VersionedError::Trailing { count: 3 })));
        let found = MAX_LENGTH + 1;
        assert!(matches!(read(&vec![0; found]), Err(VersionedError::TooLong { found: it }) if it == found));
    }

    #[test]
    fn a_list_that_claims_to_be_long_is_refused() {
        // version, architecture, attached, held, selected_vcpu, length of hardware
        let mut bytes = write(&GuestDebugState { selected_vcpu: None, ..sample() }).unwrap();
        bytes[11..19].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = read(&bytes).unwrap_err();
        assert!(matches!(error, VersionedError::Versionize(_)), "{error}");
        assert!(write(&GuestDebugState { hardware: vec![0; 2 << 20], ..sample() }).is_err(), "what is not read");
    }
}
