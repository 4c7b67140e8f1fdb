//! `cargo xtask scenarios`: gdb against running guests.

mod abilities;
mod catalog;
mod cloud_hypervisor;
mod fleet;
mod guests;
mod others;
mod places;
mod qemu;
mod script;
mod snapshots;
mod vmm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::arch::Arch;
use crate::assets::debug_vmlinux;
use crate::context::Context;
use crate::host::KvmHost;
use crate::packages::Tool;
use crate::paths;
use crate::peer::Qemu;
use crate::progress::{note, tail};
use crate::relay;
use crate::report::{CaseResult, Counts, Status};
use crate::symbols::kernel_symbols;
use crate::vmm::GuestOptions;
use abilities::Abilities;
use catalog::{GuestKind, Scenario};
use cloud_hypervisor::CloudHypervisor;
pub(crate) use fleet::Fleet;
use fleet::Landing;
pub(crate) use others::{AgentGuest, agent_guest, bare_guest, cloud_hypervisor_guest, measure};
pub(crate) use places::run_on_x86_64;
use qemu::QemuTcg;
use script::{Facts, Outcome};
use vmm::{Mover, ReferenceVmm, Vmm};
pub(crate) use vmm::{ReferenceMover, RunningGuest};

/// How long the Linux guest may take to its init, in a guest of an emulated host on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// The same on this machine's own KVM. Where that can't run a kernel, this is waited for in vain.
const NATIVE_BOOT_TIMEOUT: Duration = Duration::from_secs(30);

/// Memory in MiB of a guest that moves: enough for Debian's kernel, and little to move.
const MOVING_MEMORY: u32 = 128;

/// How names of snapshots begin that the suite makes for itself, and which stay when a scenario's are removed.
const BOOTED: &str = ".booted";

/// How reference-vmm's status begins while a guest is not there yet (crates/reference-vmm/src/run.rs).
const RESTORING: &str = "restoring ";

/// What init prints (tests/guest/agent.c).
const AGENT_READY: &str = "guest agent ready";

