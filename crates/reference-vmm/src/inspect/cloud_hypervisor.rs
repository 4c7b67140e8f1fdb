//! Snapshots of cloud-hypervisor, release 53.0, with a debug session in them or not.
//!
//! A directory with three files. `state.json` is a tree: each node has its children by name, and its own state as JSON in a
//! string. `memory-ranges` has the ranges that the memory manager lists, one behind the other. `config.json` is the VM's
//! configuration; nothing of it is needed, but no other VMM's snapshot has it. A vCPU's state are KVM's own structures, as
//! lists of their bytes (kernel: arch/arm64/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h).

use super::arm64::MP_STATE_STOPPED;
use super::{Frozen, FrozenRegion, FrozenVcpu};
use crate::error::VmError;
use crate::snapshot::STATE_FILE;
use guest_debug::arm64::Reg;
use guest_debug::kvm::regid;
use guest_debug::state::GuestDebugState;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The VM's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Guest memory.
pub const MEMORY_FILE: &str = "memory-ranges";
/// The debug session's node, which hypervisor-patches/cloud-hypervisor adds.
pub const SESSION: &str = "guest-debug";

const CPUS: &str = "cpu-manager";
const MEMORY: &str = "memory-manager";
/// A vCPU takes some 30 KB.
const MAX_STATE_SIZE: u64 = 256 << 20;

/// A component of the VM.
#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    snapshots: BTreeMap<String, Node>,
    snapshot_data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    state: String,
}

/// A vCPU, by hypervisor.
#[derive(Deserialize)]
enum CpuState {
    Kvm(KvmState),
}

/// Of an arm64 vCPU. On other architectures other fields are there.
#[derive(Deserialize)]
struct KvmState {
    /// `struct kvm_mp_state`.
    mp_state: Vec<u8>,
    /// `struct kvm_regs`.
    core_regs: Option<Vec<u8>>,
    /// `struct kvm_one_reg` each, the value where KVM has its address.
    #[serde(default)]
    sys_regs: Vec<Vec<u8>>,
    /// Those of SVE, where the guest has it.
    #[serde(default)]
    pre_finalize_regs: Vec<LongRegister>,
    #[serde(default)]
    extended_regs: Vec<LongRegister>,
}

#[derive(Deserialize)]
struct LongRegister {
    id: u64,
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct MemoryState {
    memory_ranges: Ranges,
}

#[derive(Deserialize)]
struct Ranges {
    data: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    gpa: u64,
    length: u64,
}

/// Whether cloud-hypervisor has made it.
pub(super) fn is_one(directory: &Path) -> bool {
    directory.join(CONFIG_FILE).exists()
}

/// Opens one.
pub(super) fn open(directory: &Path) -> Result<Frozen, VmError> {
    let path = directory.join(STATE_FILE);
    let bad = |reason: String| VmError::Snapshot { path: path.clone(), reason };
    let root = read(&path).map_err(bad)?;
    let vcpus = vcpus(&root).map_err(bad)?;
    let ranges: MemoryState = root.child(MEMORY).and_then(|node| node.state(MEMORY)).map_err(bad)?;
    let session: Option<GuestDebugState> =
        root.snapshots.get(SESSION).map(|node| node.state(SESSION)).transpose().map_err(bad)?;
    let memory = memory(&directory.join(MEMORY_FILE), ranges.memory_ranges.data)?;
    Frozen::new(vcpus, memory, session).map_err(|error| bad(error.to_string()))
}

fn read(path: &Path) -> Result<Node, String> {
    let file = File::open(path).map_err(text)?;
    let size = file.metadata().map_err(text)?.len();
    if size > MAX_STATE_SIZE {
        return Err(format!("has {size} bytes; it can have at most {MAX_STATE_SIZE}"));
    }
    let mut json = String::new();
    file.take(MAX_STATE_SIZE).read_to_string(&mut json).map_err(text)?;
    serde_json::from_str(&json).map_err(text)
}

impl Node {
    fn child(&self, name: &str) -> Result<&Self, String> {
        self.snapshots.get(name).ok_or_else(|| format!("it has no {name}"))
    }

