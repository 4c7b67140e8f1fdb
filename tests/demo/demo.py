"""The demo: gdb shows what the debugger does to a running guest, and checks each answer.

Runs inside gdb. The runner passes facts through the environment: DEMO_TARGET (what `target remote` takes),
DEMO_KERNEL and DEMO_PROGRAM (ELF files with symbols), DEMO_CPUS, DEMO_SNAPSHOTS, and those of frame.py and fleet.py.
"""

from __future__ import annotations

import os
import re

import gdb
from arch import *
from frame import *
from gdbcase import check, equal, reg, where
from fleet import ask, kill, output, receive, restore
from linux import in_interrupt

STEPS = 20
PERIOD = 0.0625  # of heartbeat.c
# CNTV_CTL_EL0: the timer is on, its interrupt is not masked, and it has fired.
TIMER_FIRED = 0b101


# ---------------------------------------------------------------- what is shown

def attach() -> None:
    """the running guest's vCPUs are threads to gdb"""
    show(f"file {os.environ['DEMO_KERNEL']}")
    show(f"add-symbol-file {os.environ['DEMO_PROGRAM']}")
    show(f"target remote {os.environ['DEMO_TARGET']}")
    answer = show("info threads")
    equal("number of vCPUs", len(re.findall(r"vCPU \d+: stopped", answer)), int(os.environ["DEMO_CPUS"]))


def hardware_breakpoint() -> None:
    """a hardware breakpoint stops the kernel as the guest's program writes a line"""
    show("hbreak vfs_write")
    hit = cont("hardware breakpoint")
    equal("kind of breakpoint", hit.type, gdb.BP_HARDWARE_BREAKPOINT)
    equal("function", function(), "vfs_write")
    # vfs_write(file, buffer, count, position)
    text = show("x/s $x1")
    check(re.search(r'"heartbeat \d+ after \d+\.\d s\\n"', text) is not None, "the text is not the program's line")
    show("p $x2")
    equal("length", reg("x2"), len(re.search(r'"(.*)"', text)[1].replace("\\n", "\n")))


def kernel_backtrace() -> None:
    """a backtrace leads from the kernel through the system call into the program, up to main"""
    say("# Debian's kernel comes without debug information; this script follows its frame pointers.")
    show("source tests/demo/kernel_frames.py")
    answer = show("backtrace")
    frames = re.findall(r"^#\d+ .* in (\w+)", answer, re.MULTILINE)
    expected = ("vfs_write", "ksys_write", "__arm64_sys_write", "el0t_64_sync", "write", "report", "main")
    # All of them, in this order.
    rest = iter(frames)
    for name in expected:
        check(name in rest, f"{name} is not where it should be among the frames")
    equal("innermost", frames[0], "vfs_write")
    equal("outermost", frames[-1], "main")
    check("stopped" not in answer, "the backtrace was cut short")


def steps_with_interrupt_pending() -> None:
    """20 steps with a timer interrupt pending execute the function's own instructions"""
    clear()
    show("p $cpsr")
    equal("interrupt mask", reg("cpsr") & PSTATE_DAIF, 0)
    say("# Nothing is masked. While we wait the guest's timer fires; CNTV_CTL_EL0 = 5 means: on, and fired.")
    show("shell sleep 1")
    show("p $CNTV_CTL_EL0")
    equal("CNTV_CTL_EL0", reg("CNTV_CTL_EL0"), TIMER_FIRED)
    thread = gdb.selected_thread().num
    for number in range(1, STEPS + 1):
        before = reg("pc")
        resume("stepi", end="     ")
        if os.environ.get("DEMO_VERBOSE"):
            show("x/i $pc")
        pc = reg("pc")
        check(pc != before, f"step {number} stayed where it was")
        check(not in_interrupt(pc), f"step {number} landed in the interrupt handler, in {where(pc)}")
        equal(f"vCPU of step {number}", gdb.selected_thread().num, thread)
        equal(f"interrupt mask after step {number}", reg("cpsr") & PSTATE_DAIF, 0)


def interrupt_comes_after() -> None:
    """the interrupt comes as soon as the guest runs, right behind the last step"""
    thread, pc = gdb.selected_thread().num, reg("pc")
    show("p/x $pc")
    show("hbreak *el1h_64_irq")
    cont("interrupt vector's code")
    while gdb.selected_thread().num != thread:
        say("# That was the other vCPU, whose timer has fired as well.")
        cont("interrupt vector's code")
    equal("vCPU", gdb.selected_thread().num, thread)
    show("p/x $ELR_EL1")
    equal("ELR_EL1, where the interrupt came", reg("ELR_EL1"), pc)
    clear()


