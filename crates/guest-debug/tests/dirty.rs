//! Every write to guest memory goes through vm-memory: its bitmap knows each page that the session touched, so that a
//! migration sends it again.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "nothing is watched or moved here")]
mod fake;

use fake::*;
use guest_debug::{Breakpoint, Gva, Removed, Restore, StopReason};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const PAGE: usize = 4096;
/// Pages that the guest's loop is not on.
const FAR: [u64; 3] = [RAM + 0x2000, RAM + 0x3ffc, RAM + 0x5010];

/// Memory, and the pages that were dirtied since it was looked at last.
struct Observer(Vec<u8>);

impl Observer {
    fn new(vm: &Vm) -> Self {
        let mut observer = Self(image(vm));
        observer.pages(vm);
        observer
    }

    /// The pages that the bitmap has. None that changed may be missing.
    fn pages(&mut self, vm: &Vm) -> Vec<u64> {
        let words = vm.ram.iter().next().unwrap().bitmap().get_and_reset();
        let dirty = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
        let pages: Vec<u64> = (0..(1 << 20) / PAGE as u64).filter(dirty).collect();
        let now = image(vm);
        for ((page, old), new) in (0..).zip(self.0.chunks(PAGE)).zip(now.chunks(PAGE)) {
            assert!(old == new || pages.contains(&page), "page {page} was written beside the bitmap");
        }
        self.0 = now;
        pages
    }
}

#[test]
fn every_page_with_a_breakpoint_is_dirty_after_each_change() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    let mut observer = Observer::new(&vm);
    for address in FAR {
        vm.session.insert(V0, software(address)).unwrap();
    }
    assert_eq!(observer.pages(&vm), [2, 3, 5], "planted");
    vm.session.freeze().unwrap();
    assert_eq!(observer.pages(&vm), [2, 3, 5], "lifted for the save");
    vm.session.state().unwrap();
    assert!(observer.pages(&vm).is_empty(), "reading writes nothing");
    vm.session.thaw().unwrap();
    assert_eq!(observer.pages(&vm), [2, 3, 5], "planted again");
    vm.session.before_reset().unwrap();
    assert_eq!(observer.pages(&vm), [2, 3, 5], "lifted for a reset");
    vm.session.after_reset().unwrap();
    assert_eq!(observer.pages(&vm), [2, 3, 5], "planted again behind it");
    assert_eq!(vm.session.remove(software(FAR[0])).unwrap(), Removed::Restored);
    assert_eq!(observer.pages(&vm), [2], "removed");
    vm.session.detach().unwrap();
    assert_eq!(observer.pages(&vm), [3, 5], "removed with the client");
}

#[test]
fn a_save_that_reads_through_the_session_writes_nothing() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    let clean = image(&vm);
    for address in FAR {
        vm.session.insert(V0, software(address)).unwrap();
    }
    let planted = image(&vm);
    let mut observer = Observer::new(&vm);
    vm.session.freeze_planted().unwrap();
    let mut memory = vec![0; 1 << 20];
    vm.session.read_guest(GuestAddress(RAM), &mut memory).unwrap();
    assert!(memory == clean, "what is saved is the guest's own");
    assert_eq!(vm.session.state().unwrap().software.len(), FAR.len());
    vm.session.thaw().unwrap();
    assert!(observer.pages(&vm).is_empty(), "nothing was written");
    assert!(image(&vm) == planted, "and everything is planted still");
    assert_eq!(vm.session.remove(software(FAR[0])).unwrap(), Removed::Restored);
    let beyond = GuestAddress(RAM + (1 << 20) - 2);
    assert!(vm.session.read_guest(beyond, &mut [0; 4]).is_err(), "a byte of it is not RAM");
}

#[test]
fn a_running_guest_is_read_as_it_wrote_itself() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, software(FAR[0])).unwrap();
    vm.session.resume(&[]).unwrap();
    let mut word = [0; 4];
    vm.session.read_guest(GuestAddress(FAR[0]), &mut word).unwrap();
    assert_eq!(word, [0; 4]);
    assert_ne!(vm.word(FAR[0]), 0, "it is planted all the time");
}

#[test]
fn a_page_that_is_stepped_over_is_dirty() {
    let vm = Vm::new(1, &[NOP, COUNT, NOP, branch(-8)]).start();
    vm.session.insert(V0, software(RAM + 8)).unwrap();
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 8)));
    let mut observer = Observer::new(&vm);
    vm.session.resume(&[]).unwrap();
    assert_eq!(vm.stop().reason, StopReason::SoftwareBreakpoint(Gva(RAM + 8)));
    // The guest itself writes nothing.
    assert_eq!(observer.pages(&vm), [0], "lifted and planted around the step");
}

#[test]
fn a_page_that_the_client_writes_is_dirty() {
    let vm = Vm::new(1, &[branch(0)]).start();
    vm.session.insert(V0, software(FAR[0])).unwrap();
    let mut observer = Observer::new(&vm);
    vm.session.write_memory(V0, Gva(FAR[0] - 8), &[1; 16]).unwrap();
    assert_eq!(observer.pages(&vm), [1, 2]);
    vm.session.write_physical(GuestAddress(FAR[2]), &[1]).unwrap();
    assert_eq!(observer.pages(&vm), [5]);
    // Under the breakpoint only the session's copy changes; the page counts as written all the same.
    vm.session.write_physical(GuestAddress(FAR[0]), &NOP.to_le_bytes()).unwrap();
    assert_eq!(observer.pages(&vm), [2]);
    vm.session.detach().unwrap();
    assert_eq!(vm.word(FAR[0]), NOP);
    assert_eq!(observer.pages(&vm), [2]);
}

#[test]
fn pages_that_are_planted_on_the_destination_are_dirty_there() {
    let source = Vm::new(1, &[NOP, branch(0)]).start();
    for address in FAR {
        source.session.insert(V0, software(address)).unwrap();
    }
    source.session.insert(V0, Breakpoint::Hardware(Gva(RAM + 0x7000))).unwrap();
    source.session.freeze().unwrap();
    let state = source.session.state().unwrap();
    let few = guest_debug::DebugCaps { hw_bps: 0, ..CAPS };
    let other = source.restored(&state, few, Restore::Arm);
    let mut observer = Observer::new(&other);
    assert_eq!(other.session.arm().unwrap(), [Gva(RAM + 0x7000)]);
    assert_eq!(observer.pages(&other), [2, 3, 5, 7], "with the one that stands in");
}
