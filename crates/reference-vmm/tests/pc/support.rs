//! VMs for the tests, and what this host's KVM can do for them.

use guest_debug::x86_64::Reg;
use guest_debug::{Breakpoint, DebugVcpu as _, Gva, ResumeAction, StopReason, VcpuId, WatchKind};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use kvm_ioctls::VcpuExit;
use reference_vmm::config::{DebugMode, VmConfig};
use reference_vmm::control::Request;
use reference_vmm::kvm::Vm;
use reference_vmm::pc::layout::HIGH_RAM;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

/// Makes a function `$name() -> &'static [u8]` that answers the code assembled from the lines, which must be
/// position-independent.
macro_rules! guest_code {
    ($name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(stringify!($name), "_start:"),
            $($line,)+
            concat!(stringify!($name), "_end:"),
            ".popsection"
        );

        fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: the labels bound bytes of a read-only section of this binary.
            unsafe {
                std::arch::asm!(
                    concat!("lea {0}, [rip + ", stringify!($name), "_start]"),
                    concat!("lea {1}, [rip + ", stringify!($name), "_end]"),
                    out(reg) start,
                    out(reg) end,
                    options(nomem, nostack, preserves_flags)
                );
                std::slice::from_raw_parts(start, end.addr() - start.addr())
            }
        }
    };
}
pub(crate) use guest_code;

/// vCPU 0.
pub const V0: VcpuId = VcpuId(0);
pub const NOP: &[u8] = &[0x90];
/// MOV DX, 0x604; MOV AX, 0x2000; OUT DX, AX
pub const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef];
/// MOV QWORD [0x20_0000], 0
const STORE: &[u8] = &[0x48, 0xc7, 0x04, 0x25, 0, 0, 0x20, 0, 0, 0, 0, 0];

/// What KVM of this host may have or not.
#[derive(Debug, Clone, Copy)]
pub enum Ability {
    Step,
    /// Execution breakpoints in debug registers.
    Execute,
    /// Exits at INT3.
    Software,
    /// Data watchpoints in debug registers.
    Watch,
}

impl Ability {
    /// Tries it out; where it is missing the test says that it is skipped.
    pub fn is_there(self) -> bool {
        let Some(vm) = Running::start(&[NOP, STORE, POWER_OFF], 1, DebugMode::Hold) else { return false };
        let session = vm.vm.session().unwrap();
        let at = Gva(HIGH_RAM);
        let (breakpoint, expected) = match self {
            Self::Step => (None, StopReason::Step),
            Self::Execute => (Some(Breakpoint::Hardware(at)), StopReason::HardwareBreakpoint(at)),
            Self::Software => (Some(Breakpoint::Software(at)), StopReason::SoftwareBreakpoint(at)),
            Self::Watch => {
                let (kind, address) = (WatchKind::Write, Gva(0x20_0000));
                (Some(Breakpoint::Watch { kind, address, length: 8 }), StopReason::Watchpoint { kind, address })
            }
        };
        if let Some(breakpoint) = breakpoint {
            session.insert(V0, breakpoint).unwrap();
        }
        let action = if matches!(self, Self::Step) { ResumeAction::Step } else { ResumeAction::Continue };
        session.resume(&[(V0, action)]).unwrap();
        // A guest that nothing stops powers itself off.
        let there = vm.stop() == Some(expected)
            && (!matches!(self, Self::Step) || vm.get(0, Reg::Rip) == HIGH_RAM + NOP.len() as u64);
        if !there {
            skipped(&format!("this host's KVM has no {self:?}").to_lowercase());
        }
        there
    }
}

/// Whether KVM and the CPU below it go on as if nothing had been once a guest has been stepped over a port: tried out without a
/// session.
pub fn nothing_is_left_of_a_step_over_a_port() -> bool {
    // OUT 0x80, AL; OUT 0x81, AL
    let (_file, config) = payload(&[&[0xe6, 0x80, 0xe6, 0x81]]);
    let vm = Vm::new(&VmConfig { debug: DebugMode::Off, ..config }, Box::<Sink>::default()).unwrap();
    let mut fd = vm.vcpus()[0].lock();
    let step = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..Default::default() };
    loop {
        // It is programmed anew, since an end may be told before the instruction has executed.
        fd.set_guest_debug(&step).unwrap();
        match fd.run().unwrap() {
            VcpuExit::IoOut(0x80, _) => break,
            VcpuExit::Debug(exit) if exit.pc == HIGH_RAM => {}
            other => panic!("{other:?}"),
        }
    }
    // KVM finishes the instruction, and tells the step's end or not.
    fd.set_kvm_immediate_exit(1);
    let _ = fd.run();
    fd.set_kvm_immediate_exit(0);
    fd.set_guest_debug(&kvm_guest_debug::default()).unwrap();
    // A guest without handlers does not survive an exception.
    matches!(fd.run().unwrap(), VcpuExit::IoOut(0x81, _))
}

