# scenario: guest=linux cpus=2 timeout=240 moves=yes
"""A VMM that knows nothing of debug sessions goes on with a snapshot that has one, and the guest runs clean."""

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

    vm = restore("debugged", plain=True, gdb=True)
    meet(vm)
    check("nothing is inserted" in listed(), listed())
    # The round that had begun went to its end, unseen.
    poll()
    equal("calls that the guest counted", [u64(sym("syscalls") + 8 * n) for n in range(2)], [5, 5])
    equal("kernel text", mem(sym(SOFTWARE), 4), code)


run(body)
