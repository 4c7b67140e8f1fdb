//! From a breakpoint's hit to the stop reply in the client's hands.
//!
//! The guest reads its counter right before the breakpoint; the client notes when the reply came, and brings both
//! clocks together by reading the guest's counter itself.

use crate::Error;
use crate::floor::Bare;
use crate::payload::{BASE, Payload};
use crate::session::with_running;
use guest_debug::arm64::{Reg, SysReg};
use guest_debug::{DebugVcpu, VcpuId};
use guest_debug_gdb::{ListenAddress, SessionVm};
use reference_vmm::config::DebugMode;
use reference_vmm::gdb::{self, Server};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

const ROUNDS: usize = 200;
/// Longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Offset of the breakpoint in the payload.
const HIT: u64 = 12;
/// CNTVCT_EL0, the guest's virtual counter.
const CNTVCT_EL0: Reg = Reg::Sys(SysReg::new(3, 3, 14, 0, 2));

/// Seconds with a client of the gdb server, and with KVM and three threads alone: medians.
pub(crate) fn measure() -> Result<(f64, f64), Error> {
    // mrs x1, cntfrq_el0; isb; mrs x0, cntvct_el0; nop (the breakpoint); b .-8
    let words = [0xd53b_e001, 0xd503_3fdf, 0xd53b_e040, 0xd503_201f, 0x17ff_fffe];
    let payload = Payload::new("a breakpoint", words);
    let floor = without_session(&payload)?;

    let vm = payload.vm(DebugMode::Hold)?;
    let session = vm.session().ok_or("the VM has no session")?;
    let path = std::env::temp_dir().join(format!("stepbench-{}.sock", std::process::id()));
    let server = Server::start(
        gdb::bind(&ListenAddress::Unix(path.clone()))?,
        session.clone(),
        SessionVm::new(session.clone()),
    )?;
    let mut ours = Vec::new();
    let vcpu = vm.vcpus().get(VcpuId(0).0 as usize).ok_or("the VM has no vCPU")?;
    with_running(&vm, || {
        let mut client = Client::connect(&path)?;
        client.expect(&format!("Z1,{:x},4", BASE + HIT), "OK")?;
        for _ in 0..ROUNDS {
            let reply = client.ask("vCont;c")?;
            let now = Instant::now();
            if !reply.starts_with('T') {
                return Err(format!("vCont;c was answered with {reply:?}").into());
            }
            ours.push(since_hit(&**vcpu, now)?);
        }
        client.expect("D", "OK")
    })?;
    server.finish(Some(0));
    Ok((crate::median(ours), crate::median(floor)))
}

/// The same with KVM alone, and with the same threads: one runs the vCPU and rings an eventfd, one waits for that and
/// writes to a socket, one reads from the socket.
fn without_session(payload: &Payload) -> Result<Vec<f64>, Error> {
    let bare = Bare::new(payload)?;
    let (go, hit) = (EventFd::new(0)?, EventFd::new(0)?);
    let (mut client, mut server) = UnixStream::pair()?;
    client.set_read_timeout(Some(TIMEOUT))?;
    thread::scope(|scope| {
        let vcpu = scope.spawn(|| -> Result<(), Error> {
            for _ in 0..ROUNDS {
                go.read()?;
                bare.run_to(BASE + HIT, |_| Ok(hit.write(1)?))?;
            }
            Ok(())
        });
        scope.spawn(|| -> Result<(), Error> {
            for _ in 0..ROUNDS {
                hit.read()?;
                server.write_all(b"!")?;
            }
            Ok(())
        });
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            go.write(1)?;
            client.read_exact(&mut [0])?;
            let now = Instant::now();
            times.push(bare.with_vcpu(|fd| since_hit(fd, now))?);
        }
        vcpu.join().map_err(|_| "the vCPU's thread panicked")??;
        Ok(times)
    })
}

/// Seconds from the guest's look at its counter to `then`, which was a moment ago.
fn since_hit(vcpu: &dyn DebugVcpu, then: Instant) -> Result<f64, Error> {
    let before = Instant::now();
    let count = vcpu.get_u64(CNTVCT_EL0)?;
    let read = before + before.elapsed() / 2;
    let (hit, frequency) = (vcpu.get_u64(Reg::X(0))?, vcpu.get_u64(Reg::X(1))?);
    let ago = count.wrapping_sub(hit) as f64 / frequency as f64;
    Ok(ago - read.duration_since(then).as_secs_f64())
}

/// A client of the remote protocol, without acknowledgements.
struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Client {
    fn connect(path: &std::path::Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut client = Self { stream, received: Vec::new() };
        client.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+")?;
        client.stream.write_all(b"+")?;
        client.expect("QStartNoAckMode", "OK")?;
        client.stream.write_all(b"+")?;
        client.ask("?")?;
        Ok(client)
    }

    fn expect(&mut self, request: &str, expected: &str) -> Result<(), Error> {
        let reply = self.ask(request)?;
        if reply == expected { Ok(()) } else { Err(format!("{request} was answered with {reply:?}").into()) }
    }

    fn ask(&mut self, request: &str) -> Result<String, Error> {
        let sum = request.bytes().fold(0_u8, u8::wrapping_add);
        self.stream.write_all(format!("${request}#{sum:02x}").as_bytes())?;
        loop {
            if let Some(reply) = self.take() {
                return Ok(reply);
            }
            let mut buffer = [0; 4096];
            let length = self.stream.read(&mut buffer)?;
            if length == 0 {
                return Err("the gdb server closed the connection".into());
            }
            self.received.extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
    }

    /// The first whole packet's content.
    fn take(&mut self) -> Option<String> {
        let start = self.received.iter().position(|byte| *byte == b'$')?;
        let end = start + self.received.get(start..)?.iter().position(|byte| *byte == b'#')?;
        let rest = self.received.get(end + 3..)?.to_vec();
        let reply = String::from_utf8_lossy(self.received.get(start + 1..end)?).into_owned();
        self.received = rest;
        Some(reply)
    }
}
