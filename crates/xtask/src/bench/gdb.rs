//! What gdb sees of a Linux guest, under reference-vmm and, if asked for, under another VMM with its own gdb server.
//!
//! Each has a gdb of its own, and they take turns in the same run: whatever else the machine does befalls both. While one is
//! measured the guest of the other is stopped by its debugger.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::figure::{Figure, median, sorted};
use super::usage::{self, Usage};
use super::{BenchOptions, Peer};
use crate::context::Context;
use crate::demo;
use crate::host::{KvmHost, command};
use crate::paths;
use crate::peer::{self, Qemu};
use crate::progress::{Progress, note};
use crate::relay;
use crate::scenarios::{AgentGuest, agent_guest, cloud_hypervisor_guest};
use crate::vmm::{self, CMDLINE, Guest};

/// How often each server is measured.
const ROUNDS: usize = 9;
/// One measurement, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Seconds after its boot at which the guest has come to rest.
const REST: Duration = Duration::from_secs(5);

/// Something to measure.
struct Task {
    name: &'static str,
    unit: &'static str,
    /// Its name in tests/demo/bench.py.
    request: &'static str,
    /// How much of the unit one measurement has: ours, and the peer's, which would take too long otherwise.
    amount: u32,
    peer_amount: u32,
    floor: Floor,
}

/// The best that is possible.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Floor {
    Unknown,
    /// One request and one answer.
    RoundTrip,
    /// The bytes as a plain file.
    Transport,
}

const fn task(
    name: &'static str,
    unit: &'static str,
    request: &'static str,
    amounts: (u32, u32),
    floor: Floor,
) -> Task {
    Task { name, unit, request, amount: amounts.0, peer_amount: amounts.1, floor }
}

const TASKS: [Task; 10] = [
    task("gdb stepi", "1/s", "stepi", (30, 10), Floor::RoundTrip),
    task("gdb stepi through guest-debug-relay", "1/s", "stepi-relay", (30, 10), Floor::RoundTrip),
    task("gdb stepi, memory kept while stopped", "1/s", "stepi-kept", (30, 10), Floor::RoundTrip),
    task("a step's packet and its stop reply", "1/s", "step-packet", (30, 10), Floor::RoundTrip),
    task("gdb continue to the next instruction", "1/s", "onward", (20, 5), Floor::RoundTrip),
    task("gdb next to the end of a function", "1/s", "next", (3, 1), Floor::RoundTrip),
    task("gdb dump memory", "MiB/s", "dump", (2, 1), Floor::Transport),
    task("gdb find", "MiB/s", "find", (2, 1), Floor::Transport),
    task("gdb's conditions, false, wherever evaluated", "1/s", "conditions", (1000, 10), Floor::Unknown),
    task("gdb's conditions, false, evaluated by gdb", "1/s", "conditions-gdb", (20, 10), Floor::RoundTrip),
];

/// Requests and answers for the speed of a round trip.
const ROUND_TRIPS: u32 = 50;

/// All figures.
pub(super) fn measure(context: &Context, host: &KvmHost, vmm: &Path, options: &BenchOptions) -> Result<Vec<Figure>> {
    let files = agent_guest(context, host)?;
    let program = host.upload_program(vmm)?;
    let guest = vmm::start(context, host, &program, &files.options(CMDLINE))?;
    let relay = relay::build()?;
    let mut ours = Server::attach("reference-vmm", host, guest, &files, &relay)?;
    let mut peers = options.peer.map(|peer| attach_peer(context, host, &files, peer, options, &relay)).transpose()?;
    let mut figures =
        TASKS.iter().map(|task| in_turns(task, host, &mut ours, &mut peers)).collect::<Result<Vec<_>>>()?;
    figures.extend(cpu(host, &mut ours, peers.as_mut())?);
    ours.leave()?;
    peers.map_or(Ok(()), Server::leave)?;
    Ok(figures)
}

fn attach_peer(
    context: &Context,
    host: &KvmHost,
    files: &AgentGuest,
    peer: Peer,
    options: &BenchOptions,
    relay: &Path,
) -> Result<Server> {
    // Its serial port has the same name under both.
    let mut guest = files.options(&CMDLINE.replace("ttyS0", peer::CONSOLE));
    let binary = options.binary.as_deref();
    match peer {
        Peer::Qemu => {
            let qemu = Qemu::install(context, host, binary)?;
            note(qemu.version()?);
            // Its threads have names then.
            guest.extra = vec!["-name".to_owned(), "guest,debug-threads=on".to_owned()];
            Server::attach("QEMU", host, qemu.start(&guest)?, files, relay)
        }
        Peer::CloudHypervisor => {
            let binary = binary.context("--peer cloud-hypervisor wants --binary")?;
            let guest = cloud_hypervisor_guest(context, host, binary, &guest)?;
            Server::attach("cloud-hypervisor", host, guest, files, relay)
        }
    }
}

