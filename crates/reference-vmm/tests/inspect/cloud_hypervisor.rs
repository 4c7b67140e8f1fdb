//! The same VM as cloud-hypervisor saves it.

use crate::sample::{PHYSICAL, Sample, session, state};
use guest_debug::arm64::Reg;
use guest_debug::kvm::regid;
use guest_debug::state::GuestDebugState;
use guest_debug::{DebugVcpu as _, GuestRam as _};
use reference_vmm::inspect::cloud_hypervisor::{CONFIG_FILE, MEMORY_FILE, SESSION};
use reference_vmm::inspect::{self, Frozen, Opened, Report};
use reference_vmm::snapshot::{self, STATE_FILE};
use reference_vmm::state::arm64::VcpuState;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use vm_memory::GuestAddress;
use vmm_sys_util::tempdir::TempDir;

/// `struct kvm_regs` of arm64.
const CORE_BYTES: usize = 864;
const CORE: u64 = 0x0010_0000;
const COPROC: u64 = 0x0fff_0000;
const RAM: u64 = 0x8000_0000;
const HALF: u64 = 4 << 20;

fn opened(path: &Path) -> Frozen {
    match inspect::open(path).unwrap() {
        Opened::Arm64(frozen) => frozen,
        Opened::X86_64(_) => panic!("it is one of an arm64 guest"),
    }
}

/// A snapshot directory, and what its state is made of.
struct Directory {
    _directory: TempDir,
    path: PathBuf,
    tree: Value,
}

impl Directory {
    /// Memory is listed in these ranges.
    fn new(session: Option<GuestDebugState>, ranges: &[(u64, u64)]) -> Self {
        let sample = Sample::write(&state(None));
        let ram = fs::read(sample.path.join(snapshot::MEMORY_FILE)).unwrap();
        let part = |&(gpa, length): &(u64, u64)| ram[(gpa - RAM) as usize..][..length as usize].to_vec();
        let listed: Vec<_> = ranges.iter().map(|(gpa, length)| json!({"gpa": gpa, "length": length})).collect();
        let vcpus = state(None).vcpus;
        let vcpus = vcpus.iter().map(vcpu).enumerate();
        let cpus: serde_json::Map<_, _> = vcpus.map(|(id, vcpu)| (id.to_string(), leaf(&vcpu))).collect();
        let mut tree = json!({
            "snapshots": {
                "cpu-manager": {"snapshots": cpus, "snapshot_data": null},
                "memory-manager": leaf(&json!({"memory_ranges": {"data": listed}, "boot_ram": 8 << 20})),
                "device-manager": {"snapshots": {}, "snapshot_data": null},
            },
            "snapshot_data": {"state": "{\"clock\":null}"},
        });
        if let Some(session) = session {
            tree["snapshots"][SESSION] = leaf(&serde_json::to_value(session).unwrap());
        }
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().to_owned();
        fs::write(path.join(CONFIG_FILE), "{}").unwrap();
        fs::write(path.join(MEMORY_FILE), ranges.iter().flat_map(part).collect::<Vec<_>>()).unwrap();
        let directory = Self { _directory: directory, path, tree };
        directory.write();
        directory
    }

    fn whole(session: Option<GuestDebugState>) -> Self {
        Self::new(session, &[(RAM, 2 * HALF)])
    }

    fn write(&self) {
        fs::write(self.path.join(STATE_FILE), self.tree.to_string()).unwrap();
    }

    fn open(&self) -> Frozen {
        opened(&self.path)
    }

    fn error(&self) -> String {
        self.write();
        inspect::open(&self.path).unwrap_err().to_string()
    }

    /// Changes the state in a leaf below `path`.
    fn change(&mut self, path: &str, change: impl FnOnce(&mut Value)) {
        let text = self.tree.pointer_mut(&format!("{path}/snapshot_data/state")).unwrap();
        let mut value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        change(&mut value);
        *text = Value::String(value.to_string());
    }
}

fn leaf(state: &Value) -> Value {
    json!({"snapshots": {}, "snapshot_data": {"state": state.to_string()}})
}

fn vcpu(saved: &VcpuState) -> Value {
    let mut core = vec![0; CORE_BYTES];
    let mut system = Vec::new();
    for register in &saved.registers {
        if register.id & COPROC == CORE {
            let start = (register.id & 0xffff) as usize * 4;
            core[start..start + register.value.len()].copy_from_slice(&register.value);
        } else {
            system.push([&register.id.to_le_bytes()[..], &register.value].concat());
        }
    }
    let v3 = (regid::encode(Reg::V(3)) & 0xffff) as usize * 4;
    core[v3..v3 + 16].copy_from_slice(&[7; 16]);
    json!({"Kvm": {"mp_state": saved.mp_state.to_le_bytes(), "core_regs": core, "sys_regs": system}})
}

#[test]
fn it_is_the_same_vm() {
    for session in [None, Some(session())] {
        let own = Report::of(&opened(&Sample::write(&state(session.clone())).path));
        let report = Report::of(&Directory::whole(session).open());
        assert_eq!(report.to_string(), own.to_string());
        assert_eq!(report.to_json().unwrap(), own.to_json().unwrap());
    }
}