/// Linux with two vCPUs, ready; `None` where no files were given.
pub fn linux() -> Option<Running> {
    let files = ["KERNEL", "INITRD"].map(|name| std::env::var_os(format!("GUEST_DEBUG_FILE_{name}")));
    let [Some(kernel), Some(initrd)] = files else {
        skipped("no kernel and initramfs were given");
        return None;
    };
    // As the scenarios' guest boots; where a delay loop is calibrated, two vCPUs don't come up in Bochs (docs/testing.md).
    let cmdline = "console=ttyS0 quiet nokaslr mitigations=off tsc=reliable lpj=400000".to_owned();
    let vm = Running::of(&VmConfig {
        initrd: Some(initrd.into()),
        cmdline,
        cpus: 2,
        memory_mib: 256,
        debug: DebugMode::Run,
        ..VmConfig::new(kernel)
    });
    vm.wait_for_text("guest is ready with 2 processors");
    Some(vm)
}

/// A VM that runs, and what it has printed.
pub struct Running {
    pub vm: Arc<Vm>,
    pub printed: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

#[derive(Default)]
pub struct Sink(pub Arc<Mutex<Vec<u8>>>);

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
    pub fn start(code: &[&[u8]], cpus: u32, debug: DebugMode) -> Option<Self> {
        Self::start_with(code, |config| (config.cpus, config.debug) = (cpus, debug))
    }

    /// The same after a change to its settings.
    pub fn start_with(code: &[&[u8]], change: impl FnOnce(&mut VmConfig)) -> Option<Self> {
        if !std::path::Path::new("/dev/kvm").exists() {
            skipped("there is no /dev/kvm");
            return None;
        }
        let (_file, mut config) = payload(code);
        change(&mut config);
        let running = Self::of(&config);
        if let Some(session) = running.vm.session() {
            session.attach().unwrap();
        }
        Some(running)
    }

    pub fn of(config: &VmConfig) -> Self {
        let printed = Arc::<Mutex<Vec<u8>>>::default();
        Self::run(Vm::new(config, Box::new(Sink(printed.clone()))).unwrap(), printed)
    }

    /// Runs it on a thread of its own.
    pub fn run(vm: Vm, printed: Arc<Mutex<Vec<u8>>>) -> Self {
        let vm = Arc::new(vm);
        let running = vm.clone();
        let thread = std::thread::spawn(move || running.run().map_err(|error| error.to_string()));
        Self { vm, printed, thread: Some(thread) }
    }

    pub fn get(&self, vcpu: usize, reg: Reg) -> u64 {
        self.vm.vcpus()[vcpu].get_u64(reg).unwrap()
    }

    pub fn go(&self, actions: &[(VcpuId, ResumeAction)]) -> StopReason {
        self.vm.session().unwrap().resume(actions).unwrap();
        self.stop().unwrap()
    }

    /// The next stop; `None` if the guest ends before.
    pub fn stop(&self) -> Option<StopReason> {
        let session = self.vm.session().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let ended = self.has_ended();
            if let Some(stop) = session.take_stop().unwrap() {
                return Some(stop.reason);
            }
            if ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub fn read(&self, address: u64) -> u64 {
        self.vm.ram().read_obj(GuestAddress(address)).unwrap()
    }

    pub fn write(&self, address: u64, value: u64) {
        self.vm.ram().write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Waits until a doubleword has this value.
    pub fn wait_for(&self, address: u64, value: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.read(address) != value {
            assert!(!self.has_ended() && Instant::now() < deadline, "{address:#x} has never become {value:#x}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has printed this.
    pub fn wait_for_text(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(300);
        let printed = || String::from_utf8_lossy(&self.printed.lock().unwrap()).into_owned();
        while !printed().contains(text) {
            assert!(!self.has_ended() && Instant::now() < deadline, "no {text:?} in:\n{}", printed());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets it run to its end.
    pub fn end(mut self) -> (Result<(), String>, String) {
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

/// Settings of a VM that executes this code.
fn payload(code: &[&[u8]]) -> (TempFile, VmConfig) {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(&code.concat()).unwrap();
    let config = VmConfig { memory_mib: 16, ..VmConfig::new(file.as_path()) };
    (file, config)
}

pub fn skipped(reason: &str) {
    let test = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {reason}", test.name().unwrap_or("a test"));
}
