//! A VM that moves: by a snapshot and by a migration, with breakpoints that the guest owns and with those of a debugger,
//! armed before the move and hit after it.
//!
//! Needs an arm64 host with /dev/kvm; elsewhere its tests are ignored, and say so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

/// The tests below are not compiled elsewhere; this one says so, and is counted as skipped there.
#[test]
#[cfg_attr(not(target_arch = "aarch64"), ignore = "guests need an arm64 host with /dev/kvm")]
fn this_is_an_arm64_host() {}

#[cfg(target_arch = "aarch64")]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "guest_code! assembles")]
mod tests {
    use crate::support::client::{BOOT, Client, event};
    use crate::support::{Guest, Output, guest_code};
    use guest_debug::arm64::Reg;
    use guest_debug::{Breakpoint, Gva, ResumeAction, StopReason, VcpuId, WatchKind};
    use guest_debug_gdb::Stream;
    use reference_vmm::config::{DebugLimits, DebugMode};
    use reference_vmm::control::Request;
    use reference_vmm::error::VmError;
    use reference_vmm::kvm::{Machine, Receiver, Vm};
    use reference_vmm::migration::{self, Connection};
    use reference_vmm::operations::Operations;
    use reference_vmm::snapshot::Snapshot;
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::tempdir::TempDir;

    const BASE: u64 = 0x8000_0000;
    const DATA: u64 = 0x8010_0000;

    /// A VM that runs on a thread of its own until it is dropped.
    struct Running {
        vm: Arc<Vm>,
        thread: Option<JoinHandle<Result<(), VmError>>>,
    }

    impl Running {
        fn start(vm: Arc<Vm>) -> Self {
            let running = vm.clone();
            Self { vm, thread: Some(thread::spawn(move || running.run())) }
        }

        fn read<const N: usize>(&self, address: u64) -> [u64; N] {
            std::array::from_fn(|i| self.vm.ram().read_obj(GuestAddress(address + 8 * i as u64)).unwrap())
        }

        fn write(&self, address: u64, value: u64) {
            self.vm.ram().write_obj(value, GuestAddress(address)).unwrap();
        }

        fn wait_for(&self, address: u64, value: u64) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while self.read::<1>(address) != [value] {
                assert!(Instant::now() < deadline, "{address:#x} has never become {value}");
                thread::sleep(Duration::from_millis(5));
            }
        }

        fn client(&self) -> Client {
            let session = self.vm.session().unwrap().clone();
            session.attach().unwrap();
            Client(session)
        }