/// Options of `scenarios`.
#[derive(Args, Clone, Debug)]
pub struct ScenarioOptions {
    /// The VMM to test: reference-vmm, cloud-hypervisor (with --binary), qemu (Debian's, with KVM), or qemu-tcg (QEMU's
    /// emulation, without KVM)
    #[arg(long, default_value = "reference-vmm")]
    pub vmm: String,
    /// The VMM's program, instead of one that is built or installed
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// The same VMM without debug sessions, for scenarios that give it a snapshot with one (cloud-hypervisor)
    #[arg(long, value_name = "PATH")]
    pub pristine: Option<PathBuf>,
    /// Only scenarios whose name contains this; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Leave out nothing that is slow or large: what wants the kernel's debug information is run, 262 MB, and with --arch x86_64 all
    /// scenarios with a Linux guest are tried in Bochs as well
    #[arg(long)]
    pub all: bool,
    /// Let gdb come through guest-debug-relay
    #[arg(long)]
    pub relay: bool,
    /// No scenario may take longer, for a VMM with which many never end
    #[arg(long, value_name = "SECONDS")]
    pub limit: Option<u64>,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Default for ScenarioOptions {
    /// All of the suite on reference-vmm.
    fn default() -> Self {
        Self {
            vmm: "reference-vmm".to_owned(),
            binary: None,
            pristine: None,
            only: Vec::new(),
            all: false,
            relay: false,
            limit: None,
            json: None,
        }
    }
}

/// The command: boots a host, runs the suite, prints the sum.
pub fn main(context: &Context, options: &ScenarioOptions) -> Result<ExitCode> {
    let host = match options.vmm.as_str() {
        _ if context.arch() == Arch::X86_64 => None,
        "qemu-tcg" => {
            context.packages.ensure(&[Tool::Qemu, Tool::CrossGcc, Tool::Gdb, Tool::Python])?;
            None
        }
        "cloud-hypervisor" if options.binary.is_none() => None,
        _ => {
            context.prepare(&[Tool::Gdb, Tool::Python])?;
            Some(KvmHost::start(context)?)
        }
    };
    let results = match context.arch() {
        Arch::Arm64 => suite(context, host.as_ref(), options)?,
        Arch::X86_64 => {
            context.prepare(&[Tool::Gdb, Tool::Python, Tool::QemuX86, Tool::Bochs])?;
            run_on_x86_64(context, options)?
        }
    };
    let mut counts = Counts::default();
    for result in &results {
        counts += Counts::one(result.status);
    }
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the suite on a host that is up, prints each result, and writes the JSON file if one is asked for.
///
/// # Errors
/// If the suite itself cannot run; a scenario that fails is a result.
pub fn run(context: &Context, host: &KvmHost, options: &ScenarioOptions) -> Result<Vec<CaseResult>> {
    suite(context, Some(host), options)
}

fn suite(context: &Context, host: Option<&KvmHost>, options: &ScenarioOptions) -> Result<Vec<CaseResult>> {
    let scenarios = select(context, options)?;
    let binary = options.binary.as_deref();
    if options.vmm == "cloud-hypervisor" && binary.is_none() {
        let reason = "cloud-hypervisor is not built here; --binary PATH names an arm64 one";
        println!("skipped {} scenarios: {reason}", scenarios.len());
        let skipped = |scenario: &Scenario| CaseResult {
            name: scenario.name.clone(),
            status: Status::Skipped,
            reason: Some(reason.to_owned()),
            seconds: 0.0,
        };
        return Ok(scenarios.iter().map(skipped).collect());
    }
    context.packages.ensure(&[Tool::Gdb, Tool::CrossGcc])?;
    let vmm: Box<dyn Vmm + '_> = match (options.vmm.as_str(), host) {
        ("qemu-tcg", _) => Box::new(QemuTcg::new(context, binary)?),
        ("reference-vmm", Some(host)) => Box::new(ReferenceVmm::new(context, host, binary)?),
        ("qemu", Some(host)) => {
            let qemu = Qemu::install(context, host, binary)?;
            note(qemu.version()?);
            Box::new(qemu)
        }
        ("cloud-hypervisor", Some(host)) => {
            let binary = binary.context("no binary")?;
            Box::new(CloudHypervisor::new(context, host, binary, options.pristine.as_deref())?)
        }
        (other, _) => bail!("there is no VMM {other:?}; it can be reference-vmm, cloud-hypervisor, qemu or qemu-tcg"),
    };
    let mut suite = Suite::new(context, host, vmm.as_ref(), Abilities::All).with(options)?;
    let results: Vec<_> = scenarios.iter().map(|scenario| suite.run(scenario)).collect();
    write_json(options, &results)?;
    Ok(results)
}

/// The scenarios that are asked for.
fn select(context: &Context, options: &ScenarioOptions) -> Result<Vec<Scenario>> {
    let directory = paths::root().join("tests/scenarios");
    let mut scenarios = catalog::load_for(&directory, context.arch())?;
    scenarios.extend(catalog::load_own(&directory, &options.vmm)?);
    if !options.only.is_empty() {
        scenarios.retain(|scenario| options.only.iter().any(|name| scenario.name.contains(name.as_str())));
    }
    if scenarios.is_empty() {
        bail!("no scenario has a name that contains {}", options.only.join(" or "));
    }
    if let Some(limit) = options.limit.map(Duration::from_secs) {
        scenarios.iter_mut().for_each(|scenario| scenario.timeout = scenario.timeout.min(limit));
    }
    Ok(scenarios)
}

fn write_json(options: &ScenarioOptions, results: &[CaseResult]) -> Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    let text = serde_json::to_string_pretty(results)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What a scenario that moves its Linux guest wants of it.
fn moving_options(scenario: &Scenario) -> GuestOptions {
    GuestOptions { memory: MOVING_MEMORY, ..scenario.guest_options() }
}

struct Suite<'a> {
    context: &'a Context,
    host: Option<&'a KvmHost>,
    vmm: &'a dyn Vmm,
    /// What the host can do.
    abilities: Abilities,
    /// The kernel's debug information may be fetched.
    debug_info: bool,
    /// guest-debug-relay, and whether every gdb is to come through it.
    relay: Option<(PathBuf, bool)>,
    /// The Linux guest that the next scenario may use.
    guest: Option<LinuxGuest>,
    /// Linux guests, by their number of vCPUs, of which there is a snapshot.
    booted: BTreeMap<u32, Facts>,
}

