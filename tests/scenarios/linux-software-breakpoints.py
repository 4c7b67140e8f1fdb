# scenario: guest=linux cpus=2 timeout=240
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
    points = [sbreak(address) for address in addresses]
    command("calls")
    for index, point in enumerate(points):
        stop = cont_to(point)
        equal(f"pc of hit {index}", stop.pc, addresses[index])
        if index % 250 == 0:
            equal("calls that the guest counted", u64("calls"), index)
            for address, code in before.items():
                equal(f"code at {address:#x}", mem(address, 4), code)
    delete_all()
    gdb.execute("set breakpoint always-inserted off", to_string=True)
    done("calls")
    equal("calls that the guest counted", u64("calls"), COUNT)


run(body)
