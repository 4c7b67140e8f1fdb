//! `g`, `G`, `p`, `P`, and the target description.

use super::{GuestTarget, refuse, vcpu};
use crate::arch::{RegisterBlock, RegisterNumber};
use crate::description::{Entry, GdbArch, Source};
use crate::vm::{DebugVm, VmError};
use gdbstub::common::Tid;
use gdbstub::target::ext::base::single_register_access::SingleRegisterAccess;
use gdbstub::target::ext::target_description_xml_override::TargetDescriptionXmlOverride;
use gdbstub::target::{TargetError, TargetResult};
use guest_debug::VcpuId;

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// All registers of the `g` packet, with one call.
    pub(super) fn read_block(&self, vcpu: VcpuId) -> Result<RegisterBlock, VmError> {
        let general = self.description.general();
        let values = self.values(vcpu, general.iter().flat_map(Entry::<A>::reads).collect())?;
        let bytes = general.iter().flat_map(|entry| match entry.compose(&values) {
            Some(bytes) => bytes.into_iter().map(Some).collect(),
            None => vec![None; entry.size],
        });
        Ok(RegisterBlock(bytes.collect()))
    }

    /// Writes all registers of the `G` packet that can be written.
    pub(super) fn write_block(&self, vcpu: VcpuId, block: &RegisterBlock) -> Result<(), VmError> {
        let general = self.description.general();
        let expected: usize = general.iter().map(|entry| entry.size).sum();
        let bytes: Vec<u8> = block.0.iter().map(|byte| byte.unwrap_or(0)).collect();
        if bytes.len() != expected {
            let message = format!("a G packet has {expected} bytes, the client sent {}", bytes.len());
            return Err(VmError::Other(message));
        }
        let mut values = self.values(vcpu, general.iter().flat_map(Entry::<A>::reads_for_write).collect())?;
        let mut writes = Vec::new();
        let mut rest = bytes.as_slice();
        // What they are depends on others as those will be, SP on PSTATE.
        let mut special = Vec::new();
        for entry in general {
            let Some((value, tail)) = rest.split_at_checked(entry.size) else { break };
            rest = tail;
            if matches!(entry.source, Source::Special(_)) {
                special.push((entry, value));
                continue;
            }
            match entry.decompose(value, &values) {
                Ok((reg, value)) => {
                    values.insert(reg, value.clone());
                    writes.push((reg, value));
                }
                Err(VmError::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        for (entry, value) in special {
            writes.push(entry.decompose(value, &values)?);
        }
        self.vm.write_registers(vcpu, writes)
    }

    /// Some registers, with one call; those that can't be read are missing.
    pub(crate) fn read_some(&self, vcpu: VcpuId, numbers: &[usize]) -> Result<Vec<(RegisterNumber, Vec<u8>)>, VmError> {
        let entries: Vec<(usize, &Entry<A>)> =
            numbers.iter().filter_map(|number| Some((*number, self.entry(*number).ok()?))).collect();
        let values = self.values(vcpu, entries.iter().flat_map(|(_, entry)| entry.reads()).collect())?;
        let read = |(number, entry): (usize, &Entry<A>)| Some((RegisterNumber(number), entry.compose(&values)?));
        Ok(entries.into_iter().filter_map(read).collect())
    }

    /// One register's bytes.
    fn read_one(&self, vcpu: VcpuId, number: usize) -> Result<Vec<u8>, VmError> {
        let entry = self.entry(number)?;
        let values = self.values(vcpu, entry.reads())?;
        entry.compose(&values).ok_or_else(|| VmError::Other(format!("{} can't be read", entry.name)))
    }

    fn write_one(&self, vcpu: VcpuId, number: usize, bytes: &[u8]) -> Result<(), VmError> {
        let entry = self.entry(number)?;
        let values = self.values(vcpu, entry.reads_for_write())?;
        self.vm.write_registers(vcpu, vec![entry.decompose(bytes, &values)?])
    }

    fn entry(&self, number: usize) -> Result<&Entry<A>, VmError> {
        self.description.entry(number).ok_or_else(|| VmError::Other(format!("there is no register number {number}")))
    }
}

impl<A: GdbArch, V: DebugVm<A>> SingleRegisterAccess<Tid> for GuestTarget<'_, A, V> {
    fn read_register(&mut self, tid: Tid, reg: RegisterNumber, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let bytes = self.read_one(vcpu(tid)?, reg.0).map_err(refuse)?;
        buf.get_mut(..bytes.len()).ok_or(TargetError::NonFatal)?.copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_register(&mut self, tid: Tid, reg: RegisterNumber, val: &[u8]) -> TargetResult<(), Self> {
        let written = self.write_one(vcpu(tid)?, reg.0, val);
        written.map_err(|error| self.refuse_aloud(error))
    }
}

impl<A: GdbArch, V: DebugVm<A>> TargetDescriptionXmlOverride for GuestTarget<'_, A, V> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::Errno(0));
        }
        let xml = self.description.xml().as_bytes();
        let rest = usize::try_from(offset).ok().and_then(|offset| xml.get(offset..)).unwrap_or_default();
        let length = length.min(rest.len()).min(buf.len());
        let (Some(to), Some(from)) = (buf.get_mut(..length), rest.get(..length)) else {
            return Err(TargetError::NonFatal);
        };
        to.copy_from_slice(from);
        Ok(length)
    }
}
