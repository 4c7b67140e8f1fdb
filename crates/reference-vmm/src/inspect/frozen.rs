//! A VM that was saved, whoever saved it: registers, memory in files, the debug session.

use guest_debug::arm64::{Pstate, Reg};
use guest_debug::kvm::regid;
use guest_debug::state::{self, GuestDebugState, StateError, StopState};
use guest_debug::{AnyReg, Arch, Arm64, DebugVcpu, GuestRam, RamError, Register as _, VcpuError};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use thiserror::Error;
use vm_memory::GuestAddress;

/// Parts of a saved VM that contradict themselves or each other.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrozenError {
    /// There is nothing to look at.
    #[error("it has no vCPU")]
    NoVcpus,
    /// A register has another length than its name says.
    #[error("vCPU {vcpu}: register {reg} has {length} bytes, and not {expected}")]
    Register {
        /// The vCPU.
        vcpu: usize,
        /// Its register.
        reg: AnyReg,
        /// Bytes that are there.
        length: usize,
        /// Bytes that the register has.
        expected: usize,
    },
    /// A memory region ends behind the last address or behind the last byte that a file can have.
    #[error(
        "memory region {index} of {length:#x} bytes runs over the end of the address space, or of its file's offsets"
    )]
    Wraps {
        /// The region.
        index: usize,
        /// Its length.
        length: u64,
    },
    /// A memory region does not lie behind the one before it.
    #[error("memory region {index} at {:#x} is not behind the end of the one before it", address.0)]
    Order {
        /// The region.
        index: usize,
        /// Its first address.
        address: GuestAddress,
    },
    /// The debug session can't be one.
    #[error("guest-debug: {0}")]
    Session(#[from] StateError),
}

/// A saved VM. Its parts are checked.
#[derive(Debug)]
pub struct Frozen<A: Arch = Arm64> {
    vcpus: Vec<Arc<FrozenVcpu<A>>>,
    memory: Arc<FrozenMemory>,
    session: Option<GuestDebugState>,
}

impl<A: Arch> Frozen<A> {
    /// Puts a saved VM together. Memory regions are in the order of their addresses.
    ///
    /// # Errors
    ///
    /// [`FrozenError`] with the part that is wrong.
    pub fn new(
        vcpus: Vec<FrozenVcpu<A>>,
        memory: Vec<FrozenRegion>,
        session: Option<GuestDebugState>,
    ) -> Result<Self, FrozenError> {
        if vcpus.is_empty() {
            return Err(FrozenError::NoVcpus);
        }
        for (index, vcpu) in vcpus.iter().enumerate() {
            let wrong = vcpu.registers.iter().find(|(reg, value)| value.len() != reg.size());
            if let Some((&reg, value)) = wrong {
                let (length, expected) = (value.len(), reg.size());
                return Err(FrozenError::Register { vcpu: index, reg: reg.into(), length, expected });
            }
        }
        if let Some(session) = &session {
            state::check_as::<A>(session)?;
            let (found, expected) = (session.vcpus.len(), vcpus.len());
            if found != expected {
                return Err(StateError::VcpuCount { found, expected }.into());
            }
        }
        let memory = Arc::new(FrozenMemory::new(memory)?);
        Ok(Self { vcpus: vcpus.into_iter().map(Arc::new).collect(), memory, session })
    }

    /// The vCPUs, in the order of their indices.
    pub fn vcpus(&self) -> &[Arc<FrozenVcpu<A>>] {
        &self.vcpus
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<FrozenMemory> {
        &self.memory
    }

    /// The debug session, if it was debugged.
    pub fn session(&self) -> Option<&GuestDebugState> {
        self.session.as_ref()
    }

    /// Whether a stop's vCPU is still where it stopped. Of a session that was dormant it may have moved on, and a
    /// restored session would not tell such a stop either.
    pub fn holds(&self, stop: &StopState) -> bool {
        let pc = self.vcpus.get(stop.vcpu as usize).and_then(|vcpu| A::pc(&**vcpu).ok());
        pc.is_none_or(|pc| pc == stop.pc)
    }
}

/// A saved vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenVcpu<A: Arch = Arm64> {
    powered_on: bool,
    order: Vec<A::Reg>,
    registers: BTreeMap<A::Reg, Vec<u8>>,
}