/// One task, some rounds of it. A peer that gives no answer is left alone from then on.
fn in_turns(task: &Task, host: &KvmHost, ours: &mut Server, peers: &mut Option<Server>) -> Result<Figure> {
    let progress = Progress::start(task.name);
    let (mut rates, mut floors, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    let mut peer_amount = task.peer_amount;
    for _ in 0..ROUNDS {
        let rate = ours.rate(task.request, task.amount)?;
        match task.floor {
            Floor::Unknown => {}
            Floor::RoundTrip => floors.push(rate / ours.rate("round-trip", ROUND_TRIPS)?),
            Floor::Transport => floors.push(rate / transport(host, task.amount)?),
        }
        match peers.as_mut().map(|peers| peers.rate(task.request, peer_amount)) {
            Some(Ok(peer)) => {
                pairs.push((rate, peer));
                // One for which that is the matter of a moment can have as much as we have.
                if 10.0 * f64::from(peer_amount) < peer {
                    peer_amount = task.amount;
                }
            }
            Some(Err(error)) => {
                note(format!("{error:#}"));
                *peers = None;
            }
            None => {}
        }
        rates.push(rate);
    }
    progress.done();
    let floor = (task.floor != Floor::Unknown).then(|| median(&sorted(floors.into_iter())));
    Ok(Figure::new(task.name, median(&sorted(rates.into_iter())), task.unit, floor).beside(&pairs))
}

/// CPU time while the guests do nothing. Shares of nothing mean nothing, so the peer's have rows of their own.
fn cpu(host: &KvmHost, ours: &mut Server, peers: Option<&mut Server>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for server in [Some(ours), peers].into_iter().flatten() {
        let attached = server.usage(host)?;
        let rows = [
            ("threads beside the vCPUs, guest running, gdb attached", attached.others),
            ("all threads, guest running, gdb attached", attached.process),
            ("all threads, guest running, no gdb", server.alone.process),
        ];
        figures.extend(
            rows.map(|(what, share)| Figure::new(&format!("CPU of {}: {what}", server.name), share, "%", None)),
        );
    }
    Ok(figures)
}

/// MiB/s that a number of bytes needs from the host to here as a plain file: gdb's bytes come the same way.
fn transport(host: &KvmHost, mib: u32) -> Result<f64> {
    let path = host.path("bench-transport");
    let script = format!("head -c {} /dev/zero > {path}", u64::from(mib) << 20);
    ensure!(host.output(&command(["sh", "-c", &script]))?.exit.success(), "cannot write {path} in the host");
    let started = Instant::now();
    let length = host.download(&path)?.len();
    let seconds = started.elapsed().as_secs_f64();
    host.output(&command(["rm", &path]))?;
    Ok(length as f64 / f64::from(1 << 20) / seconds)
}

/// A VMM with a guest, and a gdb that does what it is told.
struct Server {
    name: &'static str,
    guest: Guest,
    /// Before gdb came.
    alone: Usage,
    gdb: Child,
    requests: UnixStream,
    answers: BufReader<UnixStream>,
    log: PathBuf,
}

impl Server {
    /// Boots the guest, looks at its VMM, and attaches gdb.
    fn attach(name: &'static str, host: &KvmHost, guest: Guest, files: &AgentGuest, relay: &Path) -> Result<Self> {
        let progress = Progress::start(format!("booting a guest under {name}, and attaching gdb"));
        files.wait(&guest)?;
        thread::sleep(REST);
        let alone = usage::measure(host, &guest)?;
        let file = |suffix| std::env::temp_dir().join(format!("bench-{}-{name}{suffix}", std::process::id()));
        let (socket, log) = (file(""), file(".log"));
        let listener = UnixListener::bind(&socket).with_context(|| format!("binding {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let output = std::fs::File::create(&log)?;
        let mut gdb = demo::gdb(&paths::root().join("tests/demo/bench.py"));
        gdb.envs(files.facts(&guest))
            .env("BENCH_SOCKET", &socket)
            .env("BENCH_RELAY", relay)
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output));
        let mut gdb = gdb.spawn().context("cannot start gdb-multiarch")?;
        let requests = accept(&listener, &mut gdb, &log);
        paths::remove(&socket)?;
        let requests = requests?;
        requests.set_read_timeout(Some(PATIENCE))?;
        let answers = BufReader::new(requests.try_clone()?);
        progress.done();
        Ok(Self { name, guest, alone, gdb, requests, answers, log })
    }

    /// So much of a task in a second.
    fn rate(&mut self, request: &str, amount: u32) -> Result<f64> {
        self.tell(request, amount)?;
        Ok(f64::from(amount) / self.answer(request)?)
    }

    /// What the VMM uses while the guest runs.
    fn usage(&mut self, host: &KvmHost) -> Result<Usage> {
        self.tell("run", usage::SECONDS + 10)?;
        // It is on its way.
        thread::sleep(Duration::from_secs(3));
        let usage = usage::measure(host, &self.guest)?;
        self.answer("run")?;
        Ok(usage)
    }

    fn tell(&mut self, request: &str, amount: u32) -> Result<()> {
        writeln!(self.requests, "{request} {amount}").with_context(|| format!("gdb of {} is gone", self.name))
    }

    fn answer(&mut self, request: &str) -> Result<f64> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        let number = line.trim().parse();
        match (read, number) {
            (Ok(_), Ok(seconds)) => Ok(seconds),
            (read, _) => {
                let said = crate::progress::tail(&std::fs::read_to_string(&self.log).unwrap_or_default());
                bail!("{request} under {} has no answer ({read:?}); gdb says\n{said}", self.name)
            }
        }
    }

    fn leave(mut self) -> Result<()> {
        self.requests.shutdown(std::net::Shutdown::Both)?;
        self.gdb.wait()?;
        paths::remove(&self.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, or never will.
        let _ = self.gdb.kill();
        let _ = self.gdb.wait();
    }
}

/// Waits until gdb's script has connected.
fn accept(listener: &UnixListener, gdb: &mut Child, log: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            return Ok(stream);
        }
        let said = || crate::progress::tail(&std::fs::read_to_string(log).unwrap_or_default());
        if let Some(status) = gdb.try_wait()? {
            bail!("gdb did not get to its first measurement ({status}):\n{}", said());
        }
        if Instant::now() > deadline {
            gdb.kill()?;
            bail!("gdb did not get to its first measurement:\n{}", said());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