    /// Its own state.
    fn state<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        let data = self.snapshot_data.as_ref().ok_or_else(|| format!("{name} has no state"))?;
        serde_json::from_str(&data.state).map_err(|error| format!("{name}: {error}"))
    }
}

/// The vCPUs, by number and not as the tree sorts their names.
fn vcpus(root: &Node) -> Result<Vec<FrozenVcpu>, String> {
    let nodes = &root.child(CPUS)?.snapshots;
    let one = |id: usize| {
        let name = id.to_string();
        let node = nodes.get(&name).ok_or_else(|| format!("{CPUS} has {} vCPUs, and none is {name}", nodes.len()))?;
        let name = format!("{CPUS}/{name}");
        let CpuState::Kvm(state) = node.state(&name)?;
        vcpu(state).map_err(|reason| format!("{name}: {reason}"))
    };
    (0..nodes.len()).map(one).collect()
}

fn vcpu(state: KvmState) -> Result<FrozenVcpu, String> {
    let KvmState { mp_state, core_regs, sys_regs, pre_finalize_regs, extended_regs } = state;
    let core = core_regs.ok_or("it has no core_regs; only arm64 guests can be looked at so far")?;
    let long: Vec<_> = pre_finalize_regs.into_iter().chain(extended_regs).map(|reg| (reg.id, reg.data)).collect();
    let mut registers = core_registers(&core, !long.is_empty())?;
    for (index, bytes) in sys_regs.iter().enumerate() {
        registers.push(one_reg(bytes).ok_or_else(|| format!("sys_regs[{index}] has {} bytes, not 16", bytes.len()))?);
    }
    registers.extend(long);
    let powered_on = mp_state.first_chunk().is_none_or(|state| u32::from_le_bytes(*state) != MP_STATE_STOPPED);
    Ok(FrozenVcpu::from_kvm(powered_on, registers))
}

/// The registers in `struct kvm_regs`: an id has the offset, in words of four bytes. With SVE the vector registers there are
/// not saved, as those of SVE have them.
fn core_registers(core: &[u8], sve: bool) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let general = [Reg::SpEl0, Reg::Pc, Reg::Pstate, Reg::SpEl1, Reg::ElrEl1, Reg::SpsrEl1];
    let vectors = (0..32).map(Reg::V).chain([Reg::Fpsr, Reg::Fpcr]).filter(|_| !sve);
    let all = (0..31).map(Reg::X).chain(general).chain(vectors);
    let value = |reg: Reg| {
        let id = regid::encode(reg);
        let start = (id & 0xffff) as usize * 4;
        let bytes = core.get(start..start + reg.size());
        bytes
            .map(|bytes| (id, bytes.to_vec()))
            .ok_or_else(|| format!("core_regs has {} bytes, {reg} is behind", core.len()))
    };
    all.map(value).collect()
}

fn one_reg(bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (id, value) = bytes.split_first_chunk()?;
    let id = u64::from_le_bytes(*id);
    let value: &[u8; 8] = value.try_into().ok()?;
    let length = regid::decode(id).map_or(8, Reg::size).min(8);
    Some((id, value.get(..length)?.to_vec()))
}

/// Where the ranges are in the file.
fn memory(path: &Path, ranges: Vec<Range>) -> Result<Vec<FrozenRegion>, VmError> {
    let bad = |reason: String| VmError::Snapshot { path: path.to_owned(), reason };
    let file = Arc::new(File::open(path).map_err(|error| bad(text(error)))?);
    let size = file.metadata().map_err(|error| bad(text(error)))?.len();
    let mut end: u64 = 0;
    let mut regions = Vec::new();
    for Range { gpa, length } in ranges {
        regions.push(FrozenRegion { address: GuestAddress(gpa), length, file: file.clone(), offset: end });
        end = end.saturating_add(length);
    }
    if end > size {
        return Err(bad(format!("has {size} bytes; {MEMORY} lists {end}")));
    }
    regions.sort_by_key(|region| region.address);
    Ok(regions)
}

fn text(error: impl Display) -> String {
    error.to_string()
}
