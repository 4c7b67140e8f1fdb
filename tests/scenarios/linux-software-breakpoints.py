# scenario: guest=linux cpus=2 timeout=240 needs=hardware-breakpoint,software-breakpoint,single-step
"""1,000 software breakpoints at once: each of them hits, once, in the order in which the guest calls the functions."""

import struct

from gdbcase import *
from linux import *

COUNT = 1000


def body() -> None:
    poll()
    addresses = struct.unpack(f"<{COUNT}Q", mem(sym("functions"), 8 * COUNT))
    before = {address: mem(address, 4) for address in addresses[::100]}
    # Otherwise gdb takes all of them out and puts them in again at every stop.
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    hits: list[int] = []

    def on_hit() -> None:
        pc = reg("pc")
        equal(f"pc of hit {len(hits)}", pc, addresses[len(hits)])
        if len(hits) % 250 == 0:
            equal("calls that the guest counted", u64("calls"), len(hits))
            for address, code in before.items():
                equal(f"code at {address:#x}", mem(address, 4), code)
        hits.append(pc)

    points = [Tally(address, on_hit) for address in addresses]
    command("calls")
    end = hbreak("agent_done")
    stop = cont()
    for point in points:
        if point.failure:
            raise point.failure
    check(stop.at(end), f"a stop that was not asked for: {stop}")
    delete_all()
    gdb.execute("set breakpoint always-inserted off", to_string=True)
    equal("hits", len(hits), COUNT)
    equal("calls that the guest counted", u64("calls"), COUNT)


run(body)
