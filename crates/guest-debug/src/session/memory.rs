//! Guest memory and registers, as the client sees them.

use super::{DebugSession, SessionError};
use crate::arch::{Arch, Register as _};
use crate::{DebugVcpu, Gva, RamError, VcpuId};
use vm_memory::{Address, GuestAddress};

/// The smallest granule: RAM begins and ends on such a boundary.
const PAGE: usize = 4096;
/// The most that is read at once.
const CHUNK: usize = 1 << 20;

impl<A: Arch> DebugSession<A> {
    /// Reads memory by guest-virtual address in the address space that `vcpu` is in, without the session's own
    /// breakpoint instructions. The answer is shorter than `length` where a page behind the first one can't be read.
    ///
    /// # Errors
    ///
    /// [`SessionError::Translate`] or [`SessionError::Ram`] when the first byte can't be read,
    /// [`SessionError::NotStopped`].
    pub fn read_memory(&self, vcpu: VcpuId, address: Gva, length: usize) -> Result<Vec<u8>, SessionError> {
        let regime = self.regime(vcpu)?;
        // The last address there is ends it, as an unmapped page does.
        let length = length.min(usize::try_from((u64::MAX - address.0).saturating_add(1)).unwrap_or(usize::MAX));
        let mut data = Vec::new();
        while data.len() < length {
            let at = address.0.wrapping_add(data.len() as u64);
            match self.append_piece(&regime, at, length - data.len(), &mut data) {
                Ok(()) => {}
                Err(error) if data.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(data)
    }

    /// Appends what is contiguous from `at` on, or nothing.
    fn append_piece(&self, regime: &A::Regime, at: u64, left: usize, data: &mut Vec<u8>) -> Result<(), SessionError> {
        let (gpa, run) = self.run_of(regime, at)?;
        let whole = left.min(run).min(CHUNK);
        // A block may reach beyond RAM; up to the end of its page it can't.
        let page = whole.min(PAGE - (gpa.0 % PAGE as u64) as usize);
        match self.append_physical(gpa, whole, data) {
            Err(_) if page < whole => self.append_physical(gpa, page, data),
            result => result,
        }
    }

    /// Appends guest-physical memory, or nothing.
    fn append_physical(&self, gpa: GuestAddress, length: usize, data: &mut Vec<u8>) -> Result<(), SessionError> {
        let known = data.len();
        data.resize(known + length, 0);
        let read = self.software().read(gpa, data.get_mut(known..).unwrap_or_default(), &*self.ram);
        if read.is_err() {
            data.truncate(known);
        }
        Ok(read?)
    }

    /// Writes memory by guest-virtual address, all of it or none. Planted breakpoints stay planted: what falls
    /// on one becomes its original instruction.
    ///
    /// # Errors
    ///
    /// [`SessionError::Translate`], [`SessionError::Ram`], [`SessionError::NotStopped`], [`SessionError::Frozen`]; nothing
    /// was written.
    pub fn write_memory(&self, vcpu: VcpuId, address: Gva, data: &[u8]) -> Result<(), SessionError> {
        let _tables = self.thawed()?;
        self.all_stopped()?;
        let regime = self.regime(vcpu)?;
        if (data.len() as u64).checked_sub(1).is_some_and(|last| address.0.checked_add(last).is_none()) {
            return Err(SessionError::Wraps { address, length: data.len() });
        }
        let mut pieces = Vec::new();
        let mut left = data;
        while !left.is_empty() {
            let at = address.0.wrapping_add((data.len() - left.len()) as u64);
            let (gpa, run) = self.run_of(&regime, at)?;
            let (piece, rest) = left.split_at(left.len().min(run));
            // Reading tells whether it is RAM before anything has been written.
            self.ram.read(gpa, &mut vec![0; piece.len()])?;
            pieces.push((gpa, piece));
            left = rest;
        }
        let mut software = self.software_mut();
        for (gpa, piece) in pieces {
            software.write(gpa, piece, &*self.ram)?;
        }
        Ok(())
    }

    /// Reads guest-physical memory, without the session's own breakpoint instructions.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`] when a byte of it is not RAM.
    pub fn read_physical(&self, address: GuestAddress, length: usize) -> Result<Vec<u8>, SessionError> {
        let mut data = Vec::new();
        while data.len() < length {
            let at = address.checked_add(data.len() as u64);
            let at = at.ok_or(RamError { address: address.0, length })?;
            // Piece by piece: a length beyond RAM must not be allocated before that is known.
            self.append_physical(at, CHUNK.min(length - data.len()), &mut data)?;
        }
        Ok(data)
    }

    /// Reads guest-physical memory as the guest wrote it, whatever its vCPUs are doing: for a VMM that saves the VM, or
    /// copies it elsewhere while it runs. A place that is changed at the same time is marked in the dirty log or the dirty
    /// bitmap, and has to be read again.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`] when a byte of it is not RAM.
    pub fn read_guest(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), SessionError> {
        Ok(self.software().read(address, data, &*self.ram)?)
    }

    /// Writes guest-physical memory, as [`Self::write_memory`] does.
    ///
    /// # Errors
    ///
    /// [`SessionError::Ram`], [`SessionError::NotStopped`], [`SessionError::Frozen`]; nothing was written.
    pub fn write_physical(&self, address: GuestAddress, data: &[u8]) -> Result<(), SessionError> {
        let _tables = self.thawed()?;
        self.all_stopped()?;
        Ok(self.software_mut().write(address, data, &*self.ram)?)
    }

    /// Translates an address in the address space that `vcpu` is in.
    ///
    /// # Errors
    ///
    /// [`SessionError::Translate`], [`SessionError::NotStopped`].
    pub fn translate(&self, vcpu: VcpuId, address: Gva) -> Result<GuestAddress, SessionError> {
        Ok(GuestAddress(A::place(&self.lookup(vcpu, address)?).0))
    }

    /// The same, with the size and permissions of the page or block.
    ///
    /// # Errors
    ///
    /// As [`Self::translate`].
    pub fn lookup(&self, vcpu: VcpuId, address: Gva) -> Result<A::Translation, SessionError> {
        let regime = self.regime(vcpu)?;
        A::translate(&regime, address.0, &*self.ram)
    }

    /// Reads a register of a stopped vCPU, little-endian, [`crate::Register::size`] bytes.
    ///
    /// # Errors
    ///
    /// [`SessionError::Vcpu`] when the vCPU has no such register, [`SessionError::NotStopped`].
    pub fn read_register(&self, vcpu: VcpuId, reg: A::Reg) -> Result<Vec<u8>, SessionError> {
        let mut value = vec![0; reg.size()];
        self.stopped(vcpu)?.get_reg(reg, &mut value).map_err(|source| SessionError::Vcpu { vcpu, source })?;
        Ok(value)
    }

    /// Writes a register of a stopped vCPU, little-endian, [`crate::Register::size`] bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::read_register`]; also when the register is read-only. [`SessionError::Frozen`].
    pub fn write_register(&self, vcpu: VcpuId, reg: A::Reg, value: &[u8]) -> Result<(), SessionError> {
        let _tables = self.thawed()?;
        self.stopped(vcpu)?.set_reg(reg, value).map_err(|source| SessionError::Vcpu { vcpu, source })
    }

    /// Every register that a vCPU has.
    ///
    /// # Errors
    ///
    /// As [`Self::read_register`].
    pub fn register_list(&self, vcpu: VcpuId) -> Result<Vec<A::Reg>, SessionError> {
        self.stopped(vcpu)?.reg_list().map_err(|source| SessionError::Vcpu { vcpu, source })
    }

    /// As many bytes of the guest's code at `gpa` as a breakpoint takes.
    pub(super) fn fetch_code(&self, gpa: GuestAddress) -> Result<A::Code, SessionError> {
        let mut code = A::BREAK;
        self.software().read(gpa, code.as_mut(), &*self.ram)?;
        Ok(code)
    }

    /// Translates for a vCPU's own thread.
    pub(super) fn translate_by(
        &self,
        id: VcpuId,
        vcpu: &dyn DebugVcpu<A>,
        address: Gva,
    ) -> Result<GuestAddress, SessionError> {
        let regime = self.regime_by(id, vcpu)?;
        Ok(GuestAddress(A::place(&A::translate(&regime, address.0, &*self.ram)?).0))
    }

    /// How a vCPU translates, for its own thread.
    pub(super) fn regime_by(&self, id: VcpuId, vcpu: &dyn DebugVcpu<A>) -> Result<A::Regime, SessionError> {
        A::regime(vcpu).map_err(|source| SessionError::Vcpu { vcpu: id, source })
    }

    fn regime(&self, vcpu: VcpuId) -> Result<A::Regime, SessionError> {
        A::regime(&*self.stopped(vcpu)?).map_err(|source| SessionError::Vcpu { vcpu, source })
    }

    /// Where `at` is, and how many bytes follow it contiguously.
    fn run_of(&self, regime: &A::Regime, at: u64) -> Result<(GuestAddress, usize), SessionError> {
        let (gpa, size) = A::place(&A::translate(regime, at, &*self.ram)?);
        let run = usize::try_from(size - (gpa & (size - 1))).unwrap_or(usize::MAX);
        Ok((GuestAddress(gpa), run))
    }
}
