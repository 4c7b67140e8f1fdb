"""What the gdb scenarios share: a connection, a guest, and assertions on values.

Runs inside gdb. The runner passes facts through the environment:

GDB_TARGET   what `target remote` connects to
GDB_RELAY    the program guest-debug-relay, and THROUGH_RELAY if every gdb is to come through it
GUEST_ELF    the guest program's ELF: the bare-metal payload, or the Linux guest's agent
KERNEL_ELF   the Linux guest's kernel symbols (Linux scenarios only)
GDB_CPUS     how many vCPUs the guest has
GUEST_ARCH, ABILITIES   see arch.py

A scenario ends with exit code 0 (passed), 1 (failed) or 77 (skipped), and a line that says why.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from typing import Callable, NoReturn

import gdb
from arch import *

EXIT_FAILED = 1
EXIT_SKIPPED = 77

# The most that step_until tries.
STEPS_TO_A_PLACE = 2000

WATCH_KINDS = {"watch": gdb.WP_WRITE, "rwatch": gdb.WP_READ, "awatch": gdb.WP_ACCESS}


class Failure(Exception):
    """The guest or the debugger did something else than the scenario says."""


class Skip(Exception):
    """The scenario cannot be tried here; the text says why."""


class Stop:
    """A stop as gdb reported it."""

    def __init__(self, event: gdb.StopEvent | None) -> None:
        self.breakpoints: list[gdb.Breakpoint] = list(getattr(event, "breakpoints", []))
        self.signal: str | None = getattr(event, "stop_signal", None)
        thread = gdb.selected_thread()
        self.thread: int = thread.num if thread else 0
        self.pc: int = reg("pc")

    def at(self, breakpoint: gdb.Breakpoint) -> bool:
        return any(b.number == breakpoint.number for b in self.breakpoints)

    def __str__(self) -> str:
        what = ",".join(str(b.number) for b in self.breakpoints)
        return f"thread {self.thread} at {self.pc:#x} ({where(self.pc)}), breakpoints [{what}], signal {self.signal}"


_last_stop: list[gdb.StopEvent] = []


def _on_stop(event: gdb.StopEvent) -> None:
    _last_stop[:] = [event]


# ---------------------------------------------------------------- assertions

def check(condition: bool, text: str) -> None:
    if not condition:
        raise Failure(text)


def equal(what: str, got: object, expected: object) -> None:
    if got != expected:
        show = lambda v: f"{v:#x}" if isinstance(v, int) and not isinstance(v, bool) else repr(v)
        raise Failure(f"{what} is {show(got)}, expected {show(expected)}")


def fails(what: str, command: Callable[[], object]) -> str:
    """gdb has to refuse the command. Returns its message."""
    try:
        command()
    except (gdb.error, gdb.MemoryError) as error:
        return str(error)
    raise Failure(f"{what} was accepted")


# ---------------------------------------------------------------- registers and memory

def reg(name: str) -> int:
    value = gdb.selected_frame().read_register(name)
    # Whatever its type in the target description is: flags cannot be cast to a number.
    return int(value.format_string(format="x"), 16) & (1 << 64) - 1


def argument(number: int) -> int:
    """Of the function that has just been entered."""
    return reg(ARCH.arguments[number])


def masked() -> bool:
    """Whether the vCPU takes no interrupts."""
    return ARCH.masked(reg(ARCH.flags))


def in_user_mode() -> bool:
    return ARCH.user(reg)


def set_reg(name: str, value: int) -> None:
    gdb.execute(f"set ${name} = {value:#x}", to_string=True)


def sysreg(name: str) -> str:
    """gdb's name of a system register: its case, and a final _EL1, are the server's choice. Skips where there is none."""
    names = {descriptor.name.lower(): descriptor.name for descriptor in gdb.selected_frame().architecture().registers()}
    for wanted in (name.lower(), name.lower().removesuffix("_el1")):
        if wanted in names:
            return names[wanted]
    raise Skip(f"the server's target description has no register {name}")


def mem(address: int, length: int) -> bytes:
    return bytes(gdb.selected_inferior().read_memory(address, length))


def set_mem(address: int, data: bytes) -> None:
    gdb.selected_inferior().write_memory(address, data)


def u64(where_: int | str) -> int:
    return int.from_bytes(mem(sym(where_), 8), "little")


def set_u64(where_: int | str, value: int) -> None:
    set_mem(sym(where_), value.to_bytes(8, "little"))


def sym(name: int | str) -> int:
    """Address of a symbol; an address is itself."""
    if isinstance(name, int):
        return name
    return int(gdb.parse_and_eval(f"(unsigned long)&{name}"))


def where(address: int) -> str:
    text = gdb.execute(f"info symbol {address:#x}", to_string=True).strip()
    return text.split(" in section")[0]


# ---------------------------------------------------------------- breakpoints and running

def hbreak(location: int | str) -> gdb.Breakpoint:
    return gdb.Breakpoint(f"*{sym(location):#x}", gdb.BP_HARDWARE_BREAKPOINT)


def sbreak(location: int | str) -> gdb.Breakpoint:
    return gdb.Breakpoint(f"*{sym(location):#x}", gdb.BP_BREAKPOINT)


def watch(address: int, length: int, kind: str = "watch") -> gdb.Breakpoint:
    """A hardware watch of `length` bytes; kind is gdb's own command."""
    breakpoint = gdb.Breakpoint(f"*(unsigned char (*)[{length}]) {address:#x}", gdb.BP_WATCHPOINT, WATCH_KINDS[kind])
    hardware = (gdb.BP_HARDWARE_WATCHPOINT, gdb.BP_READ_WATCHPOINT, gdb.BP_ACCESS_WATCHPOINT)
    check(breakpoint.type in hardware, f"gdb does not watch {length} bytes at {address:#x} in hardware")
    return breakpoint


