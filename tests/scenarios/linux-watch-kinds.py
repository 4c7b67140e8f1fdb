# scenario: guest=linux cpus=2 timeout=90 needs=hardware-breakpoint,watchpoint,single-step
"""watch, rwatch and awatch of user memory stop the accesses that they name and no others; the accesses happen."""

from gdbcase import *
from linux import *
from ops import *


def round_(kind: str, accesses: list[Op]) -> None:
    poll()
    load_ops(accesses)
    command("ops")
    point = watch(sym("arena") + PAGE + 8, 8, kind)
    expect_stops([point], accesses, "agent_done")
    point.delete()


def body() -> None:
    poll()
    base = sym("arena") + PAGE
    set_mem(base, bytes(range(32)))
    round_("watch", [
        Op("load64", base + 8),
        Op("store64", base + 8, 0x1111, hits=True),
        Op("store8", base + 7, 0x22),
        Op("store8", base + 15, 0x33, hits=True),
        Op("store32", base + 16, 0x44),
    ])
    stored("stores beside and in the watch", base + 7, bytes([0x22, 0x11, 0x11, 0, 0, 0, 0, 0, 0x33, 0x44]))
    round_("rwatch", [
        Op("load64", base + 8, hits=True),
        # An x86_64 CPU watches no reads alone.
        Op("store64", base + 8, 0x5555, hits=NAME == "x86_64"),
        Op("load8", base + 11, hits=True),
        Op("load64", base + 16),
    ])
    equal("what the second load read", op_value(2), 0)
    round_("awatch", [
        Op("load16", base + 14, hits=True),
        Op("store16", base + 14, 0x6666, hits=True),
        Op("load8", base + 16),
    ])
    stored("the store", base + 14, b"\x66\x66")


run(body)
