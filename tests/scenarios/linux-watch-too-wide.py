# scenario: guest=linux cpus=2 timeout=60 needs=hardware-breakpoint,watchpoint,single-step
"""A watch that needs more registers than there are is refused, the guest is unharmed, a smaller one works."""

from gdbcase import *
from linux import *
from ops import *


def body() -> None:
    poll()
    base = sym("arena") + PAGE
    wide = watch(base + 3, 4001)  # twelve naturally aligned pieces or more
    refused("a watch of 4001 bytes at an odd address")
    wide.delete()

    poll()
    accesses = [Op("store8", base + 3, 0x31, hits=True), Op("store8", base + 4, 0x32)]
    set_mem(base, bytes(8))
    load_ops(accesses)
    command("ops")
    narrow = watch(base + 3, 1)
    expect_stops([narrow], accesses, "agent_done")


run(body)
