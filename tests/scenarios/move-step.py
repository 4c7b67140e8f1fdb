# scenario: guest=linux cpus=2 timeout=300 moves=yes needs=hardware-breakpoint,single-step
"""A guest that is saved in the middle of a range of steps: each VM that goes on with it comes to the step's end."""

import time

from fleet import *
from moving import *

ROUNDS = 1500


def save() -> Vm:
    time.sleep(1.0)
    snapshot(FIRST, "step")
    return restore("step")


def body() -> None:
    poll()
    command("spin", ROUNDS)
    run_to("spin")
    gdb.execute("next", to_string=True)
    line, thread = gdb.selected_frame().find_sal().line, gdb.selected_thread().num
    saving = Meanwhile(save)
    gdb.execute("next", to_string=True)
    other = saving.result()
    equal("line behind the step", gdb.selected_frame().find_sal().line, line + 1)
    equal("thread", gdb.selected_thread().num, thread)
    end = reg("pc")
    text = gdb.execute("x/2i $pc", to_string=True)
    forget()

    # Nobody is there to be told that it is over; attaching sooner would cut it short.
    for _ in range(240 * PATIENCE):
        if f"({', '.join(['stopped'] * cpus())})" in status(other):
            break
        time.sleep(0.5)
    stop = meet(other)
    equal("pc behind the step", stop.pc, end)
    equal("thread", stop.thread, thread)
    equal("code", gdb.execute("x/2i $pc", to_string=True), text)
    done("spin")


run(body)
