"""What the scenarios share whose conditions, counts and messages are evaluated beside the vCPU."""

from __future__ import annotations

import re
from typing import NamedTuple

from gdbcase import Skip, check, equal, gdb, sym


class Counts(NamedTuple):
    """What `monitor hits` says of a breakpoint."""

    reached: int
    hits: int
    ignore: int


LINE = re.compile(r"^(.* at (0x[0-9a-f]+).*): reached (\d+) times, (\d+) hits, (\d+) to ignore")


def monitor(command: str) -> str:
    return gdb.execute(f"monitor {command}", to_string=True)


def evaluates() -> None:
    """Skips where the server leaves conditions to gdb."""
    try:
        known = "hits" in monitor("help")
    except gdb.error:
        known = False
    if not known:
        raise Skip("the server evaluates no conditions")
    gdb.execute("set breakpoint condition-evaluation target", to_string=True)


def counts(kind: str, location: int | str) -> Counts:
    """Of the breakpoint of that kind, such as `hardware breakpoint`."""
    text = monitor("hits")
    for line in text.splitlines():
        match = LINE.match(line)
        if match and match[1].startswith(kind) and int(match[2], 16) == sym(location):
            return Counts(*(int(number) for number in match.groups()[2:]))
    check(False, f"no {kind} at {location} in\n{text}")
    raise AssertionError


def doubleword(address: int) -> str:
    """An expression of gdb's for what is there."""
    return f"*(unsigned long *) {address:#x}"


__all__ = [name for name in dir() if not name.startswith("_")]
