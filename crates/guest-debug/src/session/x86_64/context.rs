//! What a step has to know of its vCPU, read at once.

use crate::arch::X86_64;
use crate::x86_64::mode::{CodeRegisters, CodeSegment};
use crate::x86_64::translate::{Paging, translate};
use crate::x86_64::{Reg, insn};
use crate::{DebugVcpu, GuestRam, VcpuError};
use vm_memory::GuestAddress;

/// The smallest page.
const PAGE: u64 = 4096;
/// Translations that are kept: of the code and of the IDT, either of which may reach over the end of a page.
const KEPT: usize = 4;

/// MAXPHYADDR is in CPUID, which a vCPU is not asked for here. With the widest there is, entries whose reserved address bits
/// are set lead nowhere, instead of being told to be reserved.
const PHYSICAL_BITS: u8 = 52;

/// A vCPU between two instructions. Outlives instructions that can't have changed more of it than pc and the flags of
/// arithmetic: its translations, as a TLB does, until something is executed that would empty one.
#[derive(Debug)]
pub(super) struct Context {
    /// Address of the next instruction: linear, RIP is an offset in the code segment.
    pub(super) pc: u64,
    /// RFLAGS, of which IF and IOPL stay what they are.
    pub(super) rflags: u64,
    /// RCX and RSP: an instruction that leads to itself changes one of them, but for a jump, which changes nothing.
    pub(super) counters: [u64; 2],
    pub(super) code: CodeSegment,
    /// Linear address of the IDT.
    pub(super) idt: u64,
    paging: Paging,
    /// Linear pages and where they are, the latest last.
    pages: Vec<(u64, u64)>,
}

impl Context {
    pub(super) fn read(vcpu: &dyn DebugVcpu<X86_64>) -> Result<Self, VcpuError> {
        use Reg::{Cr0, Cr3, Cr4, Cs, CsAr, CsBase, Efer, Eflags, IdtBase, Rcx, Rip, Rsp};
        let [rip, rflags, rcx, rsp, cs, base, access_rights, cr0, cr3, cr4, efer, idt] =
            read(vcpu, [Rip, Eflags, Rcx, Rsp, Cs, CsBase, CsAr, Cr0, Cr3, Cr4, Efer, IdtBase])?;
        let code = CodeSegment::new(&CodeRegisters { cr0, efer, rflags, cs, base, access_rights });
        let paging = Paging { cr0, cr3, cr4, efer, physical_bits: PHYSICAL_BITS };
        Ok(Self { pc: code.linear(rip), rflags, counters: [rcx, rsp], code, idt, paging, pages: Vec::new() })
    }

    /// The same, at another instruction.
    pub(super) fn moved_to(self, pc: u64) -> Self {
        Self { pc, ..self }
    }

    /// Where an address is in guest memory. `None` if it is not mapped.
    pub(super) fn place(&mut self, address: u64, ram: &dyn GuestRam) -> Option<GuestAddress> {
        let (page, offset) = (address & !(PAGE - 1), address % PAGE);
        let known = self.pages.iter().find(|(known, _)| *known == page).map(|(_, base)| *base);
        let base = match known {
            Some(base) => base,
            None => {
                let base = translate(&self.paging, page, ram).ok()?.gpa;
                if self.pages.len() == KEPT {
                    self.pages.remove(0);
                }
                self.pages.push((page, base));
                base
            }
        };
        Some(GuestAddress(base + offset))
    }

    /// As much of the instruction at pc as `read` can read, at most as many bytes as the longest one has.
    pub(super) fn fetch(&mut self, ram: &dyn GuestRam, read: impl Fn(GuestAddress, &mut [u8]) -> bool) -> Vec<u8> {
        let pc = self.pc;
        let on_page = (PAGE - pc % PAGE).min(insn::MAX_LENGTH as u64);
        let mut code = vec![0; insn::MAX_LENGTH];
        let (first, rest) = code.split_at_mut(on_page as usize);
        let mut whole = |at: u64, piece: &mut [u8]| self.place(at, ram).is_some_and(|gpa| read(gpa, piece));
        let length = if !whole(pc, first) {
            0
        } else if rest.is_empty() || whole(pc.wrapping_add(on_page), rest) {
            insn::MAX_LENGTH
        } else {
            on_page as usize
        };
        code.truncate(length);
        code
    }
}

/// How a vCPU translates.
pub(super) fn paging(vcpu: &dyn DebugVcpu<X86_64>) -> Result<Paging, VcpuError> {
    let [cr0, cr3, cr4, efer] = read(vcpu, [Reg::Cr0, Reg::Cr3, Reg::Cr4, Reg::Efer])?;
    Ok(Paging { cr0, cr3, cr4, efer, physical_bits: PHYSICAL_BITS })
}

/// Registers that are read together.
pub(super) fn read<const N: usize>(vcpu: &dyn DebugVcpu<X86_64>, registers: [Reg; N]) -> Result<[u64; N], VcpuError> {
    let mut values = [0; N];
    vcpu.get_u64s(&registers, &mut values)?;
    Ok(values)
}
