//! The PC on KVM: what it boots, how it ends, and a debug session in it.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "tests")]

use guest_debug::x86_64::Reg;
use guest_debug::{Breakpoint, DebugVcpu as _, Gva, ResumeAction, StopReason, VcpuId};
use reference_vmm::config::{DebugMode, VmConfig};
use reference_vmm::control::Request;
use reference_vmm::pc::Vm;
use reference_vmm::pc::layout::{HIGH_RAM, STACK, ZERO_PAGE};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::tempfile::TempFile;

const V0: VcpuId = VcpuId(0);

const NOP: &[u8] = &[0x90];
/// INC RBX
const COUNT: &[u8] = &[0x48, 0xff, 0xc3];
/// JMP to itself
const SPIN: &[u8] = &[0xeb, 0xfe];
/// MOV DX, 0x3f8; MOV AL, '!'; OUT DX, AL
const PRINT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee];
/// MOV DX, 0x604; MOV AX, 0x2000; OUT DX, AX
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef];
/// MOV AL, 0xfe; OUT 0x64, AL
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// LIDT of nothing and UD2: a triple fault. UD2 alone does it, there is no handler.
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// INC QWORD [0x20_0000], which a reset leaves alone; CMP QWORD [0x20_0000], 3; JAE over the next four bytes.
const THREE_TIMES: &[u8] =
    &[0x48, 0xff, 0x04, 0x25, 0, 0, 0x20, 0, 0x48, 0x83, 0x3c, 0x25, 0, 0, 0x20, 0, 3, 0x73, 0x04];