def software_breakpoint() -> None:
    """a software breakpoint stops the guest's own program, and is invisible in its memory"""
    show("break report")
    hit = cont("software breakpoint")
    equal("kind of breakpoint", hit.type, gdb.BP_BREAKPOINT)
    equal("function", function(), "report")
    equal("count", value("count"), value("heartbeats"))
    answer = show("x/i $pc")
    check("brk" not in answer, "the breakpoint's own instruction shows")
    answer = show("backtrace")
    check(re.search(r"#1 .* in main \(\) at .*heartbeat\.c", answer) is not None, "main is not the caller")


def registers() -> None:
    """registers: general, floating-point and system ones"""
    show("info registers pc sp x0 x29 x30 cpsr")
    equal("exception level", reg("cpsr") & 0xC, 0)
    equal("pc", reg("pc"), value("$pc"))
    show("p seconds")
    show("p $d0.f")
    equal("D0, which holds that argument", float(gdb.parse_and_eval("$d0.f")), value("count") * PERIOD)
    show("p/x $SCTLR_EL1")
    check(reg("SCTLR_EL1") & 1 == 1, "SCTLR_EL1.M is clear: no MMU")
    show("p/x $VBAR_EL1")
    equal("VBAR_EL1", where(reg("VBAR_EL1")), "vectors")


def watchpoint() -> None:
    """a watchpoint stops the guest where it changes a variable"""
    clear()
    show("watch heartbeats")
    old = value("heartbeats")
    event = resume("continue")
    check(len(getattr(event, "breakpoints", [])) == 1, "this was not the watchpoint")
    equal("kind of watchpoint", event.breakpoints[0].type, gdb.BP_HARDWARE_WATCHPOINT)
    equal("function", function(), "beat")
    equal("heartbeats", value("heartbeats"), old + 1)
    clear()


def write_memory() -> None:
    """a variable is changed, and the program goes on with the new value"""
    show("set var heartbeats = 1000000")
    show("break report")
    cont("breakpoint")
    show("p count")
    equal("count", value("count"), 1000000)
    clear()


def snapshot_at_a_breakpoint() -> None:
    """a VM that is saved at a breakpoint goes on in another process, at the same stop"""
    show("set breakpoint always-inserted on")
    show("hbreak vfs_write")
    show("break report")
    cont("breakpoint")
    while function() != "vfs_write":
        cont("breakpoint")
    thread, pc, text = gdb.selected_thread().num, reg("pc"), show("x/s $x1")
    directory = f"{os.environ['DEMO_SNAPSHOTS']}/demo"
    ask("shell", command="true")
    check("saved in" in show(f"monitor snapshot {directory}"), "the VM was not saved")
    say(f"$ reference-vmm restore {directory} --gdb ...")
    copy = restore("demo")
    with another_vm(copy):
        equal("place", reg("pc"), pc)
        equal("vCPU", gdb.selected_thread().num, thread)
        equal("what is written", show("x/s $x1"), text)
        answer = show("monitor breakpoints")
        check(f"hardware breakpoint at {pc:#x}" in answer, "the breakpoint in vfs_write is lost")
        check("software breakpoint at" in answer, "the breakpoint in report is lost")
        clear()
    kill(copy)
    say("# Back to the VM that was saved: it has gone on to exist.")
    show(f"target remote {os.environ['DEMO_TARGET']}")


def live_migration() -> None:
    """a VM moves to another process, and its breakpoints hit there"""
    clear()
    show("hbreak vfs_write")
    show("break report")
    cont("breakpoint")
    place, thread = reg("pc"), gdb.selected_thread().num
    say("$ reference-vmm receive ADDRESS --gdb ...")
    there = receive()
    address = re.search(r"waiting for a VM at (\S+)", output(there))[1]
    check("the VM is at" in show(f"monitor migrate {address}"), "the VM has not moved")
    with another_vm(there, stay=True):
        equal("place", reg("pc"), place)
        equal("vCPU", gdb.selected_thread().num, thread)
    for _ in range(2):
        cont("breakpoint")
        check(function() in ("vfs_write", "report"), f"stopped in {function()}")
    clear()


def detach() -> None:
    """detaching leaves the guest"""
    show("detach")
    equal("processes that gdb has", gdb.selected_inferior().pid, 0)


PARTS = (
    attach, hardware_breakpoint, kernel_backtrace, steps_with_interrupt_pending, interrupt_comes_after,
    software_breakpoint, registers, watchpoint, write_memory, snapshot_at_a_breakpoint, live_migration, detach,
)


run(PARTS)
