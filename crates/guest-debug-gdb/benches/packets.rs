//! What one packet costs in the server, from a client's write to the end of its read, over a unix socket and with the MMU on.
//! The floor is the same number of bytes, through such a socket, from a thread that does nothing else.
//!
//! ```text
//! cargo bench -p guest-debug-gdb --bench packets
//! ```

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_debug::arm64::{Reg, SysReg};
use guest_debug::{DebugCaps, DebugSession, DebugVcpu, VcpuError, VcpuId, VmHost};
use guest_debug_gdb::{GdbServer, ListenAddress, SessionVm};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CAPS: DebugCaps = DebugCaps { guest_debug: true, hw_bps: 6, hw_wps: 4, control_flags: 0 };
const RAM: u64 = 0x4000_0000;
const TABLES: u64 = RAM;
/// Mapped page by page to what follows the tables.
const TEXT: u64 = 0x1_0000_0000;
const DATA: u64 = RAM + 0x10_0000;
const MAPPED: u64 = 2 << 20;

/// A stopped vCPU with 39-bit addresses and 4 KiB pages.
struct Stopped;

impl DebugVcpu for Stopped {
    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let number = match reg {
            Reg::Sys(SysReg::SCTLR_EL1) => 1,
            // T0SZ is 25, and IPS 40 bits.
            Reg::Sys(SysReg::TCR_EL1) => 25 | 2 << 32,
            Reg::Sys(SysReg::TTBR0_EL1) => TABLES,
            Reg::Sys(SysReg::ID_AA64MMFR0_EL1) => 2,
            Reg::Pc => TEXT,
            _ => 0,
        };
        value.copy_from_slice(&u128::from(number).to_le_bytes()[..value.len()]);
        Ok(())
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        let core = [Reg::SpEl0, Reg::SpEl1, Reg::Pc, Reg::Pstate, Reg::Fpsr, Reg::Fpcr];
        Ok((0..31).map(Reg::X).chain((0..32).map(Reg::V)).chain(core).collect())
    }
}

struct Host;

impl VmHost for Host {
    fn vcpu(&self, _: VcpuId) -> Option<Arc<dyn DebugVcpu>> {
        Some(Arc::new(Stopped))
    }

    fn kick(&self, _: VcpuId) {}
}

/// Three levels of tables, and bytes that no run-length encoding makes shorter.
fn memory() -> GuestMemoryMmap {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 8 << 20)]).unwrap();
    let put = |at: u64, value: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
    put(TABLES + (TEXT >> 30) * 8, TABLES + 0x1000 | 3);
    put(TABLES + 0x1000, TABLES + 0x2000 | 3);
    for page in 0..MAPPED >> 12 {
        put(TABLES + 0x2000 + page * 8, DATA + (page << 12) | 0x403);
    }
    for at in 0..MAPPED / 8 {
        put(DATA + at * 8, at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    ram
}

struct Client {
    stream: UnixStream,
    answer: Vec<u8>,
}

impl Client {
    /// Sends a packet, and takes as much as the first answer to it had.
    fn ask(&mut self, packet: &[u8]) -> usize {
        self.stream.write_all(packet).unwrap();
        let mut length = 0;
        while length < 3 || self.answer[length - 3] != b'#' {
            let read = self.stream.read(&mut self.answer[length..]).unwrap();
            assert!(read > 0, "the server is gone");
            length += read;
        }
        length
    }
}

fn packet(body: &str) -> Vec<u8> {
    let sum = body.bytes().fold(0u8, u8::wrapping_add);
    format!("${body}#{sum:02x}").into_bytes()
}

fn benches(criterion: &mut Criterion) {
    let session = DebugSession::new(1, CAPS, Arc::new(Arc::new(memory())), true).unwrap();
    session.set_host(Box::new(Host)).unwrap();
    let path = std::env::temp_dir().join(format!("guest-debug-gdb-bench.{}", std::process::id()));
    let server = GdbServer::bind(&ListenAddress::Unix(path.clone())).unwrap();
    let shutdown = EventFd::new(EFD_NONBLOCK).unwrap();
    let (theirs, vm) = (shutdown.try_clone().unwrap(), SessionVm::new(session));
    let server = thread::spawn(move || server.run(vm, theirs).unwrap());
    let mut client = Client { stream: UnixStream::connect(&path).unwrap(), answer: vec![0; 1 << 20] };
    client.ask(&packet("qSupported"));
    client.ask(&packet("QStartNoAckMode"));
    client.stream.write_all(b"+").unwrap();

    let mut group = criterion.benchmark_group("packet");
    group.bench_function("qC", |bencher| bencher.iter(|| client.ask(&packet("qC"))));
    group.bench_function("g", |bencher| bencher.iter(|| client.ask(&packet("g"))));
    group.bench_function("m4", |bencher| bencher.iter(|| client.ask(&packet(&format!("m{TEXT:x},4")))));
    group.finish();

    let mut group = criterion.benchmark_group("memory");
    for length in [0x1000u64, 0x1_0000] {
        group.throughput(Throughput::Bytes(length));
        for (name, kind) in [("read", 'm'), ("read as bytes", 'x')] {
            let read = packet(&format!("{kind}{TEXT:x},{length:x}"));
            group.bench_function(BenchmarkId::new(name, length), |bencher| bencher.iter(|| client.ask(&read)));
        }
        group.bench_function(BenchmarkId::new("floor", length), |bencher| floor(bencher, 2 * length as usize));
    }
    group.throughput(Throughput::Bytes(MAPPED));
    let search = packet(&format!("qSearch:memory:{TEXT:x};{MAPPED:x};absent  "));
    group.bench_function(BenchmarkId::new("search", MAPPED), |bencher| bencher.iter(|| client.ask(&search)));
    group.finish();

    drop(client);
    shutdown.write(1).unwrap();
    server.join().unwrap();
}

/// A byte there, and so many back.
fn floor(bencher: &mut criterion::Bencher<'_>, length: usize) {
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let other = thread::spawn(move || {
        let answer = vec![0x30; length];
        while far.read_exact(&mut [0]).is_ok() {
            far.write_all(&answer).unwrap();
        }
    });
    let mut answer = vec![0; length];
    bencher.iter(|| {
        near.write_all(&[1]).unwrap();
        near.read_exact(&mut answer).unwrap();
    });
    drop(near);
    other.join().unwrap();
}

criterion_group! {
    name = packets;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = benches
}
criterion_main!(packets);
