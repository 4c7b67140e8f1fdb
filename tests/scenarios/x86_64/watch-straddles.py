# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,single-step,watchpoint
"""Watches stop accesses that begin in front of the watched bytes, and none that miss them; the accesses happen."""

from bare import *
from gdbcase import *
from ops import *


def body() -> None:
    select("ops", timer_period=2000)
    base = sym("arena") + 4096
    set_mem(base, b"\xff" * 256)
    ops = [
        Op("store_pair", base + 16, 0x11, hits=True),  # its second half is watched
        Op("store_pair", base + 8, 0x12),  # ends right in front of it
        Op("store_pair", base + 32, 0x13),  # begins right behind it
        Op("store8", base + 27, 0x14, hits=True),  # in the middle
        Op("store64", base + 20, 0x1500000015, hits=True),  # unaligned, last half only
        Op("load64", base + 24),  # a read is no write
    ]
    load_ops(ops)
    write = watch(base + 24, 8)
    expect_stops([write], ops, "finished")
    write.delete()

    set_u64("selected", TESTS.index("ops"))
    set_mem(base, bytes(range(64)))
    ops = [
        Op("load_pair", base + 16, hits=True),
        Op("load_pair", base + 32),
        Op("load8", base + 31, hits=True),
        Op("load32", base + 22, hits=True),
        Op("store8", base + 31, 0x99, hits=True),
        Op("store8", base + 32, 0x9A),
    ]
    load_ops(ops)
    access = watch(base + 24, 8, "awatch")
    expect_stops([access], ops, "finished")
    access.delete()
    pair = [int.from_bytes(bytes(range(a, a + 8)), "little") for a in (16, 24)]
    equal("what the pair's load read", op_value(0), sum(pair) & (1 << 64) - 1)
    equal("what the byte's load read", op_value(2), 31)
    stored("the store in the watch", base + 31, b"\x99")


run(body)