#[test]
fn memory_is_where_its_ranges_say() {
    let frozen = Directory::new(None, &[(RAM + HALF, HALF), (RAM, HALF)]).open();
    let own = opened(&Sample::write(&state(None)).path);
    for address in [PHYSICAL, RAM + HALF - 8, RAM + 0x0010_0000] {
        let mut bytes = [[0; 16]; 2];
        frozen.memory().read(GuestAddress(address), &mut bytes[0]).unwrap();
        own.memory().read(GuestAddress(address), &mut bytes[1]).unwrap();
        assert_eq!(bytes[0], bytes[1], "{address:#x}");
    }
    let mut word = [0; 4];
    frozen.memory().read(GuestAddress(PHYSICAL), &mut word).unwrap();
    assert_ne!(word, [0; 4]);
}

#[test]
fn vectors_are_in_one_place_or_the_other() {
    let mut directory = Directory::whole(None);
    let mut value = [0; 16];
    directory.open().vcpus()[1].get_reg(Reg::V(3), &mut value).unwrap();
    assert_eq!(value, [7; 16]);
    let z = json!([{"id": regid::encode(Reg::Z(3)), "data": vec![9; Reg::Z(3).size()]}]);
    directory.change("/snapshots/cpu-manager/snapshots/1", |vcpu| vcpu["Kvm"]["extended_regs"] = z);
    directory.write();
    let vcpu = directory.open().vcpus()[1].clone();
    assert!(vcpu.get_reg(Reg::V(3), &mut value).is_err(), "cloud-hypervisor leaves it zero beside SVE");
    let mut value = vec![0; Reg::Z(3).size()];
    vcpu.get_reg(Reg::Z(3), &mut value).unwrap();
    assert_eq!(value, vec![9; Reg::Z(3).size()]);
}

#[test]
fn a_vcpu_that_is_off_is_off() {
    let mut directory = Directory::whole(None);
    directory.change("/snapshots/cpu-manager/snapshots/1", |vcpu| vcpu["Kvm"]["mp_state"] = json!([5, 0, 0, 0]));
    directory.write();
    let on: Vec<_> = directory.open().vcpus().iter().map(|vcpu| vcpu.is_powered_on()).collect();
    assert_eq!(on, [true, false]);
}

#[test]
fn each_way_to_be_bad_is_named() {
    const VCPU: &str = "/snapshots/cpu-manager/snapshots/1";
    let bad = |change: &dyn Fn(&mut Directory), expected: &[&str]| {
        let mut directory = Directory::whole(Some(session()));
        change(&mut directory);
        let error = directory.error();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let kvm = |name: &'static str, value: Value| {
        move |directory: &mut Directory| {
            let value = value.clone();
            directory.change(VCPU, |vcpu| vcpu["Kvm"][name] = value);
        }
    };
    bad(&kvm("core_regs", json!([1, 2, 3])), &[STATE_FILE, "cpu-manager/1", "3 bytes"]);
    bad(&kvm("core_regs", Value::Null), &["cpu-manager/1", "only arm64"]);
    bad(&kvm("sys_regs", json!([[1, 2]])), &["cpu-manager/1", "sys_regs[0] has 2 bytes"]);
    bad(&kvm("mp_state", json!(7)), &["cpu-manager/1"]);
    bad(&|directory| directory.change(VCPU, |vcpu| *vcpu = json!({"Mshv": {}})), &["cpu-manager/1", "Mshv"]);
    bad(&|directory| directory.tree["snapshots"]["cpu-manager"]["snapshots"] = json!({}), &["no vCPU"]);
    bad(
        &|directory| directory.tree["snapshots"]["cpu-manager"]["snapshots"] = json!({"1": leaf(&json!({}))}),
        &["none is 0"],
    );
    bad(&|directory| directory.tree["snapshots"] = json!({}), &["no cpu-manager"]);
    bad(
        &|directory| directory.tree["snapshots"]["memory-manager"] = json!({"snapshots": {}, "snapshot_data": null}),
        &["memory-manager has no state"],
    );
    let ranges = |ranges: Value| {
        move |directory: &mut Directory| {
            let ranges = ranges.clone();
            directory.change("/snapshots/memory-manager", |memory| memory["memory_ranges"]["data"] = ranges);
        }
    };
    let range = |gpa: u64, length: u64| json!({"gpa": gpa, "length": length});
    bad(&ranges(json!([range(RAM, 3 * HALF)])), &[MEMORY_FILE, "8388608 bytes", "12582912"]);
    bad(&ranges(json!([range(0, u64::MAX), range(0, u64::MAX)])), &[MEMORY_FILE]);
    bad(&ranges(json!([range(RAM, HALF), range(RAM, HALF)])), &["memory region 1"]);
    bad(
        &|directory| directory.change("/snapshots/guest-debug", |session| session["hardware"][0] = json!(2)),
        &["guest-debug: hardware[0]"],
    );
    bad(
        &|directory| directory.change("/snapshots/guest-debug", |session| session["version"] = json!(9)),
        &["guest-debug", "version 9"],
    );
    bad(&|directory| directory.tree = json!([]), &[STATE_FILE]);
    bad(&|directory| fs::remove_file(directory.path.join(MEMORY_FILE)).unwrap(), &[MEMORY_FILE]);
}
