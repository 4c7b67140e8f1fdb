# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""A guest that is saved while it runs under gdb hits every breakpoint in the VM that goes on with it, and so does the first."""

import time

from fleet import *
from moving import *


def save() -> Vm:
    time.sleep(0.5)
    snapshot(FIRST, "running")
    return restore("running")


def body() -> None:
    poll()
    arm()
    saving = Meanwhile(save)
    stop = run_for(15.0 * PATIENCE)
    equal("signal", stop.signal, "SIGINT")
    other = saving.result()
    everything_listed()
    a_whole_round(hits_of_a_round(), known=True)
    forget()

    meet(other)
    everything_listed()
    a_whole_round(hits_of_a_round())
    a_whole_round(hits_of_a_round())


run(body)