struct LinuxGuest {
    running: Box<dyn RunningGuest>,
    cpus: u32,
    facts: Facts,
}

impl<'a> Suite<'a> {
    fn new(context: &'a Context, host: Option<&'a KvmHost>, vmm: &'a dyn Vmm, abilities: Abilities) -> Self {
        Self { context, host, vmm, abilities, debug_info: false, relay: None, guest: None, booted: BTreeMap::new() }
    }

    fn with(self, options: &ScenarioOptions) -> Result<Self> {
        Ok(Self { debug_info: options.all, relay: Some((relay::build()?, options.relay)), ..self })
    }
}

impl Suite<'_> {
    /// What the host is.
    fn place(&self) -> &'static str {
        self.host.map_or("no KVM", KvmHost::kvm)
    }

    /// How many times as long as elsewhere things may take there.
    fn patience(&self) -> u32 {
        self.host.map_or(1, KvmHost::patience)
    }

    /// What every script gets to know.
    fn facts(&self, guest: &dyn RunningGuest, cpus: u32) -> Facts {
        let mut facts = self.abilities.facts();
        facts.extend([
            ("GDB_TARGET", guest.address()),
            ("GDB_CPUS", cpus.to_string()),
            ("GUEST_ARCH", self.context.arch().name().to_owned()),
            ("PATIENCE", self.patience().to_string()),
        ]);
        if let Some((relay, always)) = &self.relay {
            facts.push(("GDB_RELAY", relay.display().to_string()));
            facts.extend(always.then(|| ("THROUGH_RELAY", "yes".to_owned())));
        }
        facts
    }

    /// The same, and what the scenario has asked for. They stand behind the facts of the guest: of two with one name the later counts.
    fn facts_for(&self, guest: &dyn RunningGuest, scenario: &Scenario) -> Result<Facts> {
        let mut facts = self.facts(guest, scenario.cpus);
        if scenario.debug_info {
            facts.push(("KERNEL_ELF", debug_vmlinux(&self.context.packages)?.display().to_string()));
        }
        Ok(facts)
    }

    /// Runs one scenario and prints its line.
    fn run(&mut self, scenario: &Scenario) -> CaseResult {
        let started = Instant::now();
        let (status, reason) = match self.attempt(scenario) {
            Ok((status, reason)) => (status, reason),
            Err(error) => (Status::Failed, Some(format!("{error:#}"))),
        };
        let seconds = started.elapsed().as_secs_f64();
        let word = match status {
            Status::Passed => "passed ",
            Status::Failed => "FAILED ",
            Status::Skipped => "skipped",
        };
        let reason_text = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        println!("{word} {:<32} {seconds:6.1} s{reason_text}", scenario.name);
        CaseResult { name: scenario.name.clone(), status, reason, seconds }
    }

    fn attempt(&mut self, scenario: &Scenario) -> Result<(Status, Option<String>)> {
        if scenario.debug_info && !self.debug_info {
            let reason = "it wants the kernel's debug information, 262 MB (--all fetches it)";
            return Ok((Status::Skipped, Some(reason.to_owned())));
        }
        if scenario.moves {
            return self.attempt_moves(scenario);
        }
        if scenario.drives_vmm {
            return self.attempt_driven(scenario);
        }
        let (mut guest, facts) = match scenario.guest {
            GuestKind::Bare => self.bare(&scenario.guest_options())?,
            GuestKind::Linux => self.linux(scenario)?,
        };
        let connection = self.facts_for(&*guest, scenario)?;
        let outcome = script::run(scenario, &[facts.as_slice(), &connection, &guest.facts()].concat())?;
        let (mut status, mut reason) = (outcome.status, outcome.reason);
        // Whatever a client did, the VMM has to be there afterwards.
        if let Some(end) = guest.ended() {
            let so_far = reason.map(|reason| format!("; {reason}")).unwrap_or_default();
            (status, reason) = (Status::Failed, Some(format!("the VMM ended: {end}{so_far}")));
        }
        if status == Status::Failed {
            note(format!("{}: its output ends with\n{}", scenario.name, tail(&outcome.output)));
            let console = guest.output();
            note(format!("{}: the guest's console and the VMM's messages end with\n{}", scenario.name, tail(&console)));
        } else if scenario.guest == GuestKind::Linux {
            self.guest = Some(LinuxGuest { running: guest, cpus: scenario.cpus, facts });
        }
        Ok((status, reason))
    }

    /// reference-vmm for this machine.
    fn native_vmm(&self) -> Result<String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(paths::root()).args(["build", "--quiet", "--package", "reference-vmm"]);
        // Where this program is.
        let target = std::env::current_exe()?.parent().map(Path::to_path_buf).unwrap_or_default();
        let status = cargo.status().context("cannot start cargo")?;
        if !status.success() {
            bail!("reference-vmm does not build for this machine");
        }
        Ok(target.join("reference-vmm").display().to_string())
    }

    /// A scenario that drives the VMM itself: whether its guest is there afterwards is its own business.
    fn attempt_driven(&mut self, scenario: &Scenario) -> Result<(Status, Option<String>)> {
        let mover = self.vmm.mover().context("this VMM's guests can't be moved by the suite")?;
        let (guest, facts) = match scenario.guest {
            GuestKind::Bare => self.bare(&scenario.guest_options())?,
            GuestKind::Linux => self.new_linux(scenario.guest_options())?,
        };
        let guest: Arc<dyn RunningGuest> = guest.into();
        let connection = self.facts_for(&*guest, scenario)?;
        let outcome = Fleet::new(mover, guest.clone()).serve(|socket| {
            let fleet = [("FLEET", socket.display().to_string())];
            script::run(scenario, &[facts.as_slice(), &connection, &fleet, &guest.facts()].concat())
        })?;
        if outcome.status == Status::Failed {
            note(format!("{}: its output ends with\n{}", scenario.name, tail(&outcome.output)));
            let console = guest.output();
            note(format!("{}: the guest's console and the VMM's messages end with\n{}", scenario.name, tail(&console)));
        }
        Ok((outcome.status, outcome.reason))
    }

    fn attempt_moves(&mut self, scenario: &Scenario) -> Result<(Status, Option<String>)> {
        let reason = "this VMM's guests can't be moved by the suite";
        let outcome = self.moves(scenario)?;
        Ok(outcome.map_or((Status::Skipped, Some(reason.to_owned())), |outcome| (outcome.status, outcome.reason)))
    }

    /// A scenario that moves its guest: what becomes of the guest is its own business. `None` if the VMM can't.
    fn moves(&mut self, scenario: &Scenario) -> Result<Option<Outcome>> {
        let vmm = self.vmm;
        let Some(mover) = vmm.mover() else { return Ok(None) };
        // The host's memory is not for guests that nobody uses.
        self.guest = None;
        let (guest, facts) = match scenario.guest {
            GuestKind::Bare => {
                let (guest, facts) = self.bare(&scenario.guest_options())?;
                (guest.into(), facts)
            }
            GuestKind::Linux => self.moving_linux(mover, scenario)?,
        };
        let ram = self.vmm.layout(scenario.cpus).ram_base;
        let mut connection = self.facts_for(&*guest, scenario)?;
        connection.push(("RAM_BASE", format!("{ram:#x}")));
        let fleet = Fleet::new(mover, guest.clone());
        let outcome = fleet.serve(|socket| {
            // For what needs no KVM, and is done on this machine.
            let fleet = [("FLEET", socket.display().to_string()), ("REFERENCE_VMM", self.native_vmm()?)];
            script::run(scenario, &[facts.as_slice(), &connection, &fleet].concat())
        })?;
        if outcome.status == Status::Failed {
            note(format!("{}: its output ends with\n{}", scenario.name, tail(&outcome.output)));
            note(format!("{}: the first VMM's messages end with\n{}", scenario.name, tail(&guest.output())));
            if let Some(last) = fleet.last().ok().filter(|last| !Arc::ptr_eq(last, &guest)) {
                note(format!("{}: the last VMM's messages end with\n{}", scenario.name, tail(&last.output())));
            }
        }
        Ok(Some(outcome))
    }

    /// Whether a Linux guest that is going to be moved is the first one once more, restored: a boot takes minutes here.
    fn begins_restored(&self) -> bool {
        self.patience() > 1
    }

    /// A Linux guest that is going to be moved.
    fn moving_linux(&mut self, mover: &dyn Mover, scenario: &Scenario) -> Result<(Arc<dyn RunningGuest>, Facts)> {
        if !self.begins_restored() {
            let (guest, facts) = self.new_linux(moving_options(scenario))?;
            return Ok((guest.into(), facts));
        }
        let (name, facts) = self.booted(mover, scenario)?;
        let guest = mover.restore(&name, &Landing { gdb: true, ..Landing::default() })?;
        while mover.status(&*guest)?.starts_with(RESTORING) {
            thread::sleep(Duration::from_millis(50));
        }
        Ok((guest, facts))
    }

    /// The snapshot of a Linux guest for scenarios like this one, whose init is up; made at the first call.
    fn booted(&mut self, mover: &dyn Mover, scenario: &Scenario) -> Result<(String, Facts)> {
        let name = format!("{BOOTED}-{}", scenario.cpus);
        if let Some(facts) = self.booted.get(&scenario.cpus) {
            return Ok((name, facts.clone()));
        }
        let (guest, facts) = self.new_linux(moving_options(scenario))?;
        mover.snapshot(&*guest, &name)?;
        self.booted.insert(scenario.cpus, facts.clone());
        Ok((name, facts))
    }

    /// A new bare-metal guest that has executed nothing yet.
    fn bare(&self, options: &GuestOptions) -> Result<(Box<dyn RunningGuest>, Facts)> {
        let elf = guests::bare(self.context, &self.vmm.layout(options.cpus))?;
        let guest = self.vmm.start(&GuestOptions {
            kernel: Some(elf.clone()),
            memory: 64,
            wait_for_gdb: true,
            ..options.clone()
        })?;
        Ok((guest, vec![("GUEST_ELF", elf.display().to_string())]))
    }

    /// A Linux guest whose init is up: the last scenario's, if that left one.
    fn linux(&mut self, scenario: &Scenario) -> Result<(Box<dyn RunningGuest>, Facts)> {
        let fits = |guest: &LinuxGuest| guest.cpus == scenario.cpus;
        if let Some(guest) = self.guest.take().filter(fits) {
            return Ok((guest.running, guest.facts));
        }
        self.new_linux(scenario.guest_options())
    }

    /// A new Linux guest whose init is up; of the options its number of vCPUs, its memory and what it is for.
    fn new_linux(&self, options: GuestOptions) -> Result<(Box<dyn RunningGuest>, Facts)> {
        let (agent, initrd) = guests::agent(self.context, self.vmm.drivers())?;
        let symbols = kernel_symbols(self.context, self.host.filter(|host| host.patience() == 1))?;
        let cmdline = format!("console={} nokaslr quiet panic=-1 {}", self.vmm.console(), self.vmm.cmdline());
        let options = GuestOptions { initrd: Some(initrd), cmdline, ..options };
        let emulated = self.host.is_none_or(KvmHost::is_emulated);
        let timeout = if emulated { BOOT_TIMEOUT * self.patience() } else { NATIVE_BOOT_TIMEOUT };
        let mut guest = self.vmm.start(&options)?;
        guest.wait_for(AGENT_READY, timeout)?;
        let facts = vec![("GUEST_ELF", agent.display().to_string()), ("KERNEL_ELF", symbols.display().to_string())];
        Ok((guest, facts))
    }
}
