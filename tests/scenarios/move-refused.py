# scenario: guest=linux cpus=2 timeout=240 moves=yes
"""A migration to a host with too few watchpoints is refused before it begins, and the session goes on where it is.

A VMM to which nobody has sent a VM yet says so, and can be told to end.
"""

from fleet import *
from moving import *


def body() -> None:
    poll()
    arm()
    for landing in ({"watchpoints": 1}, {"watchpoints": 0}):
        to = receive(**landing)
        try:
            send(FIRST, to)
        except Refused as refused:
            text = str(refused)
        else:
            raise Failure("the destination has taken a session that does not fit")
        check("watchpoint" in text and " 2" in text and str(landing["watchpoints"]) in text, text)
        check((ended(to, 10.0) or "").startswith("exit code 1"), "the destination has not ended with an error")
        everything_listed()
    a_whole_round(hits_of_a_round(), known=True)
    waiting = receive()
    check(status(waiting).startswith("waiting for a VM at "), status(waiting))
    try:
        snapshot(waiting, "nothing")
    except Refused as refused:
        check("the VM is not here yet" in str(refused), str(refused))
    else:
        raise Failure("a VM that is not there was saved")
    quit_vm(waiting)
    equal("end of a VMM that waits for a VM", ended(waiting, 10.0), "exit code 0")
    # Few breakpoints are another matter: software breakpoints stand in.
    forget()
    vm = FIRST
    meet(vm)
    arm()
    vm = migrate(vm, breakpoints=1)
    forget()
    meet(vm)
    everything_listed()
    check("slots: 1 of 1 in use" in listed(), listed())


run(body)
