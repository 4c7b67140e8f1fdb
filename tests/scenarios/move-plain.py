# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""A VMM that knows nothing of debug sessions goes on with a snapshot that has one, and the guest runs clean.

What became of the guest is seen with another snapshot, which that VMM has made, and one that knows them again.
"""

import time

from fleet import *
from moving import *


def body() -> None:
    poll()
    code = mem(sym(SOFTWARE), 4)
    arm()
    command("syscalls", 5)
    while where_it_is() != HARDWARE:
        cont()
    snapshot(FIRST, "debugged")
    forget()

    plain = restore("debugged", plain=True, gdb=False)
    # The round that had begun goes to its end meanwhile, unseen.
    time.sleep(5.0)
    snapshot(plain, "plain")
    kill(plain)
    vm = restore("plain")
    meet(vm)
    check("nothing is inserted" in listed(), listed())
    check(where_it_is() not in (HARDWARE, SOFTWARE), "it has not moved on")
    poll()
    equal("calls that the guest counted", counters(), [5, 5])
    equal("kernel text", mem(sym(SOFTWARE), 4), code)


run(body)
