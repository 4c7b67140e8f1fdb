# scenario: guest=linux cpus=2 timeout=120 needs=hardware-breakpoint,watchpoint,single-step
"""Watches of 3 bytes at an odd address and of wide ranges: their edges stop, what is beside them does not."""

from gdbcase import *
from linux import *
from ops import *


def edges(address: int, length: int) -> None:
    """Stores to both edges from inside and outside, with accesses that cross them."""
    end = address + length
    accesses = [
        Op("store8", address - 1, 0x71),
        Op("store8", address, 0x72, hits=True),
        Op("store8", address + length // 2, 0x73, hits=True),
        Op("store8", end - 1, 0x74, hits=True),
        Op("store8", end, 0x75),
        Op("store16", address - 1, 0x7877, hits=True),
        Op("store16", end - 1, 0x7A79, hits=True),
        Op("load64", address & ~7),
    ]
    poll()
    set_mem(address - 8, bytes(length + 16))
    load_ops(accesses)
    command("ops")
    point = watch(address, length)
    expect_stops([point], accesses, "agent_done")
    point.delete()
    stored(f"edge of {length} bytes", address - 1, b"\x77\x78")
    stored(f"end of {length} bytes", end - 1, b"\x79\x7a")


def body() -> None:
    poll()
    base = sym("arena") + PAGE
    edges(base + 5, 3)
    edges(base + 13, 3)  # 2 bytes of it are in the next doubleword but one
    if ARCH.slots:
        # As many as there are, but for the one of the breakpoint at the end.
        edges(base + 64, 8 * (ARCH.slots - 1))
    else:
        edges(base + 64, 64)
        edges(base, PAGE)


run(body)
