"""The demo for x86_64: gdb on a bare-metal guest, with what this host's KVM can do.

Runs inside gdb. The guest is tests/guest/bare. The runner passes facts through the environment: those of a scenario
(gdbcase.py) and those of frame.py. A part that needs more than KVM has here says so.
"""

from __future__ import annotations

import os
import re
import time

import gdb
from arch import *
from bare import TESTS
from fleet import ask, kill, output, receive, restore
from frame import *
from gdbcase import Failure, Skip, check, equal, reg, step_until, sym, u64, where

STEPS = 20
HARDWARE, SOFTWARE, WATCH = "hardware-breakpoint", "software-breakpoint", "watchpoint"


def need(*abilities: str) -> None:
    for ability in abilities:
        if not can(ability):
            raise Skip(f"this host's KVM has no {ability.removeprefix('test:')}")


def choose(test: str) -> None:
    """Tells the guest what to do next."""
    show(f"set var selected = {TESTS.index(test)}")


def go_to(place: str) -> None:
    """Runs to a place; where there are no breakpoints, step by step."""
    if can(HARDWARE):
        show(f"hbreak {place}" if "_" not in place else f"hbreak *{place}")
        cont("hardware breakpoint")
        clear()
    else:
        say(f"# There are no breakpoints on this host: steps, until they come to {place}")
        step_until(place)
    equal("place", reg("pc"), sym(place))


def attach() -> None:
    """the guest's vCPUs are threads to gdb"""
    show(f"file {os.path.relpath(os.environ['GUEST_ELF'])}")
    show(f"target remote {os.environ['GDB_TARGET']}")
    answer = show("info threads")
    equal("number of vCPUs", len(re.findall(r"vCPU \d+: stopped", answer)), int(os.environ["GDB_CPUS"]))
    equal("place", reg("pc"), sym("boot_code"))


def first_steps() -> None:
    """its first instructions, one by one"""
    show("x/3i $pc")
    for _ in range(3):
        resume("stepi", end="     ")
    show("p $rcx")
    equal("rcx", reg("rcx"), 5)


def registers() -> None:
    """registers: general, control and segment bases"""
    show("info registers rip rsp eflags cs cr0 cr3 efer gs_base")
    show("p $cr0 >> 31 & 1")
    check(reg("cr0") >> 31 & 1 == 1, "CR0.PG is clear: no paging")
    answer = show(f"monitor translate {sym('main'):#x}")
    check(f"physical {sym('main'):#x}" in answer, "main is elsewhere in physical memory")


def hardware_breakpoint() -> None:
    """a hardware breakpoint stops the guest in main"""
    need(HARDWARE)
    show("hbreak main")
    hit = cont("hardware breakpoint")
    equal("kind of breakpoint", hit.type, gdb.BP_HARDWARE_BREAKPOINT)
    equal("function", function(), "main")
    clear()


def write_memory() -> None:
    """a variable is changed, and the guest goes on with the new value"""
    if not can(HARDWARE):
        go_to("main")
    show(f"set var timer_period = {100 * ARCH.timer_scale}")
    choose("step_plain")
    go_to("step_plain")
    say("# It does what it was told, and its timer interrupts it.")


def steps_with_interrupt_pending() -> None:
    """20 steps with a timer interrupt pending execute the function's own instructions"""
    show("p $eflags")
    check(reg("eflags") & EFLAGS_IF != 0, "interrupts are masked")
    taken = u64("timer_count")
    say("# Interrupts are on. While we wait the guest's timer fires.")
    show("shell sleep 1")
    for number in range(1, STEPS + 1):
        resume("stepi", end="     ")
        if os.environ.get("DEMO_VERBOSE"):
            show("x/i $pc")
        pc = reg("pc")
        check(sym("step_plain") <= pc < sym("step_plain_end"), f"step {number} landed in {where(pc)}")
        check(reg("eflags") & (EFLAGS_IF | EFLAGS_TF) == EFLAGS_IF, f"flags after step {number}: {reg('eflags'):#x}")
    show("p timer_count")
    equal("timer interrupts that the guest has counted", u64("timer_count"), taken)


def interrupt_comes_after() -> None:
    """the interrupt comes as soon as the guest runs, right behind the last step"""
    need(HARDWARE)
    pc = reg("pc")
    show("p/x $rip")
    show("hbreak *irq")
    cont("interrupt handler")
    show("x/a $rsp")
    equal("where the interrupt came", u64(reg("rsp")), pc)
    clear()


