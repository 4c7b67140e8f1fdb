//! The VM that keeps KVM's static key on.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::io::Write;
use std::path::Path;

use kvm_agent::HeldVm;

/// How many files of this process are VMs.
fn vms() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let is_vm = |file: &Path| fs::read_link(file).is_ok_and(|target| target == Path::new("anon_inode:kvm-vm"));
    files.filter(|file| is_vm(&file.as_ref().unwrap().path())).count()
}

#[test]
fn the_kernel_has_a_vm_while_one_is_held() {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        // Past libtest, which would keep it to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: the_kernel_has_a_vm_while_one_is_held: /dev/kvm: {error}");
        return;
    }
    assert_eq!(vms(), 0);
    let held = HeldVm::new().unwrap();
    assert_eq!(vms(), 1);
    drop(held);
    assert_eq!(vms(), 0);
}