class Tally(gdb.Breakpoint):
    """A software breakpoint that calls `on_hit` at each hit and goes on by itself; a hardware breakpoint where there is no
    other.

    Without gdb's usual display a hit costs a third of the packets, which matters where there are thousands.
    """

    def __init__(self, location: int | str, on_hit: Callable[[], None]) -> None:
        kind = gdb.BP_BREAKPOINT if can("software-breakpoint") else gdb.BP_HARDWARE_BREAKPOINT
        super().__init__(f"*{sym(location):#x}", kind)
        self.on_hit = on_hit
        self.failure: Failure | None = None

    def stop(self) -> bool:
        try:
            self.on_hit()
        except Failure as failure:
            # gdb would print it and go on.
            self.failure = failure
        return self.failure is not None


def cont() -> Stop:
    _last_stop.clear()
    gdb.execute("continue", to_string=True)
    return Stop(_last_stop[0] if _last_stop else None)


def cont_to(breakpoint: gdb.Breakpoint) -> Stop:
    stop = cont()
    check(stop.at(breakpoint), f"expected to stop at breakpoint {breakpoint.number} ({breakpoint.location}), got {stop}")
    return stop


def run_to(location: int | str) -> Stop:
    """Runs to a place with a hardware breakpoint that is gone afterwards. Where there are none, by steps."""
    if not can("hardware-breakpoint"):
        return step_until(location)
    breakpoint = hbreak(location)
    stop = cont_to(breakpoint)
    breakpoint.delete()
    return stop


def stepi() -> int:
    """One instruction; the new pc."""
    _last_stop.clear()
    gdb.execute("stepi", to_string=True)
    return reg("pc")


def step_to(expected: int | str, what: str) -> None:
    pc = stepi()
    if pc != sym(expected):
        raise Failure(f"after {what}: pc is {pc:#x} ({where(pc)}), expected {sym(expected):#x} ({where(sym(expected))})")


