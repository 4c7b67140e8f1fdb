//! Stops that the client has not been told of yet.

use crate::{StopEvent, StopReason, VcpuId};
use std::collections::VecDeque;

/// Stops in the order in which they happened.
#[derive(Debug, Default)]
pub(super) struct StopQueue {
    queue: VecDeque<StopEvent>,
    /// Stops of vCPUs that the client has left stopped; they are nobody's business until those are resumed.
    held: Vec<StopEvent>,
}

impl StopQueue {
    pub(super) fn push(&mut self, event: StopEvent) {
        self.queue.push_back(event);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.held.clear();
    }

    /// The guest was reset: no vCPU is where it had stopped. A client that waits for a stop still gets one.
    pub(super) fn reset(&mut self) {
        self.held.clear();
        if !self.queue.is_empty() {
            self.queue.clear();
            self.queue.push_back(StopEvent { vcpu: VcpuId(0), reason: StopReason::Interrupt });
        }
    }

    /// The oldest stop. An interrupt gives way to any real one: the VM is as stopped, and that one says more.
    pub(super) fn pop(&mut self) -> Option<StopEvent> {
        let real = |event: &StopEvent| event.reason != StopReason::Interrupt;
        if self.queue.iter().any(real) {
            self.queue.retain(real);
        }
        self.queue.pop_front()
    }

    /// Goes through everything when the VM is resumed. Stops of vCPUs that stay stopped are put aside; of the
    /// others, those that still hold stay queued. Answers whether there are any.
    pub(super) fn review(&mut self, runs: impl Fn(VcpuId) -> bool, holds: impl Fn(&StopEvent) -> bool) -> bool {
        let all: Vec<_> = self.held.drain(..).chain(self.queue.drain(..)).collect();
        for event in all {
            if runs(event.vcpu) {
                if holds(&event) {
                    self.queue.push_back(event);
                }
            } else if !matches!(event.reason, StopReason::Interrupt | StopReason::Step) {
                self.held.push(event);
            }
        }
        !self.queue.is_empty()
    }
}
