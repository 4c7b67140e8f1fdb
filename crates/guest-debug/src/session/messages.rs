//! What breakpoints print instead of stopping the VM.

use super::DebugSession;
use crate::arch::Arch;
use std::collections::VecDeque;
use std::sync::{MutexGuard, PoisonError};

/// The most text that waits for a client.
const MAX_WAITING: usize = 64 << 10;

/// Texts for the client, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Messages {
    /// The texts, each as its breakpoint printed it.
    pub texts: Vec<String>,
    /// How many more there were since the last time; there was no room for them.
    pub dropped: u64,
}

/// Texts that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    texts: VecDeque<String>,
    length: usize,
    dropped: u64,
}

impl Waiting {
    /// Answers whether nothing was waiting before.
    fn push(&mut self, text: String) -> bool {
        let first = self.texts.is_empty() && self.dropped == 0;
        if self.length + text.len() > MAX_WAITING {
            self.dropped += 1;
        } else {
            self.length += text.len();
            self.texts.push_back(text);
        }
        first
    }
}

impl<A: Arch> DebugSession<A> {
    /// What breakpoints have printed since the last call. [`Self::stop_fd`] becomes readable when there is something; only
    /// [`Self::take_stop`] makes it unreadable again, so call that first. All that was printed before a stop is there once
    /// the stop is.
    pub fn take_messages(&self) -> Messages {
        let Waiting { texts, dropped, .. } = std::mem::take(&mut *self.waiting());
        Messages { texts: texts.into(), dropped }
    }

    /// Prints something, on a vCPU's thread.
    pub(super) fn say(&self, text: String) {
        let first = self.waiting().push(text);
        if first {
            self.ring();
        }
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut waiting = Waiting::default();
        assert!(waiting.push("a".repeat(MAX_WAITING)), "the first one rings");
        assert!(!waiting.push("b".into()));
        assert!(!waiting.push("c".into()));
        assert_eq!((waiting.texts.len(), waiting.dropped), (1, 2));
    }
}
