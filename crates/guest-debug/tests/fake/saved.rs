//! For the suites that save a session.

use super::{COUNT, NOP, RAM, Vm, branch};
use guest_debug::state::GuestDebugState;
use vm_memory::{Bytes, GuestAddress};

/// Counts in X1 for ever, from RAM + 4 to RAM + 12 and back.
pub const LOOP: [u32; 4] = [NOP, COUNT, NOP, branch(-8)];
/// The session's own breakpoint instruction.
pub const BRK: u32 = 0xd420_0000 | 0x67db << 5;

/// All of the guest's memory.
pub fn image(vm: &Vm) -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    vm.ram.read_slice(&mut image, GuestAddress(RAM)).unwrap();
    image
}

/// Freezes, and takes the state.
pub fn save(vm: &Vm) -> GuestDebugState {
    vm.session.freeze().unwrap();
    vm.session.state().unwrap()
}
