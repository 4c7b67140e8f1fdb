//! Stops that the client has not been told of yet.

use crate::state::StopState;
use crate::{StopEvent, StopReason, VcpuId};
use std::collections::VecDeque;

/// A stop, and where its vCPU was if that is known already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) event: StopEvent,
    pub(super) pc: Option<u64>,
}

impl From<StopEvent> for Pending {
    fn from(event: StopEvent) -> Self {
        Self { event, pc: None }
    }
}

impl From<&StopState> for Pending {
    fn from(stop: &StopState) -> Self {
        let event = StopEvent { vcpu: VcpuId(stop.vcpu), reason: stop.reason.into() };
        Self { event, pc: Some(stop.pc) }
    }
}

/// Stops in the order in which they happened.
#[derive(Debug, Default)]
pub(super) struct StopQueue {
    queue: VecDeque<Pending>,
    /// Stops of vCPUs that the client has left stopped; they are nobody's business until those are resumed.
    held: Vec<Pending>,
    /// The stop that the client was told of last, until something runs.
    pub(super) reported: Option<StopState>,
}

impl StopQueue {
    pub(super) fn push(&mut self, event: StopEvent) {
        self.queue.push_back(event.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the client has asked for a stop and was not told of one since.
    pub(super) fn has_interrupt(&self) -> bool {
        self.queue.iter().any(|stop| stop.event.reason == StopReason::Interrupt)
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.held.clear();
        self.reported = None;
    }

    /// The guest was reset: no vCPU is where it had stopped. A client that waits for a stop still gets one.
    pub(super) fn reset(&mut self) {
        self.held.clear();
        self.reported = None;
        if !self.queue.is_empty() {
            self.queue.clear();
            self.push(StopEvent { vcpu: VcpuId(0), reason: StopReason::Interrupt });
        }
    }

    /// The oldest stop. An interrupt gives way to any real one: the VM is as stopped, and that one says more.
    pub(super) fn pop(&mut self) -> Option<StopEvent> {
        let real = |stop: &Pending| stop.event.reason != StopReason::Interrupt;
        if self.queue.iter().any(real) {
            self.queue.retain(real);
        }
        self.queue.pop_front().map(|stop| stop.event)
    }

    /// Goes through everything when the VM is resumed. Stops of vCPUs that stay stopped are put aside; of the
    /// others, those that still hold stay queued. Answers whether there are any.
    pub(super) fn review(&mut self, runs: impl Fn(VcpuId) -> bool, holds: impl Fn(&StopEvent) -> bool) -> bool {
        let all: Vec<_> = self.held.drain(..).chain(self.queue.drain(..)).collect();
        for stop in all {
            if runs(stop.event.vcpu) {
                if holds(&stop.event) {
                    self.queue.push_back(stop);
                }
            } else if !matches!(stop.event.reason, StopReason::Interrupt | StopReason::Step) {
                self.held.push(stop);
            }
        }
        !self.queue.is_empty()
    }

    /// Everything, for the session's state: what was told last, what waits, and what is put aside.
    pub(super) fn all(&self) -> (Option<StopState>, Vec<Pending>, Vec<Pending>) {
        (self.reported, self.queue.iter().copied().collect(), self.held.clone())
    }

    /// The stops of a session that was restored.
    pub(super) fn restore(&mut self, reported: Option<StopState>, pending: Vec<Pending>, put_aside: Vec<Pending>) {
        (self.reported, self.queue, self.held) = (reported, pending.into(), put_aside);
    }

    /// Has the stop that a client was told of last told to the next one.
    pub(super) fn tell_again(&mut self) {
        if let Some(stop) = self.reported.take() {
            self.queue.push_front(Pending::from(&stop));
        }
    }
}
