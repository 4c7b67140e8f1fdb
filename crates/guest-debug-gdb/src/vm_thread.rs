//! Threads are vCPUs: gdb's thread `n + 1` is vCPU `n`, because 0 and -1 mean "any" and "all".

use crate::gate::number_of;
use guest_debug::VcpuId;
use std::num::NonZeroUsize;

/// A thread id that can be one of a vCPU. Whether there is such a vCPU is another question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tid(u32);

impl Tid {
    /// The thread of a vCPU.
    pub(crate) fn of(vcpu: VcpuId) -> Self {
        Self(vcpu.0)
    }

    /// Its number, from 1.
    pub(crate) fn number(self) -> u64 {
        u64::from(self.0) + 1
    }

    /// The vCPU.
    pub(crate) fn vcpu(self) -> VcpuId {
        VcpuId(self.0)
    }

    /// gdbstub's form.
    pub(crate) fn to_gdbstub(self) -> gdbstub::common::Tid {
        NonZeroUsize::MIN.saturating_add(self.0 as usize)
    }

    /// From gdbstub's form, if it can be a vCPU's.
    pub(crate) fn from_gdbstub(tid: gdbstub::common::Tid) -> Option<Self> {
        u32::try_from(tid.get() - 1).ok().map(Self)
    }
}

/// A thread id in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadSelector {
    /// `-1`
    All,
    /// `0`
    Any,
    /// A positive number.
    One(Tid),
}

impl ThreadSelector {
    /// Parses `TID` and `pPID.TID`. The process does not matter, there is one.
    pub(crate) fn parse(id: &[u8]) -> Option<Self> {
        let tid = match id {
            [b'p', rest @ ..] => {
                let mut parts = rest.splitn(2, |byte| *byte == b'.');
                Self::parse_number(parts.next()?)?;
                match parts.next() {
                    Some(tid) => tid,
                    None => return Some(Self::All),
                }
            }
            tid => tid,
        };
        Self::parse_number(tid)
    }

    fn parse_number(digits: &[u8]) -> Option<Self> {
        if digits == b"-1" {
            return Some(Self::All);
        }
        match number_of(digits)?.checked_sub(1) {
            None => Some(Self::Any),
            Some(vcpu) => u32::try_from(vcpu).ok().map(|vcpu| Self::One(Tid(vcpu))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_ids_with_and_without_process() {
        let one = |n| Some(ThreadSelector::One(Tid(n)));
        assert_eq!(ThreadSelector::parse(b"1"), one(0));
        assert_eq!(ThreadSelector::parse(b"p1.10"), one(15));
        assert_eq!(ThreadSelector::parse(b"0"), Some(ThreadSelector::Any));
        assert_eq!(ThreadSelector::parse(b"p1.-1"), Some(ThreadSelector::All));
        assert_eq!(ThreadSelector::parse(b"p1"), Some(ThreadSelector::All));
        for bad in [&b""[..], b"p", b"p1.", b"-2", b"x", b"200000000", b"fffffffffffffffff"] {
            assert_eq!(ThreadSelector::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
