//! A bare-metal guest in 64-bit mode: identity-mapped, interrupts on, a handler for every vector.

use guest_debug::kvm::probe;
use guest_debug::x86_64::Reg;
use guest_debug::x86_64::stop::DebugExitArch;
use guest_debug::{
    Breakpoint, DebugCaps, DebugConfig, DebugSession, DebugVcpu, Entry, ResumeAction, StopEvent, StopReason,
    VcpuDebugger, VcpuError, VcpuId, VcpuState, VmHost, Wait, X86_64,
};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use libc::{c_int, c_void, siginfo_t};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

pub const V0: VcpuId = VcpuId(0);

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
/// Page directories of the first gigabyte, and of the fourth with the APIC in it.
const LOW: u64 = 0x3000;
const HIGH: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
pub const CODE: u64 = 0x1_0000;
pub const STACK: u64 = 0x2_0000;
const HANDLERS: u64 = 0x3_0000;
pub const DATA: u64 = 0x4_0000;
pub const ENTRY: u64 = 0x5_0000;
const RAM: usize = 2 << 20;

/// The stack pointer in real mode, where the stack has a segment of its own.
const SP: u64 = 0x8000;

pub const TF: u64 = 0x100;
pub const IF: u64 = 0x200;
/// RFLAGS at first.
pub const ON: u64 = 2 | IF;
/// What Linux has there, TF and IF among it.
pub const FMASK: u64 = 0x4_7700;
/// Vector of the interrupt that the guest sends to itself.
pub const IRQ: u8 = 0x40;

pub const NOP: &[u8] = &[0x90];
pub const INT3: &[u8] = &[0xcc];
/// OUT 0x10, AL: the end.
pub const END: &[u8] = &[0xe6, 0x10];
pub const STI: &[u8] = &[0xfb];
/// SYSCALL
pub const SYSCALL: &[u8] = &[0x0f, 0x05];
/// INT 0x80
pub const INT_80: &[u8] = &[0xcd, 0x80];
/// MOV [RAX], EBX
pub const STORE: &[u8] = &[0x89, 0x18];
/// FLD1
pub const FLD1: &[u8] = &[0xd9, 0xe8];
/// An address that nothing is mapped at.
pub const UNMAPPED: u64 = 2 << 30;
/// INC RBX
pub const COUNT: &[u8] = &[0x48, 0xff, 0xc3];

pub fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

/// The vCPU, for the session and its thread.
pub struct Vcpu(Mutex<VcpuFd>);

impl Vcpu {
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DebugVcpu<X86_64> for Vcpu {
    fn set_guest_debug(&self, config: &DebugConfig<guest_debug::x86_64::HwDebug>) -> Result<(), VcpuError> {
        DebugVcpu::set_guest_debug(&*self.lock(), config)
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        self.lock().get_reg(reg, value)
    }

    fn get_u64s(&self, regs: &[Reg], values: &mut [u64]) -> Result<(), VcpuError> {
        self.lock().get_u64s(regs, values)
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        self.lock().set_reg(reg, value)
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        self.lock().reg_list()
    }

    fn inject(&self, exception: guest_debug::x86_64::stop::Exception) -> Result<(), VcpuError> {
        self.lock().inject(exception)
    }
}

/// The guest without a debugger.
pub struct Guest {
    /// The first of them.
    pub vcpu: Arc<Vcpu>,
    pub vcpus: Vec<Arc<Vcpu>>,
    pub ram: Arc<GuestMemoryMmap>,
    pub caps: DebugCaps,
    _vm: VmFd,
}

impl Guest {
    /// About to execute `code` at [`CODE`], with [`END`] behind it. `None` without KVM.
    pub fn new(code: &[&[u8]]) -> Option<Self> {
        Self::with_vcpus(1, code)
    }

    /// The same on several vCPUs.
    pub fn with_vcpus(count: u64, code: &[&[u8]]) -> Option<Self> {
        let kvm = Kvm::new().ok()?;
        let vm = kvm.create_vm().unwrap();
        let caps = probe(&vm);
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        let ram: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: ram.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY: the memory is mapped for as long as the VM exists, which holds both.
        #[expect(unsafe_code, reason = "KVM has no safe call for it")]
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        load(&ram, code);
        let vcpu = |id| {
            let fd = vm.create_vcpu(id).unwrap();
            fd.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
            set_up(&fd, id);
            Arc::new(Vcpu(Mutex::new(fd)))
        };
        let vcpus: Vec<_> = (0..count).map(vcpu).collect();
        Some(Self { vcpu: vcpus[0].clone(), vcpus, ram, caps, _vm: vm })
    }

