//! Saving and moving cloud-hypervisor's guests by its API.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kvm_agent::Stream;
use serde_json::json;

use super::api::Api;
use super::{Launcher, Process};
use crate::scenarios::fleet::Landing;
use crate::scenarios::snapshots::Snapshots;
use crate::scenarios::vmm::{Mover, RunningGuest};
use crate::vmm::wait_for_socket;

/// What a snapshot has beside guest memory.
const FILES: [&str; 2] = ["config.json", "state.json"];
const MEMORY: &str = "memory-ranges";
/// What reference-vmm calls it, and scripts that compare it.
const MEMORY_ALIAS: &str = "memory";

/// v53.0 linked to glibc kills its own migration thread, for newfstatat.
pub(super) const SECCOMP: [&str; 2] = ["--seccomp", "log"];

/// How its guests are saved and moved.
pub(super) struct ChMover<'a> {
    launcher: Launcher<'a>,
    snapshots: Snapshots<'a>,
}

impl<'a> ChMover<'a> {
    pub(super) fn new(launcher: Launcher<'a>) -> Self {
        let snapshots = Snapshots::new(launcher.host);
        Self { launcher, snapshots }
    }

    fn api<'b>(&'b self, guest: &'b dyn RunningGuest) -> Api<'b> {
        Api::new(self.launcher.host, guest.control())
    }

    fn land(&self, arguments: &[&str], landing: &Landing) -> Result<Process> {
        let Landing { gdb, hold, watchpoints, breakpoints, plain, tcp } = landing;
        let other = *hold || *tcp || watchpoints.is_some() || breakpoints.is_some();
        ensure!(!other, "unsupported: cloud-hypervisor has no option for {landing:?}");
        let program = match (*plain, &self.launcher.pristine) {
            (false, _) => &self.launcher.program,
            (true, Some(pristine)) => pristine,
            (true, None) => {
                bail!("unsupported: without --pristine PATH every cloud-hypervisor here knows debug sessions")
            }
        };
        let arguments = [&SECCOMP, arguments].concat().into_iter().map(str::to_owned);
        self.launcher.spawn(program, arguments.collect(), *gdb)
    }
}

impl Mover for ChMover<'_> {
    fn snapshot(&self, guest: &dyn RunningGuest, name: &str) -> Result<String> {
        let (api, path) = (self.api(guest), self.snapshots.path(name));
        self.snapshots.must(&format!("mkdir {name}"))?;
        api.put("vm.pause", None)?;
        let saved = api.put("vm.snapshot", Some(&json!({ "destination_url": format!("file://{path}") })));
        api.put("vm.resume", None)?;
        saved?;
        self.snapshots.must(&format!("ln -s {MEMORY} {name}/{MEMORY_ALIAS}"))?;
        Ok(format!("saved in {path}"))
    }

    fn restore(&self, name: &str, landing: &Landing) -> Result<Arc<dyn RunningGuest>> {
        let source = format!("source_url=file://{},resume=true", self.snapshots.path(name));
        let process = self.land(&["--restore", &source], landing)?;
        Ok(Arc::new(Moved { process, _arrival: None }))
    }

    fn receive(&self, landing: &Landing) -> Result<Arc<dyn RunningGuest>> {
        let process = self.land(&[], landing)?;
        let socket = migration_socket(&process.api_socket);
        let api = Api::new(self.launcher.host, &process.api_socket);
        let begun = api.begin("vm.receive-migration", &json!({ "receiver_url": format!("unix:{socket}") }))?;
        wait_for_socket(self.launcher.host, &process.vmm, &socket)?;
        Ok(Arc::new(Moved { process, _arrival: Some(Mutex::new(begun)) }))
    }

    fn send(&self, guest: &dyn RunningGuest, to: &dyn RunningGuest) -> Result<String> {
        let url = format!("unix:{}", migration_socket(to.control()));
        self.api(guest).put("vm.send-migration", Some(&json!({ "destination_url": url, "local": false })))?;
        // The source is content before the destination is: until the VM goes on there, a debugger is refused.
        for _ in 0..300 {
            if matches!(self.api(to).state().as_deref(), Ok("Running" | "BreakPoint")) {
                return Ok(format!("the VM is at {url} now"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("the VM that was sent to {url} does not go on there")
    }

    /// Its state. All vCPUs stand still in `BreakPoint`.
    fn status(&self, guest: &dyn RunningGuest) -> Result<String> {
        let (state, cpus) = (self.api(guest).state()?, self.api(guest).cpus()?);
        let stopped = vec!["stopped"; cpus].join(", ");
        Ok(if state == "BreakPoint" { format!("{state} ({stopped})") } else { state })
    }

    fn quit(&self, guest: &dyn RunningGuest) -> Result<String> {
        self.api(guest).put("vmm.shutdown", None)
    }

    fn shell(&self, command: &str) -> Result<(u8, String)> {
        self.snapshots.shell(command)
    }

    fn fetch(&self, name: &str, directory: &Path) -> Result<()> {
        self.snapshots.fetch(name, &FILES, MEMORY, directory)
    }

    fn tidy(&self) {
        self.snapshots.tidy();
    }
}

/// Where a VMM waits for a guest.
fn migration_socket(api: &str) -> String {
    format!("{api}.move")
}

/// A guest that was restored, or that is to come.
struct Moved {
    process: Process,
    /// The call that it comes by, which lives as long.
    _arrival: Option<Mutex<Stream>>,
}

impl RunningGuest for Moved {
    fn address(&self) -> String {
        self.process.address()
    }

    fn output(&self) -> String {
        self.process.vmm.output_text()
    }

    fn ended(&mut self) -> Option<String> {
        self.ended_within(Duration::ZERO)
    }

    fn ended_within(&self, time: Duration) -> Option<String> {
        self.process.ended_within(time)
    }

    fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    fn control(&self) -> &str {
        &self.process.api_socket
    }
}
