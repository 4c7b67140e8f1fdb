# scenario: guest=linux cpus=2 timeout=300 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""A snapshot under gdb on this machine, without KVM, shows what the live guest showed: threads, registers, stacks, memory."""

import os
import subprocess
import time

from fleet import *
from moving import *

# What a user looks at, and what is in it does not depend on who answers.
LOOK = (
    "info threads", "info registers", f"info registers {ARCH.vector}", "x/16i $pc",
    "x/32gx $sp", "thread 1", "info registers", "x/16gx $sp", "thread 2", "info registers", "x/16gx $sp",
)


def looks() -> list[str]:
    answers = []
    for line in LOOK:
        try:
            lines = gdb.execute(line, to_string=True).splitlines()
            # The counter goes on while the guest stands still.
            answers.append("\n".join(line for line in lines if not line.startswith("CNTVCT")))
        except gdb.error as error:
            answers.append(str(error))
    return answers + [" ".join(call_chain(4)), " ".join(f"{name}={sysreg_value(name)}" for name in ARCH.system)]


def sysreg_value(name: str) -> str:
    return f"{reg(sysreg(name)):#x}"


def body() -> None:
    poll()
    arm()
    command("syscalls", 1)
    while where_it_is() != SOFTWARE:
        cont()
    thread = gdb.selected_thread().num
    text = mem(sym("_stext"), 4096) + mem(sym(SOFTWARE) & ~4095, 4096)
    gdb.execute(f"thread {thread}", to_string=True)
    live = looks()
    snapshot(FIRST, "frozen")
    forget()

    directory = ask("fetch", name="frozen")["path"]
    socket = f"{os.environ['FLEET']}-inspect"
    program = os.environ["REFERENCE_VMM"]
    shown = subprocess.run([program, "inspect", directory], capture_output=True, text=True, check=True).stdout
    check(f"{sym(HARDWARE):#x}" in shown and f"{sym(SOFTWARE):#x}" in shown, shown)
    server = subprocess.Popen([program, "inspect", directory, "--gdb", f"unix:{socket}"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if os.path.exists(socket):
                break
            time.sleep(0.1)
        for _ in range(2):
            stop = meet(Vm({"vm": -1, "address": socket}))
            equal("thread", stop.thread, thread)
            equal("place", where_it_is(), SOFTWARE)
            everything_listed()
            for line, before, after in zip(LOOK + ("call chain", "system registers"), live, looks()):
                differ = [pair for pair in zip(before.splitlines(), after.splitlines()) if pair[0] != pair[1]]
                check(before == after, f"{line} differs: {differ[:3]}")
            equal("kernel text", mem(sym("_stext"), 4096) + mem(sym(SOFTWARE) & ~4095, 4096), text)
            forget()
    finally:
        server.terminate()
        server.wait()


run(body)
