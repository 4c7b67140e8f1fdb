# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""A migration to a host with too few watchpoints is refused before it begins, and the session goes on where it is.

A disk that is full does no harm either, and a VMM to which nobody has sent a VM yet says so, and can be told to end.
"""

from fleet import *
from moving import *


def refused_text(what: Callable[..., object], *arguments: object) -> str:
    try:
        what(*arguments)
    except Refused as refused:
        return str(refused)
    raise Failure(f"{what.__name__} was not refused")


def body() -> None:
    poll()
    arm()
    for landing in ({"watchpoints": 1}, {"watchpoints": 0}):
        to = receive(**landing)
        text = refused_text(send, FIRST, to)
        check("watchpoint" in text and " 2" in text and str(landing["watchpoints"]) in text, text)
        check((ended(to, 10.0 * PATIENCE) or "").startswith("exit code 1"), "the destination has not ended with an error")
        everything_listed()
    a_whole_round(hits_of_a_round(), known=True)
    # Memory has 128 MiB, most of it zero and not written.
    equal("mounting a small disk", shell("mkdir small && mount -t tmpfs -o size=1m none small")[0], 0)
    text = refused_text(snapshot, FIRST, "small/full")
    check("No space left on device" in text and "small/full" in text, text)
    equal("what is left of it", shell("ls -A small; umount small && rmdir small"), (0, ""))
    everything_listed()
    # Clearing the counters changes them now, which is two hits more.
    a_whole_round(hits_of_a_round())
    waiting = receive()
    check(status(waiting).startswith("waiting for a VM at "), status(waiting))
    text = refused_text(snapshot, waiting, "nothing")
    check("the VM is not here yet" in text, text)
    quit_vm(waiting)
    equal("end of a VMM that waits for a VM", ended(waiting, 10.0 * PATIENCE), "exit code 0")
    # Few breakpoints are another matter: software breakpoints stand in. Over TCP, for once.
    forget()
    vm = FIRST
    meet(vm)
    arm()
    vm = migrate(vm, breakpoints=1, tcp=True)
    forget()
    meet(vm)
    everything_listed()
    check("slots: 1 of 1 in use" in listed(), listed())


run(body)
