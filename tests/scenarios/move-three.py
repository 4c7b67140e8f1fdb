# scenario: guest=linux cpus=2 timeout=300 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""One snapshot goes on three times side by side, each with a gdb of its own, and none knows of the others."""

import os
import subprocess

from fleet import *
from moving import *

COUNT = 3


def body() -> None:
    poll()
    arm()
    command("syscalls", 1)
    while where_it_is() != HARDWARE:
        cont()
    snapshot(FIRST, "one")
    forget()
    vms = [restore("one") for _ in range(COUNT)]
    debuggers = [debugger(vm) for vm in vms]
    answers = [process.communicate(timeout=120 * PATIENCE)[0] for process in debuggers]
    for n, text in enumerate(answers):
        check(f"first {sym(HARDWARE):#x}" in text and "calls 1 1" in text, f"gdb {n} says\n{text}")
    # All three began at the same place and have done the same.
    counts = [[line for line in text.splitlines() if line.startswith("calls")] for text in answers]
    equal("what the guests counted", counts, [counts[0]] * COUNT)


def debugger(vm: Vm) -> subprocess.Popen[str]:
    """A gdb that looks at the stop, runs to the end of the round with what the session has, and looks at the counters."""
    lines = [
        "set remotetimeout 60", f"set architecture {ARCH.gdb}", f"file {os.environ['GUEST_ELF']}",
        remote(vm.address), 'printf "first %#lx\\n", $pc',
        f"while $pc != {sym('agent_done'):#x}", "continue", "end",
        'printf "calls %d %d\\n", syscalls[0], syscalls[1]', "detach",
    ]
    path = os.path.join(os.path.dirname(os.environ["FLEET"]), f"gdb-{os.getpid()}-{vm.number}")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    command_line = ["gdb-multiarch", "-nx", "-batch", "-x", path]
    return subprocess.Popen(command_line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


run(body)
