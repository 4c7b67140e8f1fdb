"""What demos are made of: commands that are shown with gdb's answers, and parts that come true or not.

Runs inside gdb. The runner passes facts through the environment: DEMO_RESULTS (file for the results, as JSON) and
DEMO_VERBOSE (whether to show more).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from contextlib import contextmanager
from typing import Callable, Iterator

import gdb
from arch import ARCH
from fleet import Vm
from gdbcase import Failure, Skip, check, reg, where

# Longest that one command may take on a slow and busy machine.
PATIENCE = 60.0

_stops: list[gdb.StopEvent] = []
_results: list[dict[str, object]] = []


# ---------------------------------------------------------------- a command and its answer

def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Says that something takes long, and ends it when it takes too long, as Ctrl-C would."""
    over = threading.Event()

    def watch() -> None:
        started = time.monotonic()
        while not over.wait(5.0):
            seconds = time.monotonic() - started
            if seconds > PATIENCE:
                os.kill(os.getpid(), signal.SIGINT)
                return
            say(f"      ... {what}: {seconds:.0f} s")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def show(command: str) -> str:
    """Executes a command and prints it with its answer, which is returned."""
    say(f"(gdb) {command}")
    with patience(command):
        answer = gdb.execute(command, to_string=True)
    for line in answer.strip("\n").splitlines():
        say(line)
    return answer


def resume(command: str, end: str = "\n") -> gdb.StopEvent:
    """Executes a command that lets the guest run, and prints it with gdb's report of the stop."""
    print(f"(gdb) {command}", end=end, flush=True)
    _stops.clear()
    # What gdb says about a stop cannot be relied on to come as the command's answer.
    with patience(command):
        gdb.execute(command)
        gdb.flush()
    check(bool(_stops), f"the guest did not stop after {command}")
    return _stops[0]


def cont(expected: str) -> gdb.Breakpoint:
    """Continues to the only breakpoint there is; answers it."""
    event = resume("continue")
    hit = getattr(event, "breakpoints", [])
    check(len(hit) == 1, f"stopped in {where(reg('pc'))} instead of at the {expected}")
    return hit[0]


def function() -> str:
    return where(reg("pc")).split(" ")[0]


def clear() -> None:
    if gdb.breakpoints():
        show("delete")


def value(expression: str) -> int:
    return int(gdb.parse_and_eval(expression))


@contextmanager
def another_vm(vm: Vm, stay: bool = False) -> Iterator[None]:
    """gdb at another VM."""
    if gdb.selected_inferior().pid:
        show("disconnect")
    show(f"target remote {vm.address}")
    yield
    if not stay:
        show("disconnect")


# ---------------------------------------------------------------- the frame around it

def attempt(number: int, part: Callable[[], None]) -> None:
    title = part.__doc__ or part.__name__
    say(f"\n--- {number}. {title[0].upper()}{title[1:]}")
    reason = absent = None
    try:
        part()
    except Skip as skip:
        absent = str(skip)
    except Failure as failure:
        reason = str(failure)
    except BaseException as error:  # gdb's errors, KeyboardInterrupt: whatever it was, it did not come true
        if os.environ.get("DEMO_VERBOSE"):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    if reason:
        say(f"# This did not come true: {reason}")
    if absent:
        say(f"# This can't be shown here: {absent}")
    _results.append({"what": title, "reason": reason, "absent": absent})


def run(parts: tuple[Callable[[], None], ...]) -> None:
    """Shows all of them, the first of which attaches, and ends gdb."""
    for setting in ("pagination off", "confirm off", "width 0", "height 0", f"architecture {ARCH.gdb}", "remotetimeout 60",
                    "tcp connect-timeout 60", "print thread-events off"):
        gdb.execute(f"set {setting}", to_string=True)
    gdb.events.stop.connect(lambda event: _stops.__setitem__(slice(None), [event]))
    for number, part in enumerate(parts, 1):
        attempt(number, part)
        if number == 1 and _results[-1]["reason"]:
            break
    # A guest that is still attached would be killed by gdb's end.
    if gdb.selected_inferior().pid:
        gdb.execute("delete")
        gdb.execute("detach", to_string=True)
    with open(os.environ["DEMO_RESULTS"], "w", encoding="utf-8") as file:
        json.dump(_results, file)
    gdb.execute(f"quit {int(any(result['reason'] for result in _results))}")


__all__ = [name for name in dir() if not name.startswith("_")]
