//! [`DebugVcpu`] for KVM's vCPU on arm64.

use super::regid;
use crate::arm64::Reg;
use crate::uapi::{DebugExitArch, GuestDebug};
use crate::{DebugConfig, DebugExit, DebugVcpu, VcpuError};
use kvm_bindings::{RegList, kvm_debug_exit_arch, kvm_guest_debug, kvm_reg_list};
use kvm_ioctls::VcpuFd;
use std::iter;
use vmm_sys_util::errno;

impl DebugVcpu for VcpuFd {
    fn set_guest_debug(&self, config: &DebugConfig) -> Result<(), VcpuError> {
        let debug = kvm_guest_debug::from(&GuestDebug::new(config));
        VcpuFd::set_guest_debug(self, &debug).map_err(os("KVM_SET_GUEST_DEBUG"))
    }

    fn get_reg(&self, reg: Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        check_size(reg, value.len())?;
        let get = |reg: Reg, value: &mut [u8]| self.get_one_reg(regid::encode(reg), value).map(drop);
        let result = get(reg, value).or_else(|error| match reg {
            // A vCPU with SVE has its V registers as the low part of Z alone.
            Reg::V(n) if is_missing(&error) => {
                let mut z = [0; Reg::Z(0).size()];
                get(Reg::Z(n), &mut z)?;
                value.copy_from_slice(&z[..value.len()]);
                Ok(())
            }
            _ => Err(error),
        });
        result.map_err(|error| register_error(reg, "KVM_GET_ONE_REG", error))
    }

    fn set_reg(&self, reg: Reg, value: &[u8]) -> Result<(), VcpuError> {
        check_size(reg, value.len())?;
        let set = |reg: Reg, value: &[u8]| self.set_one_reg(regid::encode(reg), value).map(drop);
        let result = set(reg, value).or_else(|error| match reg {
            Reg::V(n) if is_missing(&error) => {
                let mut z = [0; Reg::Z(0).size()];
                self.get_one_reg(regid::encode(Reg::Z(n)), &mut z)?;
                z[..value.len()].copy_from_slice(value);
                set(Reg::Z(n), &z)
            }
            _ => Err(error),
        });
        result.map_err(|error| register_error(reg, "KVM_SET_ONE_REG", error))
    }

    fn reg_list(&self) -> Result<Vec<Reg>, VcpuError> {
        let ids = register_ids(self, USUAL_REGS).map_err(os("KVM_GET_REG_LIST"))?;
        let mut regs: Vec<_> = ids.into_iter().filter_map(regid::decode).collect();
        // The views of Z that a vCPU with SVE has without saying so.
        if regs.contains(&Reg::Z(0)) && !regs.contains(&Reg::V(0)) {
            regs.extend((0..32).map(Reg::V));
        }
        Ok(regs)
    }
}

/// Registers that are asked for at first. Linux has some 300 to a vCPU, and more with each release.
const USUAL_REGS: usize = 500;

/// KVM's register list, asked for with room for `room` registers, and once more if there are more than that.
fn register_ids(vcpu: &VcpuFd, room: usize) -> Result<Vec<u64>, errno::Error> {
    let mut list = empty_list(room);
    match vcpu.get_reg_list(&mut list) {
        Ok(()) => Ok(list.as_slice().to_vec()),
        Err(error) if error.errno() == libc_errno::E2BIG => {
            // KVM has written how many there are, and nothing else.
            let mut list = empty_list(list.as_fam_struct_ref().n as usize);
            vcpu.get_reg_list(&mut list)?;
            Ok(list.as_slice().to_vec())
        }
        Err(error) => Err(error),
    }
}

/// A list with room for so many registers. Its own constructor stops at 500 (kvm-bindings, `ARM64_REGS_MAX`).
#[expect(unsafe_code, reason = "a list of any length has no safe constructor")]
fn empty_list(room: usize) -> RegList {
    // The header is as large as an entry, and zero is a good value of both.
    const { assert!(size_of::<kvm_reg_list>() == size_of::<u64>()) };
    let mut content: Vec<_> = iter::repeat_with(kvm_reg_list::default).take(room + 1).collect();
    content[0].n = room as u64;
    // SAFETY: the first element is the header, and `room` initialised elements follow it, as it says.
    unsafe { RegList::from_raw(content) }
}

impl DebugExit {
    /// A `KVM_EXIT_DEBUG`, with `flags` of the same `kvm_run`: they say whether the kernel filled `hsr_high`.
    pub fn from_kvm(exit: kvm_debug_exit_arch, run_flags: u16) -> Self {
        let exit = DebugExitArch::from(exit);
        Self { syndrome: exit.syndrome(run_flags), far: exit.far }
    }
}

fn check_size(reg: Reg, got: usize) -> Result<(), VcpuError> {
    let expected = reg.size();
    if got == expected { Ok(()) } else { Err(VcpuError::RegisterSize { reg: reg.into(), expected, got }) }
}

fn is_missing(error: &errno::Error) -> bool {
    matches!(error.errno(), libc_errno::ENOENT | libc_errno::EINVAL)
}

fn register_error(reg: Reg, operation: &'static str, error: errno::Error) -> VcpuError {
    if error.errno() == libc_errno::ENOENT { VcpuError::NoSuchRegister(reg.into()) } else { os(operation)(error) }
}

fn os(operation: &'static str) -> impl Fn(errno::Error) -> VcpuError {
    move |error| VcpuError::Os { operation, errno: error.errno() }
}

/// The error numbers that KVM gives a meaning of its own here.
mod libc_errno {
    pub(super) const ENOENT: i32 = 2;
    pub(super) const E2BIG: i32 = 7;
    pub(super) const EINVAL: i32 = 22;
}

/// Cleans the data cache to the point of unification and invalidates the instruction caches
/// (Arm ARM, B2.4.4 "Concurrent modification and execution of instructions").
#[expect(unsafe_code, reason = "cache maintenance has no other spelling")]
pub(crate) fn sync_icache(start: *const u8, length: usize) {
    use std::arch::asm;
    let ctr: u64;
    // SAFETY: CTR_EL0 is readable at EL0 on Linux, natively or emulated, and reading it has no effect.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    let data_line = 4usize << (ctr >> 16 & 0xf);
    let code_line = 4usize << (ctr & 0xf);
    let end = start as usize + length;
    for line in (start as usize & !(data_line - 1)..end).step_by(data_line) {
        // SAFETY: cleaning a line changes no value; the address is mapped, as the caller holds a slice of it.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers order memory accesses and change nothing else.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in (start as usize & !(code_line - 1)..end).step_by(code_line) {
        // SAFETY: invalidating a line of an instruction cache changes no value; the address is mapped.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: as above.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_vcpu_init;
    use kvm_ioctls::Kvm;
    use std::io::Write as _;

    #[test]
    fn a_register_list_longer_than_expected_is_complete() {
        let Ok(kvm) = Kvm::new() else {
            // Past libtest, which would keep it to itself.
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: there is no KVM");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut target = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut target).unwrap();
        vcpu.vcpu_init(&target).unwrap();
        let all = register_ids(&vcpu, 2 * USUAL_REGS).unwrap();
        assert!(all.len() > 30, "{}", all.len());
        for room in [0, 1, all.len() - 1, all.len()] {
            assert_eq!(register_ids(&vcpu, room).unwrap(), all, "room for {room}");
        }
    }
}