impl<A: Arch> FrozenVcpu<A> {
    /// A vCPU with these registers, little-endian. Of one that comes twice the last value counts, as when they are written
    /// back one after the other.
    pub fn new(powered_on: bool, registers: impl IntoIterator<Item = (A::Reg, Vec<u8>)>) -> Self {
        let (mut order, mut values) = (Vec::new(), BTreeMap::new());
        for (reg, value) in registers {
            if values.insert(reg, value).is_none() {
                order.push(reg);
            }
        }
        Self { powered_on, order, registers: values }
    }

    /// Whether it runs, and does not wait to be started by another one: by PSCI CPU_ON, or by INIT and SIPI.
    pub fn is_powered_on(&self) -> bool {
        self.powered_on
    }
}

impl FrozenVcpu {
    /// A vCPU with registers by KVM's numbers (`KVM_GET_ONE_REG`). What a debugger has no name for is left out.
    pub fn from_kvm(powered_on: bool, registers: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        let known = |(id, value)| Some((regid::decode(id)?, value));
        Self::new(powered_on, registers.into_iter().filter_map(known))
    }

    /// PSTATE, if it was saved.
    pub fn pstate(&self) -> Option<Pstate> {
        self.get_u64(Reg::Pstate).ok().map(Pstate)
    }

    /// The stack pointer that is in use, if it was saved.
    pub fn sp(&self) -> Option<u64> {
        let own = self.pstate()?.sp_sel();
        self.get_u64(if own { Reg::SpEl1 } else { Reg::SpEl0 }).ok()
    }
}

impl<A: Arch> DebugVcpu<A> for FrozenVcpu<A> {
    fn get_reg(&self, reg: A::Reg, value: &mut [u8]) -> Result<(), VcpuError> {
        let saved = self.registers.get(&reg).ok_or(VcpuError::NoSuchRegister(reg.into()))?;
        let (expected, got) = (saved.len(), value.len());
        if expected != got {
            return Err(VcpuError::RegisterSize { reg: reg.into(), expected, got });
        }
        value.copy_from_slice(saved);
        Ok(())
    }

    fn set_reg(&self, _: A::Reg, _: &[u8]) -> Result<(), VcpuError> {
        Err(VcpuError::Unsupported("writing to a saved vCPU"))
    }

    fn reg_list(&self) -> Result<Vec<A::Reg>, VcpuError> {
        Ok(self.order.clone())
    }
}

/// A range of guest memory in a file.
#[derive(Debug, Clone)]
pub struct FrozenRegion {
    /// First guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub length: u64,
    /// The file; regions may share it.
    pub file: Arc<File>,
    /// Where in the file it begins.
    pub offset: u64,
}

/// Saved guest memory.
///
/// It is read piece by piece, and not mapped: a file that shrinks while it is open is an error then and not a SIGBUS, offsets
/// need no alignment, and nothing can be written by mistake.
#[derive(Debug)]
pub struct FrozenMemory(Vec<FrozenRegion>);

impl FrozenMemory {
    fn new(regions: Vec<FrozenRegion>) -> Result<Self, FrozenError> {
        let mut end = 0;
        for (index, region) in regions.iter().enumerate() {
            let (address, length) = (region.address, region.length);
            if address.0 < end {
                return Err(FrozenError::Order { index, address });
            }
            let wraps = FrozenError::Wraps { index, length };
            // Offsets of files are signed.
            let fits = region.offset.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok());
            end = address.0.checked_add(length).filter(|_| fits).ok_or(wraps)?;
        }
        Ok(Self(regions))
    }

    /// The regions, in the order of their addresses.
    pub fn regions(&self) -> &[FrozenRegion] {
        &self.0
    }

    fn region(&self, address: u64) -> Option<&FrozenRegion> {
        let index = self.0.partition_point(|region| region.address.0 <= address).checked_sub(1)?;
        self.0.get(index).filter(|region| address - region.address.0 < region.length)
    }
}

impl GuestRam for FrozenMemory {
    fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), RamError> {
        let error = RamError { address: address.0, length: data.len() };
        let (mut at, mut rest) = (address.0, data);
        while !rest.is_empty() {
            let region = self.region(at).ok_or(error)?;
            let offset = at - region.address.0;
            let length = usize::try_from(region.length - offset).map_or(rest.len(), |left| left.min(rest.len()));
            let (piece, tail) = rest.split_at_mut(length);
            region.file.read_exact_at(piece, region.offset + offset).map_err(|_| error)?;
            (at, rest) = (at.wrapping_add(length as u64), tail);
        }
        Ok(())
    }

    fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), RamError> {
        Err(RamError { address: address.0, length: data.len() })
    }
}
