//! A vCPU that steps, and those that would go with it.
//!
//! A step is over in microseconds. Letting all others go for that long, and stopping them again, costs each of them two wake-ups
//! and a kick, the client waits for the slowest, and few of them get into the guest at all. So they stay where they are while
//! one is stepped by a script, and go first every now and then, for long enough to get on: what is stepped may wait for them.

use super::DebugSession;
use super::control::{Order, VcpuSlot};
use super::table::{Plan, Tables};
use crate::ResumeAction;
use crate::arch::Arch;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What a step may take before the others go all the same: much more than it does where nothing is in its way.
const HEAD_START: Duration = Duration::from_millis(5);
/// How long the others stand still for steps.
const STANDSTILL: Duration = Duration::from_millis(100);
/// How long they go alone then.
const SLICE: Duration = Duration::from_millis(1);

impl<A: Arch> DebugSession<A> {
    /// Gives each vCPU its order, in the order of the vCPUs. The first of them may be done, and its stop in the queue.
    pub(super) fn let_go(&self, tables: &mut Tables, plan: &Arc<Plan<A>>, orders: Vec<Order>) {
        let mut orders: Vec<_> = self.vcpus.iter().zip(orders).collect();
        let step = only_step(&orders).map(|number| orders.swap_remove(number));
        let lately = tables.all_went.is_some_and(|went| went.elapsed() < STANDSTILL);
        if lately && let Some((slot, order)) = &step {
            slot.release(order.clone(), plan.clone());
            // Nothing has happened where the vCPU powers itself off, or leaves for something of the VMM's.
            if slot.wait_parked(HEAD_START) && !self.queue().is_empty() {
                return;
            }
        }
        tables.all_went = Some(Instant::now());
        for (slot, order) in orders {
            slot.release(order, plan.clone());
        }
        if !lately && let Some((slot, order)) = step {
            thread::sleep(SLICE);
            // One that has hit something stops all.
            if self.queue().is_empty() {
                slot.release(order, plan.clone());
            }
        }
    }
}

/// The only vCPU that steps, where others would go with it.
fn only_step<A: Arch>(orders: &[(&VcpuSlot<A>, Order)]) -> Option<usize> {
    let steps = |order: &Order| matches!(order, Order::Go { action: ResumeAction::Step, .. });
    let going = orders.iter().filter(|(_, order)| *order != Order::Stay).count();
    let mut stepping = orders.iter().enumerate().filter(|(_, (_, order))| steps(order)).map(|(number, _)| number);
    match (stepping.next(), stepping.next()) {
        (Some(one), None) if going > 1 => Some(one),
        _ => None,
    }
}