def step_until(location: int | str) -> Stop:
    """Steps to a place that is not far."""
    for _ in range(STEPS_TO_A_PLACE):
        if stepi() == sym(location):
            return Stop(_last_stop[0] if _last_stop else None)
    raise Failure(f"{STEPS_TO_A_PLACE} steps lead to {where(reg('pc'))}, and not to {location}")


def after(pc: int) -> int:
    """Address of the instruction behind another one."""
    return pc + gdb.selected_frame().architecture().disassemble(pc)[0]["length"]


def step_on(what: str) -> None:
    """One instruction, behind which the next one has to be."""
    step_to(after(reg("pc")), what)


def interrupt_after(seconds: float) -> None:
    """Ctrl-C, as a user would type it into this gdb."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


def run_for(seconds: float) -> Stop:
    """Lets the guest run and stops it with Ctrl-C."""
    interrupt_after(seconds)
    return cont()


def refused(what: str) -> None:
    """Continuing has to fail because gdb cannot insert something."""
    # If it does not fail the guest runs, perhaps for ever.
    timer = threading.Timer(10.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        message = fails(what, cont)
    finally:
        timer.cancel()
    # In the second form gdb has printed the reason, and says only that nothing runs.
    check("insert hardware" in message or "Command aborted" in message, f"gdb says: {message}")


def delete_all() -> None:
    for breakpoint in gdb.breakpoints() or ():
        breakpoint.delete()


# ---------------------------------------------------------------- connection

def remote(address: str) -> str:
    """The command that connects to a server."""
    return f"target remote {'| ' + os.environ['GDB_RELAY'] + ' ' if 'THROUGH_RELAY' in os.environ else ''}{address}"


def connect(address: str | None = None) -> None:
    gdb.execute(remote(address or os.environ["GDB_TARGET"]), to_string=True)


def answered_ahead() -> int | None:
    """How many of gdb's requests the relay has answered by itself; None without one."""
    output = gdb.execute("maintenance packet qGuestDebug.Saved", to_string=True)
    received = output.split('received: "')[-1].split('"')[0]
    return int(received, 16) if received else None


def detach() -> None:
    gdb.execute("detach", to_string=True)


def cpus() -> int:
    return int(os.environ.get("GDB_CPUS", "1"))


def _setup() -> None:
    for command in (
        "set pagination off",
        "set confirm off",
        "set width 0",
        "set height 0",
        f"set architecture {ARCH.gdb}",
        "set remotetimeout 60",
        "set tcp connect-timeout 60",
        "set print thread-events off",
        "set max-value-size unlimited",
    ):
        gdb.execute(command, to_string=True)
    gdb.events.stop.connect(_on_stop)
    if os.environ.get("KERNEL_ELF"):
        gdb.execute(f"file {os.environ['KERNEL_ELF']}", to_string=True)
        gdb.execute(f"add-symbol-file {os.environ['GUEST_ELF']}", to_string=True)
    else:
        gdb.execute(f"file {os.environ['GUEST_ELF']}", to_string=True)


def _leave() -> None:
    """Leaves the guest running: quitting gdb while attached would kill it."""
    try:
        delete_all()
        if gdb.selected_inferior().pid:
            detach()
    except gdb.error as error:
        print(f"while leaving: {error}")


def run(body: Callable[[], None]) -> NoReturn:
    """Runs a scenario and ends gdb."""
    code = 0
    try:
        _setup()
        connect()
        body()
    except Skip as skip:
        print(f"SKIPPED: {skip}")
        code = EXIT_SKIPPED
    except Failure as failure:
        print(f"FAILED: {failure}")
        code = EXIT_FAILED
    except BaseException as error:  # gdb's errors, KeyboardInterrupt: whatever it was, the scenario failed
        traceback.print_exc()
        print(f"FAILED: {type(error).__name__}: {error}")
        code = EXIT_FAILED
    _leave()
    gdb.execute(f"quit {code}")
    raise SystemExit(code)


__all__ = [name for name in dir() if not name.startswith("_")]