/// A VM that runs, and what it has printed.
struct Running {
    vm: Arc<Vm>,
    printed: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Running {
    /// `None`, and the test says that it is skipped, without KVM.
    fn start(code: &[&[u8]], cpus: u32, debug: DebugMode) -> Option<Self> {
        if !std::path::Path::new("/dev/kvm").exists() {
            skipped("there is no /dev/kvm");
            return None;
        }
        let file = TempFile::new().unwrap();
        file.as_file().write_all(&code.concat()).unwrap();
        let running = Self::of(&VmConfig { cpus, memory_mib: 16, debug, ..VmConfig::new(file.as_path()) });
        if let Some(session) = running.vm.session() {
            session.attach().unwrap();
        }
        Some(running)
    }

    fn of(config: &VmConfig) -> Self {
        let printed = Arc::<Mutex<Vec<u8>>>::default();
        let vm = Arc::new(Vm::new(config, Box::new(Sink(printed.clone()))).unwrap());
        let running = vm.clone();
        let thread = std::thread::spawn(move || running.run().map_err(|error| error.to_string()));
        Self { vm, printed, thread: Some(thread) }
    }

    fn get(&self, vcpu: usize, reg: Reg) -> u64 {
        self.vm.vcpus()[vcpu].get_u64(reg).unwrap()
    }

    fn go(&self, actions: &[(VcpuId, ResumeAction)]) -> StopReason {
        let session = self.vm.session().unwrap();
        session.resume(actions).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(stop) = session.take_stop().unwrap() {
                return stop.reason;
            }
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended && Instant::now() < deadline, "the guest did not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it run to its end.
    fn end(mut self) -> (Result<(), String>, String) {
        if let Some(session) = self.vm.session().filter(|session| session.attached()) {
            session.detach().unwrap();
        }
        let result = self.thread.take().unwrap().join().unwrap();
        (result, String::from_utf8(self.printed.lock().unwrap().clone()).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.vm.control().request(Request::Quit);
        if let Some(session) = self.vm.session().filter(|session| session.attached()) {
            let _ = session.detach();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn skipped(reason: &str) {
    let test = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {reason}", test.name().unwrap_or("a test"));
}

#[test]
fn a_flat_payload_prints_and_powers_off() {
    let Some(vm) = Running::start(&[PRINT, POWER_OFF], 1, DebugMode::Off) else { return };
    assert_eq!(vm.end(), (Ok(()), "!".to_owned()));
}

#[test]
fn a_reset_boots_again() {
    for reset in [&[RESET][..], &[TRIPLE_FAULT, NOP, NOP]] {
        let Some(vm) = Running::start(&[&[PRINT, THREE_TIMES], reset, &[POWER_OFF]].concat(), 1, DebugMode::Off) else {
            return;
        };
        assert_eq!(vm.end(), (Ok(()), "!!!".to_owned()));
    }
}

#[test]
fn the_first_instruction_finds_what_linux_would() {
    let Some(vm) = Running::start(&[POWER_OFF], 1, DebugMode::Hold) else { return };
    let registers = [Reg::Rip, Reg::Rsi, Reg::Rsp, Reg::Eflags, Reg::Cs, Reg::Efer];
    let values = registers.map(|reg| vm.get(0, reg));
    assert_eq!(values, [HIGH_RAM, ZERO_PAGE, STACK, 2, 0x10, 0x500]);
    let session = vm.vm.session().unwrap();
    // `header` and `boot_flag` of the setup header, and a byte of the payload through the guest's own tables.
    assert_eq!(session.read_memory(V0, Gva(ZERO_PAGE + 0x202), 4).unwrap(), b"HdrS");
    assert_eq!(session.read_memory(V0, Gva(HIGH_RAM), 4).unwrap(), POWER_OFF[..4]);
    assert_eq!(vm.end().0, Ok(()));
}

#[test]
fn linux_boots_on_two_vcpus_is_stepped_and_powers_off() {
    let files = ["KERNEL", "INITRD"].map(|name| std::env::var_os(format!("GUEST_DEBUG_FILE_{name}")));
    let [Some(kernel), Some(initrd)] = files else { return skipped("no kernel and initramfs were given") };
    let cmdline = "console=ttyS0 quiet nokaslr mitigations=off tsc=reliable".to_owned();
    let config = VmConfig {
        initrd: Some(initrd.into()),
        cmdline,
        cpus: 2,
        memory_mib: 256,
        debug: DebugMode::Run,
        ..VmConfig::new(kernel)
    };
    let vm = Running::of(&config);
    let deadline = Instant::now() + Duration::from_secs(300);
    let printed = || String::from_utf8_lossy(&vm.printed.lock().unwrap()).into_owned();
    while !printed().contains("guest is ready with 2 processors") {
        let ended = vm.thread.as_ref().is_none_or(JoinHandle::is_finished);
        assert!(!ended && Instant::now() < deadline, "it did not boot:\n{}", printed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let session = vm.vm.session().unwrap();
    session.attach().unwrap();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let stop = vm.go(&[(V0, ResumeAction::Step), (VcpuId(1), ResumeAction::Stay)]);
        assert_eq!(stop, StopReason::Step);
        places.insert(vm.get(0, Reg::Rip));
    }
    assert!(places.len() > 5, "{places:x?}");
    let pc = Gva(vm.get(0, Reg::Rip));
    assert!(session.read_memory(V0, pc, 16).is_ok(), "its own page tables lead to its code");
    assert_eq!(vm.end().0, Ok(()), "it powers off");
}

#[test]
fn a_step_over_a_port_executes_it_once() {
    let Some(vm) = Running::start(&[PRINT, NOP, POWER_OFF], 1, DebugMode::Hold) else { return };
    let step = || vm.go(&[(V0, ResumeAction::Step)]);
    if step() != StopReason::Step || vm.get(0, Reg::Rip) != HIGH_RAM + 4 {
        return skipped("this host's KVM has no single-step");
    }
    assert_eq!((step(), step()), (StopReason::Step, StopReason::Step));
    assert_eq!((vm.get(0, Reg::Rip), vm.printed.lock().unwrap().len()), (HIGH_RAM + 7, 1));
    assert_eq!(vm.end(), (Ok(()), "!".to_owned()));
}

#[test]
fn a_breakpoint_stays_over_a_reset() {
    let Some(vm) = Running::start(&[PRINT, COUNT, RESET, SPIN], 1, DebugMode::Hold) else { return };
    let at = HIGH_RAM + PRINT.len() as u64;
    vm.vm.session().unwrap().insert(V0, Breakpoint::Hardware(Gva(at))).unwrap();
    for count in 1..4 {
        let deadline = Instant::now() + Duration::from_secs(5);
        let session = vm.vm.session().unwrap();
        session.resume(&[]).unwrap();
        let stop = loop {
            match session.take_stop().unwrap() {
                Some(stop) => break stop,
                None if Instant::now() > deadline => return skipped("this host's KVM has no execution breakpoints"),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        assert_eq!(stop.reason, StopReason::HardwareBreakpoint(Gva(at)));
        assert_eq!((vm.get(0, Reg::Rbx), vm.printed.lock().unwrap().len()), (0, count));
    }
}

#[test]
fn a_client_stops_a_guest_that_runs() {
    let Some(vm) = Running::start(&[COUNT, &[0xeb, 0xfb]], 2, DebugMode::Run) else { return };
    let session = vm.vm.session().unwrap();
    session.resume(&[]).unwrap();
    session.interrupt();
    let deadline = Instant::now() + Duration::from_secs(30);
    while session.take_stop().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it did not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pc = vm.get(0, Reg::Rip);
    assert!((HIGH_RAM..HIGH_RAM + 5).contains(&pc), "{pc:#x}");
    // The second one waits for the first one's INIT and SIPI.
    assert_eq!(vm.get(1, Reg::Cr0) & 1, 0);
}