        /// The guest powers itself off.
        fn finish(mut self) {
            self.thread.take().unwrap().join().unwrap().unwrap();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.vm.control().request(Request::Quit);
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    /// A way to move a VM.
    type Move = fn(&Running, DebugMode, DebugLimits) -> Result<Running, VmError>;

    const MOVES: [Move; 2] = [by_snapshot, by_migration];

    fn by_snapshot(from: &Running, debug: DebugMode, limits: DebugLimits) -> Result<Running, VmError> {
        let directory = TempDir::new().unwrap();
        let name = directory.as_path().join("snapshot");
        from.vm.snapshot(&name, &mut drop)?;
        let snapshot = Snapshot::open(&name)?;
        let machine = Machine::like(&snapshot.state.machine, Box::new(Output::default()))?;
        snapshot.load_memory(machine.ram())?;
        Vm::restored(machine, &snapshot.state, debug, &limits).map(|vm| Running::start(Arc::new(vm)))
    }

    fn by_migration(from: &Running, debug: DebugMode, limits: DebugLimits) -> Result<Running, VmError> {
        by_migration_with(from, debug, limits, &mut drop)
    }

    fn by_migration_with(
        from: &Running,
        debug: DebugMode,
        limits: DebugLimits,
        progress: &mut dyn FnMut(String),
    ) -> Result<Running, VmError> {
        let (here, there) = UnixStream::pair().unwrap();
        let receiving = thread::spawn(move || {
            let connection = Connection::new(Stream::Unix(there)).unwrap();
            let output: reference_vmm::serial::Output = Box::<Output>::default();
            let receiver = Receiver { output: Mutex::new(Some(output)), debug, limits };
            migration::receive(&receiver, &connection, &mut drop)
        });
        let connection = Connection::new(Stream::Unix(here)).unwrap();
        let sent = migration::migrate(&*from.vm, &connection, progress);
        drop(connection);
        let received = receiving.join().unwrap();
        match sent {
            Ok(report) => {
                assert!(report.passes >= 1 && report.pages > 0, "{report}");
                assert!(from.vm.has_moved());
                Ok(Running::start(Arc::new(received.unwrap())))
            }
            Err(error) => {
                assert!(received.is_err());
                Err(error)
            }
        }
    }

    fn boot(code: &[u8], cpus: u32, debug: DebugMode) -> Option<Guest> {
        Guest::new(code, |config| {
            config.cpus = cpus;
            config.debug = debug;
        })
    }

    // Arms what the doubleword at DATA+24 says (0 a breakpoint on 5, 1 a watchpoint on DATA+32, 2 a single-step), says so
    // at DATA, waits for DATA+8, and runs into it. The vector stores ESR_EL1 and ELR_EL1 at DATA+16 and DATA+40.
    guest_code!(
        owns_its_debug_registers,
        "movz x9, #0x8010, lsl #16",
        "ldr x10, [x9, #24]",
        "movz x11, #0x8000, lsl #16",
        "add x11, x11, #0x800",
        "msr vbar_el1, x11",
        "msr oslar_el1, xzr",
        "adr x12, 5f",
        "msr dbgbvr0_el1, x12",
        "add x13, x9, #32",
        "msr dbgwvr0_el1, x13",
        "mov x14, #0xa000",
        "cbnz x10, 1f",
        "mov x15, #0x1e3",
        "msr dbgbcr0_el1, x15",
        "b 3f",
        "1: cmp x10, #1",
        "b.ne 2f",
        "mov x15, #0x1ffb",
        "msr dbgwcr0_el1, x15",
        "b 3f",
        "2: orr x14, x14, #1",
        "3: msr mdscr_el1, x14",
        "isb",
        "mov x16, #1",
        "str x16, [x9]",
        "4: ldr x16, [x9, #8]",
        "cbz x16, 4b",
        "msr daifclr, #8",
        "5: nop",
        "str xzr, [x9, #32]",
        "6: mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0",
        ".skip 0xa00 - (. - owns_its_debug_registers_start)",
        "mrs x17, esr_el1",
        "str x17, [x9, #16]",
        "mrs x17, elr_el1",
        "str x17, [x9, #40]",
        "b 6b",
    );

    /// Offset of label 5.
    const TARGET: u64 = 28 * 4;

    #[test]
    fn what_the_guest_armed_hits_after_the_move() {
        // Exception classes of a breakpoint, a watchpoint and a step from the same level (Arm ARM, ESR_EL1.EC).
        for (kind, class, place) in [(0_u64, 0x31, TARGET), (1, 0x35, TARGET + 4), (2, 0x33, TARGET)] {
            for travel in MOVES {
                let Some(guest) = boot(owns_its_debug_registers(), 1, DebugMode::Off) else { return };
                guest.vm.ram().write_obj(kind, GuestAddress(DATA + 24)).unwrap();
                let source = Running::start(Arc::new(guest.vm));
                source.wait_for(DATA, 1);
                let there = travel(&source, DebugMode::Off, DebugLimits::default()).unwrap();
                drop(source);
                there.write(DATA + 8, 1);
                there.wait_for(DATA + 40, BASE + place);
                assert_eq!(there.read::<1>(DATA + 16)[0] >> 26, class, "kind {kind}");
                there.finish();
            }
        }
    }

    // vCPU 0 powers vCPU 1 on. vCPU 1 counts at DATA+8. vCPU 0 goes round 1: it waits for DATA, and clears it.
    guest_code!(
        rounds,
        "movz x9, #0x8010, lsl #16",
        "movz w0, #0xc400, lsl #16",
        "movk w0, #3",
        "mov x1, #1",
        "adr x2, 2f",
        "mov x3, x9",
        "hvc #0",
        "1: ldr x10, [x9]",
        "cbz x10, 1b",
        "nop",
        "nop",
        "str xzr, [x9]",
        "b 1b",
        "2: add x11, x11, #1",
        "str x11, [x0, #8]",
        "b 2b",
    );

    const FIRST_NOP: u64 = BASE + 9 * 4;
    const SECOND_NOP: u64 = BASE + 10 * 4;
    const STORE: u64 = BASE + 11 * 4;

    fn points() -> [Breakpoint; 3] {
        let watch = Breakpoint::Watch { kind: WatchKind::Write, address: Gva(DATA), length: 8 };
        [Breakpoint::Hardware(Gva(FIRST_NOP)), Breakpoint::Software(Gva(SECOND_NOP)), watch]
    }

    /// The stops of a round, and where each is.
    fn stops() -> [(StopReason, u64); 3] {
        [
            (StopReason::HardwareBreakpoint(Gva(FIRST_NOP)), FIRST_NOP),
            (StopReason::SoftwareBreakpoint(Gva(SECOND_NOP)), SECOND_NOP),
            (StopReason::Watchpoint { kind: WatchKind::Write, address: Gva(DATA) }, STORE),
        ]
    }

    /// The second vCPU runs, and everything is inserted.
    fn prepared() -> Option<(Running, Client)> {
        let guest = boot(rounds(), 2, DebugMode::Run)?;
        let source = Running::start(Arc::new(guest.vm));
        while source.read::<1>(DATA + 8) == [0] {
            thread::yield_now();
        }
        let client = source.client();
        points().into_iter().for_each(|point| client.insert(point));
        Some((source, client))
    }

    fn round(vm: &Running, client: &Client) {
        if client.get(BOOT, Reg::Pc) == STORE {
            // The end of the last round: the store was reported, and is yet to be made.
            assert_eq!(client.step(BOOT), event(0, StopReason::Step));
        }
        vm.write(DATA, 1);
        for (reason, pc) in stops() {
            assert_eq!(client.resume(), event(0, reason));
            assert_eq!(client.get(BOOT, Reg::Pc), pc);
        }
    }

    #[test]
    fn what_a_debugger_armed_hits_after_the_move_while_the_guest_runs() {
        for travel in MOVES {
            let Some((source, client)) = prepared() else { return };
            client.0.resume(&[]).unwrap();
            let there = travel(&source, DebugMode::Run, DebugLimits::default()).unwrap();
            drop(source);
            let counted = there.read::<1>(DATA + 8);
            while there.read::<1>(DATA + 8) == counted {
                thread::yield_now();
            }
            // Nobody is attached, and all that was inserted is in force: the guest stops, and waits for a client.
            there.write(DATA, 1);
            while there.vm.session().unwrap().vcpu_states().contains(&guest_debug::VcpuState::Running) {
                thread::yield_now();
            }
            let client = there.client();
            assert_eq!(client.stop(), event(0, stops()[0].0));
            for (reason, pc) in &stops()[1..] {
                assert_eq!(client.resume(), event(0, *reason));
                assert_eq!(client.get(BOOT, Reg::Pc), *pc);
            }
            round(&there, &client);
            for point in points() {
                client.0.remove(point).unwrap();
            }
            assert_eq!(there.read::<1>(FIRST_NOP), [0xd503_201f_d503_201f], "the guest's code is its own");
        }
    }

    #[test]
    fn what_a_client_changes_while_memory_goes_over_goes_with_it() {
        let Some((source, client)) = prepared() else { return };
        let mut changed = false;
        let there = by_migration_with(&source, DebugMode::Run, DebugLimits::default(), &mut |line| {
            // Behind the first pass: the other side has planted what it was offered.
            if !changed && !line.starts_with("pass 1") {
                client.0.remove(Breakpoint::Software(Gva(SECOND_NOP))).unwrap();
                client.insert(Breakpoint::Software(Gva(FIRST_NOP)));
                changed = true;
            }
        });
        let there = there.unwrap();
        assert!(changed);
        drop(source);
        let client = there.client();
        assert_eq!(there.read::<1>(FIRST_NOP), [0xd503_201f_d42c_fb60], "the new one, and not the old one");
        client.0.remove(Breakpoint::Software(Gva(FIRST_NOP))).unwrap();
        assert_eq!(there.read::<1>(FIRST_NOP), [0xd503_201f_d503_201f]);
    }

    #[test]
    fn a_stop_is_told_again_to_the_next_client() {
        for travel in MOVES {
            for (index, (reason, pc)) in stops().into_iter().enumerate() {
                let Some((source, client)) = prepared() else { return };
                source.write(DATA, 1);
                for _ in 0..=index {
                    let _ = client.resume();
                }
                let there = travel(&source, DebugMode::Run, DebugLimits::default()).unwrap();
                drop(source);
                let client = there.client();
                assert_eq!(client.stop(), event(0, reason));
                assert_eq!(client.get(BOOT, Reg::Pc), pc);
                assert_eq!(client.0.breakpoints().len(), 3);
                for (reason, pc) in &stops()[index + 1..] {
                    assert_eq!(client.resume(), event(0, *reason));
                    assert_eq!(client.get(BOOT, Reg::Pc), *pc);
                }
                round(&there, &client);
            }
        }
    }

    #[test]
    fn a_step_goes_on_after_the_move() {
        for travel in MOVES {
            let Some((source, client)) = prepared() else { return };
            for point in points() {
                let _ = client.0.remove(point).unwrap();
            }
            // A range that vCPU 0 can't leave before DATA is set.
            let inside = BASE + 7 * 4..BASE + 9 * 4;
            client.0.resume(&[(BOOT, ResumeAction::StepRange(inside))]).unwrap();
            thread::sleep(Duration::from_millis(20));
            let there = travel(&source, DebugMode::Run, DebugLimits::default()).unwrap();
            drop(source);
            there.write(DATA, 1);
            thread::sleep(Duration::from_millis(20));
            // Nobody waits for it, so it is kept.
            while there.vm.session().unwrap().vcpu_states()[0] != guest_debug::VcpuState::Stopped {
                thread::yield_now();
            }
            let client = there.client();
            assert_eq!(client.stop(), event(0, StopReason::Step));
            assert_eq!(client.get(BOOT, Reg::Pc), FIRST_NOP);
        }
    }

    #[test]
    fn a_session_that_does_not_fit_stays_where_it_is() {
        let none = DebugLimits { watchpoints: Some(0), ..DebugLimits::default() };
        for travel in MOVES {
            let Some((source, client)) = prepared() else { return };
            let error = travel(&source, DebugMode::Run, none).map(drop).unwrap_err().to_string();
            assert!(error.contains("watchpoint") && error.contains('1') && error.contains('0'), "{error}");
            assert!(!source.vm.has_moved());
            round(&source, &client);
            assert_eq!(client.0.breakpoints().len(), 3);
        }
    }

    #[test]
    fn too_few_breakpoints_are_stood_in_for() {
        let none = DebugLimits { breakpoints: Some(0), ..DebugLimits::default() };
        for travel in MOVES {
            let Some((source, _)) = prepared() else { return };
            let there = travel(&source, DebugMode::Run, none).unwrap();
            drop(source);
            let client = there.client();
            assert_eq!(client.0.caps().hw_bps, 0);
            round(&there, &client);
        }
    }

    #[test]
    fn a_session_sleeps_through_a_move_without_a_debugger() {
        for travel in MOVES {
            let Some((source, _)) = prepared() else { return };
            source.write(DATA, 1);
            let asleep = travel(&source, DebugMode::Off, DebugLimits::default()).unwrap();
            drop(source);
            // Everything runs as if nobody had ever debugged it.
            asleep.wait_for(DATA, 0);
            assert_eq!(asleep.read::<1>(FIRST_NOP), [0xd503_201f_d503_201f]);
            let awake = travel(&asleep, DebugMode::Run, DebugLimits::default()).unwrap();
            drop(asleep);
            let client = awake.client();
            assert_eq!(client.0.breakpoints().len(), 3);
            round(&awake, &client);
        }
    }

    #[test]
    fn held_means_held_after_a_move() {
        let Some((source, client)) = prepared() else { return };
        client.0.resume(&[]).unwrap();
        let there = by_snapshot(&source, DebugMode::Hold, DebugLimits::default()).unwrap();
        let counted = there.read::<1>(DATA + 8);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(there.read::<1>(DATA + 8), counted);
        let client = there.client();
        assert_eq!(client.0.breakpoints().len(), 3);
        round(&there, &client);
    }

    #[test]
    fn the_source_of_a_snapshot_goes_on() {
        let Some((source, client)) = prepared() else { return };
        source.write(DATA, 1);
        let _ = client.resume();
        let copies: Vec<_> =
            (0..3).map(|_| by_snapshot(&source, DebugMode::Run, DebugLimits::default()).unwrap()).collect();
        for vm in &copies {
            let client = vm.client();
            assert_eq!(client.stop(), event(0, stops()[0].0));
            assert_eq!(client.resume(), event(0, stops()[1].0));
        }
        assert_eq!(client.resume(), event(0, stops()[1].0));
        let counter = |vcpu| client.get(vcpu, Reg::X(11));
        assert!(counter(VcpuId(1)) > 0);
    }

    #[test]
    fn a_vm_that_was_moved_ends_here() {
        let Some((source, _)) = prepared() else { return };
        let there = by_migration(&source, DebugMode::Run, DebugLimits::default()).unwrap();
        let error = source.vm.snapshot(&std::env::temp_dir().join("never"), &mut drop).unwrap_err();
        assert!(matches!(error, VmError::Busy(_)), "{error}");
        source.finish();
        drop(there);
    }
}
