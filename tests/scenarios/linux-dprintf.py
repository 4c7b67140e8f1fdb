# scenario: guest=linux cpus=2 timeout=120 needs=hardware-breakpoint,software-breakpoint,single-step
"""dprintf in agent style: every call prints its line, on both vCPUs, and none stops the guest."""

from gdbcase import *
from linux import *
from rules import *

CALLS = 50


def body() -> None:
    evaluates()
    poll()
    gdb.execute("set dprintf-style agent", to_string=True)
    calls, marks = sym("syscalls"), [cpu_mark(cpu) for cpu in range(2)]
    gdb.execute(
        f'dprintf *{sym(SYSCALL):#x},"call %lu %lu of %#lx\\n",{doubleword(calls)},{doubleword(calls + 8)},{ARCH.cpu_mark}',
        to_string=True,
    )
    command("syscalls", CALLS)
    hbreak("agent_done")
    # What the target prints is part of the command's output.
    text = gdb.execute("continue", to_string=True)
    equal("place", reg("pc"), sym("agent_done"))
    equal("calls that the guest counted", [u64(calls + 8 * n) for n in range(2)], [CALLS, CALLS])
    for cpu in range(2):
        lines = [line.split() for line in text.splitlines() if line.startswith("call ")]
        mine = [int(line[1 + cpu]) for line in lines if int(line[4], 16) == marks[cpu]]
        equal(f"calls that vCPU {cpu} has printed", mine, list(range(CALLS)))
    check("dropped" not in text, "messages were dropped")


run(body)
