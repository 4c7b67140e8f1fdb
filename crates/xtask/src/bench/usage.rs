//! CPU time of a running VMM.

use anyhow::{Context as _, Result, bail};

use crate::host::{KvmHost, command};
use crate::vmm::Guest;

/// How long the VMM is looked at.
const SECONDS: u32 = 5;

/// Shares of one CPU, in percent.
#[derive(Debug, PartialEq)]
pub(super) struct Usage {
    /// All threads of the VMM.
    pub process: f64,
    /// The gdb server's thread alone.
    pub gdb_thread: f64,
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
             [ \"$(cat $p/comm 2>/dev/null)\" = reference-vmm ] && grep -q {} $p/cmdline && vmm=$p
         done
         show() {{ for t in $vmm/task/*; do echo \"$(cat $t/comm) $(cat $t/schedstat)\"; done; }}
         show; sleep {SECONDS}; echo then; show",
        guest.socket
    );
    let output = host.output(&command(["sh", "-c", &script]))?.stdout_text();
    let (before, after) = output.split_once("then\n").context("the VMM's threads cannot be read")?;
    let (before, after) = (times(before)?, times(after)?);
    let share = |nanoseconds: u64| nanoseconds as f64 / 1e9 / f64::from(SECONDS) * 100.0;
    Ok(Usage {
        process: share(after.process.saturating_sub(before.process)),
        gdb_thread: share(after.gdb_thread.saturating_sub(before.gdb_thread)),
    })
}

/// Nanoseconds on a CPU.
#[derive(Debug, PartialEq)]
struct Times {
    process: u64,
    gdb_thread: u64,
}

/// Lines of a thread's name, its time on a CPU, and more.
fn times(text: &str) -> Result<Times> {
    let (mut process, mut gdb_thread) = (0, None);
    for line in text.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [name, time, ..] = fields[..] else { bail!("{line:?} is no thread's time") };
        let time: u64 = time.parse().with_context(|| format!("{line:?} has no time"))?;
        process += time;
        if name == "gdb" {
            gdb_thread = Some(time);
        }
    }
    Ok(Times { process, gdb_thread: gdb_thread.context("the VMM has no thread of the gdb server")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_threads_are_summed() {
        let text = "reference-vmm 5 1 2\ngdb 7 0 1\nvcpu0 100 3 4\n";
        assert_eq!(times(text).unwrap(), Times { process: 112, gdb_thread: 7 });
        assert!(times("").is_err());
        assert!(times("gdb x 1 2").is_err());
    }
}
