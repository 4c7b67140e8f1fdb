//! CPU time of a running VMM.

use anyhow::{Context as _, Result, bail};

use crate::host::{KvmHost, command};
use crate::vmm::Guest;

/// How long the VMM is looked at.
pub(super) const SECONDS: u32 = 5;

/// Shares of one CPU, in percent.
#[derive(Debug, PartialEq)]
pub(super) struct Usage {
    /// All threads of the VMM.
    pub process: f64,
    /// All but the vCPUs': the gdb server's among them.
    pub others: f64,
}

/// Looks at a guest's VMM for a while.
///
/// # Errors
/// If it cannot be found, or the host's kernel keeps no times.
pub(super) fn measure(host: &KvmHost, guest: &Guest) -> Result<Usage> {
    // proc(5): schedstat has the nanoseconds that a thread has been on a CPU. The shell's own command line has the
    // socket's path in it, too.
    let script = format!(
        "for p in /proc/[0-9]*; do
             [ $p != /proc/$$ ] && grep -q {} $p/cmdline 2>/dev/null && vmm=$p
         done
         show() {{ for t in $vmm/task/*; do echo \"$(cat $t/schedstat) $(cat $t/comm)\"; done; }}
         show; sleep {SECONDS}; echo then; show",
        guest.socket
    );
    let output = host.output(&command(["sh", "-c", &script]))?.stdout_text();
    let (before, after) = output.split_once("then\n").context("the VMM's threads cannot be read")?;
    let (before, after) = (times(before)?, times(after)?);
    let share = |nanoseconds: u64| nanoseconds as f64 / 1e9 / f64::from(SECONDS) * 100.0;
    Ok(Usage {
        process: share(after.process.saturating_sub(before.process)),
        others: share(after.others.saturating_sub(before.others)),
    })
}

/// Nanoseconds on a CPU.
#[derive(Debug, PartialEq)]
struct Times {
    process: u64,
    others: u64,
}

/// Lines of a thread's time on a CPU, two numbers more, and its name.
fn times(text: &str) -> Result<Times> {
    let (mut process, mut others) = (0, None);
    for line in text.lines() {
        let mut fields = line.splitn(4, ' ');
        let time = fields.next().and_then(|time| time.parse::<u64>().ok());
        let (Some(time), Some(name)) = (time, fields.nth(2)) else { bail!("{line:?} is no thread's time") };
        process += time;
        // As reference-vmm and QEMU name them.
        if !name.starts_with("vcpu") && !name.starts_with("CPU ") {
            *others.get_or_insert(0) += time;
        }
    }
    Ok(Times { process, others: others.context("the VMM has no threads but its vCPUs'")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_threads_are_summed_with_and_without_vcpus() {
        let text = "5 1 2 reference-vmm\n7 0 1 gdb\n100 3 4 vcpu0\n10 3 4 CPU 1/KVM\n";
        assert_eq!(times(text).unwrap(), Times { process: 122, others: 12 });
        for bad in ["", "x 1 2 gdb\n", "1 2 3\n"] {
            assert!(times(bad).is_err(), "{bad:?}");
        }
    }
}