def system_call() -> None:
    """a step over SYSCALL ends in the kernel's entry, with registers as the instruction leaves them"""
    need(HARDWARE, "test:step_syscall")
    go_to("finished")
    choose("step_syscall")
    go_to("step_syscall")
    flags = reg("eflags")
    show("x/2i $pc")
    resume("stepi")
    equal("function", function(), "vector_syscall")
    show("info registers rcx r11 eflags")
    equal("RCX, where SYSCALL returns to", reg("rcx"), sym("step_syscall_after"))
    equal("R11, the flags of before", reg("r11"), flags & ~(1 << 16))


def both_vcpus() -> None:
    """a breakpoint is on every vCPU, also on one that comes up later, and each hit is reported once"""
    need(HARDWARE)
    go_to("finished")
    show("set var rounds = 3")
    choose("both_cpus")
    show("hbreak *hit_me")
    threads = []
    for _ in range(6):
        cont("breakpoint")
        threads.append(gdb.selected_thread().num)
    equal("hits of each vCPU", sorted(threads), [1, 1, 1, 2, 2, 2])
    clear()
    go_to("finished")
    answer = show("p hits")
    check("{3, 3}" in answer, "the guest has counted otherwise")


def software_breakpoint() -> None:
    """a software breakpoint stops the guest, and is invisible in its memory"""
    need(HARDWARE, SOFTWARE)
    go_to("finished")
    choose("slots")
    show("break *slot_0")
    hit = cont("software breakpoint")
    equal("kind of breakpoint", hit.type, gdb.BP_BREAKPOINT)
    answer = show("x/i $pc")
    check(ARCH.breakpoint_name not in answer, "the breakpoint's own instruction shows")
    clear()


def watchpoint() -> None:
    """a watchpoint stops the guest where it changes a variable"""
    need(HARDWARE, WATCH)
    go_to("finished")
    show("watch loops")
    old = u64("loops")
    event = resume("continue")
    check(len(getattr(event, "breakpoints", [])) == 1, "this was not the watchpoint")
    equal("function", function(), "finished")
    equal("loops", u64("loops"), old + 1)
    clear()


def snapshot_at_a_breakpoint() -> None:
    """a VM that is saved at a breakpoint goes on in another process, at the same stop"""
    need(HARDWARE)
    go_to("finished")
    show("set var timer_period = 0")
    choose("slots")
    show("set breakpoint always-inserted on")
    show("hbreak *slot_2")
    show("hbreak *slot_5")
    cont("breakpoint")
    equal("function", function(), "slot_2")
    stack = reg("rsp")
    directory = f"{os.environ['DEMO_SNAPSHOTS']}/demo"
    ask("shell", command="true")
    check("saved in" in show(f"monitor snapshot {directory}"), "the VM was not saved")
    say(f"$ reference-vmm restore {directory} --gdb ...")
    copy = restore("demo")
    with another_vm(copy):
        equal("place", reg("pc"), sym("slot_2"))
        equal("rsp", reg("rsp"), stack)
        answer = show("monitor breakpoints")
        check(f"hardware breakpoint at {sym('slot_5'):#x}" in answer, "the breakpoint in slot_5 is lost")
    kill(copy)
    show("set breakpoint always-inserted off")
    clear()
    say("# Back to the VM that was saved: it has gone on to exist.")
    show(f"target remote {os.environ['GDB_TARGET']}")


def live_migration() -> None:
    """a VM moves to another process, and its breakpoints hit there"""
    need(HARDWARE)
    go_to("finished")
    choose("slots")
    show("set breakpoint always-inserted on")
    show("hbreak *slot_2")
    show("hbreak *slot_5")
    cont("breakpoint")
    equal("function", function(), "slot_2")
    say("$ reference-vmm receive ADDRESS --gdb ...")
    there = receive()
    os.environ["GDB_TARGET"] = there.address
    address = re.search(r"waiting for a VM at (\S+)", output(there))[1]
    check("the VM is at" in show(f"monitor migrate {address}"), "the VM has not moved")
    with another_vm(there, stay=True):
        equal("place", reg("pc"), sym("slot_2"))
    cont("breakpoint")
    equal("function", function(), "slot_5")
    show("set breakpoint always-inserted off")
    clear()


def detach_and_attach_again() -> None:
    """detaching leaves the guest, which runs on, and gdb comes back to it"""
    clear()
    loops = u64("loops")
    show("detach")
    equal("processes that gdb has", gdb.selected_inferior().pid, 0)
    time.sleep(1.0)
    show(f"target remote {os.environ['GDB_TARGET']}")
    show("p loops")
    check(u64("loops") > loops, "the guest did not run on")
    show("detach")


run((
    attach, first_steps, registers, hardware_breakpoint, write_memory, steps_with_interrupt_pending, interrupt_comes_after,
    system_call, both_vcpus, software_breakpoint, watchpoint, snapshot_at_a_breakpoint, live_migration,
    detach_and_attach_again,
))
