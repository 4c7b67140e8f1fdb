# scenario: guest=linux cpus=2 timeout=300 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""A session that goes to a VM without a debugger sleeps: the guest runs clean, and a client finds everything later."""

from fleet import *
from moving import *


def no_breakpoint_in(name: str) -> None:
    """None of guest memory holds our BRK, whose imm16 is 0x67db. An INT3 says nothing of whose it is."""
    if not ARCH.planted:
        return
    code, text = shell(f"grep -c -a -F \"$(printf '{ARCH.planted}')\" {name}/memory")
    equal(f"exit code of the search in {name}, which found {text.strip()}", code, 1)


def body() -> None:
    poll()
    arm()
    # A stop, at which what is saved with breakpoints has to be what is saved without any. Whatever interrupts a VMM raises
    # when it resumes its devices are pending afterwards, in guest memory, and stay so.
    snapshot(FIRST, "resumed")
    shell("rm -rf resumed")
    snapshot(FIRST, "armed")
    everything_listed()
    delete_all()
    snapshot(FIRST, "clean")
    code, text = shell("cmp armed/memory clean/memory")
    equal(f"comparison of memory ({text.strip()})", code, 0)
    no_breakpoint_in("armed")

    asleep = restore("armed", gdb=False)
    # A VMM that has no word for it says that the guest runs.
    check("dormant" in (text := status(asleep)) or text == "Running", text)
    snapshot(asleep, "asleep")
    no_breakpoint_in("asleep")
    forget()

    for landing in ({"gdb": True}, {"gdb": True, "hold": True}):
        try:
            awake = restore("asleep", **landing)
        except Unsupported as unsupported:
            print(unsupported)
            continue
        meet(awake)
        everything_listed()
        a_whole_round(hits_of_a_round())
        forget()


run(body)