    /// Runs it with KVM alone, until KVM says something. `None` for what is no debug exit.
    pub fn run(&self) -> Option<DebugExitArch> {
        match self.vcpu.lock().run() {
            Ok(VcpuExit::Debug(exit)) => Some(exit.into()),
            _ => None,
        }
    }
}

impl Guest {
    /// Has it execute the same code as 8086 code, RIP counted from `segment`, and with handlers in the vector table.
    pub fn enter_real_mode(&self, segment: u16) {
        let fd = self.vcpu.lock();
        let sregs = fd.get_sregs().unwrap();
        let at = |selector: u16| kvm_segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            type_: 3,
            s: 1,
            present: 1,
            ..kvm_segment::default()
        };
        let (code, data) = (kvm_segment { type_: 11, ..at(segment) }, at(0));
        let stack = at(((STACK - SP) >> 4) as u16);
        let mut sregs = kvm_sregs { cs: code, ds: data, es: data, fs: data, gs: data, ss: stack, ..sregs };
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x10, 0, 0, 0);
        (sregs.idt.base, sregs.idt.limit) = (0, 0x3ff);
        fd.set_sregs(&sregs).unwrap();
        fd.set_regs(&kvm_regs { rip: CODE - code.base, rsp: SP, rflags: ON, ..kvm_regs::default() }).unwrap();
        for vector in 0..=255 {
            let entry = [(handler(vector) - HANDLERS) as u16, (HANDLERS >> 4) as u16];
            self.ram.write_obj(entry, GuestAddress(u64::from(vector) * 4)).unwrap();
        }
    }

    /// Runs it with KVM alone, and answers whether it comes to its end. A KVM that can't run it may never come back.
    pub fn ends(&self) -> bool {
        extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

        register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let vcpu = self.vcpu.clone();
        let thread = std::thread::spawn(move || matches!(vcpu.lock().run(), Ok(VcpuExit::IoOut(0x10, _))));
        let deadline = Instant::now() + Duration::from_secs(2);
        while !thread.is_finished() {
            if Instant::now() > deadline {
                // Once more if it comes before the entry.
                thread.kill(SIGRTMIN()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().unwrap()
    }
}

/// The guest with a session, attached to.
pub struct Debugged {
    pub session: Arc<DebugSession<X86_64>>,
    pub guest: Guest,
    /// How its vCPUs ended.
    ends: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

struct Host(Vec<Arc<Vcpu>>);

impl VmHost<X86_64> for Host {
    fn vcpu(&self, id: VcpuId) -> Option<Arc<dyn DebugVcpu<X86_64>>> {
        Some(self.0.get(id.0 as usize)?.clone())
    }

    /// Every stop in these tests is the guest's own, on each of its vCPUs.
    fn kick(&self, _: VcpuId) {}
}

impl Debugged {
    pub fn new(code: &[&[u8]]) -> Option<Self> {
        let guest = Guest::new(code)?;
        Some(Self::with_caps(guest.caps, guest))
    }

    pub fn with_caps(caps: DebugCaps, guest: Guest) -> Self {
        let count = guest.vcpus.len() as u32;
        let session = DebugSession::new(count, caps, Arc::new(guest.ram.clone()), true).unwrap();
        session.set_host(Box::new(Host(guest.vcpus.clone()))).unwrap();
        let ends = Arc::new(Mutex::new(Vec::new()));
        let thread = |(id, vcpu): (u32, &Arc<Vcpu>)| {
            let debugger = session.vcpu_thread(VcpuId(id)).unwrap();
            let (vcpu, ends) = (vcpu.clone(), ends.clone());
            std::thread::spawn(move || {
                let how = run(debugger, &vcpu);
                ends.lock().unwrap().push(how);
            })
        };
        let threads = (0..).zip(&guest.vcpus).map(thread).collect();
        while session.vcpu_states().contains(&VcpuState::Offline) {
            std::thread::yield_now();
        }
        session.attach().unwrap();
        Self { session, guest, ends, threads }
    }

    pub fn insert(&self, breakpoint: Breakpoint) {
        self.session.insert(V0, breakpoint).unwrap();
    }

    pub fn go(&self) -> StopReason {
        self.session.resume(&[]).unwrap();
        self.stop().reason
    }

    /// One step; answers where the vCPU is then.
    pub fn step(&self) -> u64 {
        self.session.resume(&[(V0, ResumeAction::Step)]).unwrap();
        assert_eq!(self.stop().reason, StopReason::Step);
        self.get(Reg::Rip)
    }

    pub fn stop(&self) -> StopEvent {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(event) = self.session.take_stop().unwrap() {
                return event;
            }
            let ends = self.ends.lock().unwrap().clone();
            let running = ends.len() < self.guest.vcpus.len();
            assert!(running && Instant::now() < deadline, "the guest did not stop, it ended with {ends:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets the guest run to its end.
    pub fn finish(&self) {
        self.session.resume(&[]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ends.lock().unwrap().len() < self.guest.vcpus.len() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*self.ends.lock().unwrap(), vec!["end"; self.guest.vcpus.len()]);
    }

    pub fn get(&self, reg: Reg) -> u64 {
        self.guest.vcpu.get_u64(reg).unwrap()
    }

    pub fn set(&self, reg: Reg, value: u64) {
        self.guest.vcpu.set_u64(reg, value).unwrap();
    }

    pub fn word(&self, at: u64) -> u64 {
        self.guest.ram.read_obj(GuestAddress(at)).unwrap()
    }
}

impl Drop for Debugged {
    fn drop(&mut self) {
        self.session.close();
        let stopped = self.session.vcpu_states().iter().all(|state| *state != VcpuState::Running);
        // One that is lost in its guest is left there: the test has failed by then.
        if stopped {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

fn run(mut debugger: VcpuDebugger<X86_64>, vcpu: &Vcpu) -> String {
    while debugger.wait() == Wait::Run {
        let mut fd = vcpu.lock();
        if debugger.before_run(&*fd).unwrap() == Entry::Again {
            continue;
        }
        match fd.run() {
            Ok(VcpuExit::Debug(exit)) => debugger.on_debug_exit(&*fd, exit.into()).unwrap(),
            Ok(VcpuExit::IoOut(0x10, _)) => return "end".into(),
            Err(error) if error.errno() == 4 => {}
            other => return format!("{other:x?}"),
        }
    }
    "closed".into()
}

fn load(ram: &GuestMemoryMmap, code: &[&[u8]]) {
    let write = |value: u64, at: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
    write(PDPT | 3, PML4);
    write(LOW | 3, PDPT);
    write(HIGH | 3, PDPT + 3 * 8);
    for page in 0..512 {
        write(page << 21 | 0x83, LOW + page * 8);
        write(3 << 30 | page << 21 | 0x83, HIGH + page * 8);
    }
    for (n, descriptor) in (0..).zip([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]) {
        write(descriptor, GDT + n * 8);
    }
    for vector in 0..=255 {
        let at = handler(vector);
        write(at & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48, IDT + u64::from(vector) * 16);
        let body: &[u8] = match vector {
            // INC R15, IRETQ
            1 | 3 => &[0x49, 0xff, 0xc7, 0x48, 0xcf],
            // INC R14, end of interrupt at the APIC (R13), IRETQ
            IRQ => &[0x49, 0xff, 0xc6, 0x41, 0xc7, 0x85, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0x48, 0xcf],
            // NOP, then the end: ADD RSP, 8 and IRETQ where somebody wants to go on
            _ => &[0x90, 0xe6, 0x10],
        };
        ram.write_slice(body, GuestAddress(at)).unwrap();
    }
    let code = [code.concat().as_slice(), END].concat();
    ram.write_slice(&code, GuestAddress(CODE)).unwrap();
    ram.write_slice(&[NOP, END].concat(), GuestAddress(ENTRY)).unwrap();
}

fn set_up(fd: &VcpuFd, id: u64) {
    // All but the first would wait to be started.
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    let flat = kvm_segment { limit: u32::MAX, s: 1, present: 1, g: 1, ..kvm_segment::default() };
    let data = kvm_segment { selector: 0x10, type_: 3, db: 1, ..flat };
    sregs = kvm_sregs {
        cs: kvm_segment { selector: 0x08, type_: 11, l: 1, ..flat },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        cr0: 0x8000_0033,
        cr3: PML4,
        cr4: 0x620,
        efer: 0x501,
        ..sregs
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x17);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    fd.set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rip: CODE,
        rsp: STACK - 0x1000 * id,
        rflags: ON,
        rax: DATA,
        r13: 0xfee0_0000,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).unwrap();
    let msrs = [(0xc000_0081, 0x08 << 32), (0xc000_0082, ENTRY), (0xc000_0084, FMASK)];
    let entry = |(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    assert_eq!(fd.set_msrs(&Msrs::from_entries(&msrs.map(entry)).unwrap()).unwrap(), msrs.len());
}
