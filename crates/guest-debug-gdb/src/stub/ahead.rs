//! Read-ahead: what a relay has said that gdb will ask is answered in front of a stop.

use super::{End, Stub};
use crate::arch::RegisterNumber;
use crate::description::GdbArch;
use crate::frame::encode_notification;
use crate::vm::DebugVm;
use guest_debug_relay::ahead;

impl<A: GdbArch, V: DebugVm<A>> Stub<'_, A, V> {
    /// Puts what the client wishes for in front of the stop reply that begins at `mark`: when that comes all is there.
    pub(super) fn answer_ahead(
        &mut self,
        mark: usize,
        values: &[(RegisterNumber, Vec<u8>)],
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        // A client that acknowledges would have to be waited for.
        if self.acknowledge || self.wishes.is_empty() {
            return Ok(());
        }
        let stop = out.split_off(mark);
        let value_of = |number: u64| {
            let (_, value) = values.iter().find(|(register, _)| u64::try_from(register.0) == Ok(number))?;
            value.as_slice().try_into().ok().map(u64::from_le_bytes)
        };
        let mut requests: Vec<String> = Vec::new();
        for request in self.wishes.iter().filter_map(|wish| wish.request(value_of)) {
            // Two may be the same now.
            if !requests.contains(&request) {
                requests.push(request);
            }
        }
        for request in requests {
            encode_notification(format!("{}{request}", ahead::ANSWER).as_bytes(), out);
            self.packet(request.as_bytes(), out)?;
        }
        out.extend(stop);
        Ok(())
    }
}
