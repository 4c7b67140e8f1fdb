"""The benchmark's part with a real gdb: steps, a memory dump, and a guest that runs with gdb attached.

Runs inside gdb. The runner passes facts through the environment: BENCH_TARGET (what `target remote` takes),
BENCH_KERNEL (ELF file with symbols), BENCH_DUMP (file for the dump) and BENCH_RESULTS (file for the figures, as JSON).
While the guest runs, this script waits until the runner has removed the file with the figures.
"""

from __future__ import annotations

import json
import os
import time
import traceback

import gdb

STEPS = 200
DUMP_MIB = 4
# Longest that the runner may look at the running guest.
LOOK = 60.0


def timed(command: str, times: int = 1) -> float:
    """Seconds for one."""
    started = time.monotonic()
    for _ in range(times):
        gdb.execute(command, to_string=True)
    return (time.monotonic() - started) / times


def main() -> None:
    results = os.environ["BENCH_RESULTS"]
    for setting in ("pagination off", "confirm off", "width 0", "architecture aarch64", "remotetimeout 60",
                    "tcp connect-timeout 60", "print thread-events off"):
        gdb.execute(f"set {setting}", to_string=True)
    gdb.execute(f"file {os.environ['BENCH_KERNEL']}", to_string=True)
    gdb.execute(f"target remote {os.environ['BENCH_TARGET']}", to_string=True)
    gdb.execute("hbreak *vfs_write", to_string=True)
    gdb.execute("continue", to_string=True)
    gdb.execute("delete")
    round_trip = timed("maintenance packet qC", 100)
    step = timed("stepi", STEPS)
    start = int(gdb.parse_and_eval("(unsigned long)&_stext"))
    dump = f"dump binary memory {os.environ['BENCH_DUMP']} {start:#x} {start + (DUMP_MIB << 20):#x}"
    seconds = sorted(timed(dump) for _ in range(3))[1]
    gdb.execute("continue &", to_string=True)
    with open(results + ".part", "w", encoding="utf-8") as file:
        figures = {"steps_per_second": 1 / step, "round_trips_per_second": 1 / round_trip}
        json.dump({**figures, "dump_mib_per_second": DUMP_MIB / seconds}, file)
    os.rename(results + ".part", results)
    end = time.monotonic() + LOOK
    while os.path.exists(results) and time.monotonic() < end:
        time.sleep(0.1)


try:
    main()
    code = 0
except Exception:
    traceback.print_exc()
    code = 1
# Without a goodbye: gdb would have to stop the guest for one.
os._exit(code)
