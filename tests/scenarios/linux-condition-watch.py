# scenario: guest=linux cpus=2 timeout=120 needs=hardware-breakpoint,watchpoint,single-step
"""A watch with a condition: of all stores of a counter the one that it names stops, and the counter is right afterwards."""

from gdbcase import *
from linux import *
from rules import *

CALLS = 200
AT = 123


def body() -> None:
    evaluates()
    poll()
    counter = sym("syscalls")
    # The server knows a watch once it is inserted.
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    point = watch(counter, 8)
    # On arm64 memory still holds what the store before has left there, on x86_64 already what this one has.
    text = monitor(f"condition {counter:#x} *{counter:#x} == {AT}")
    check("write watchpoint" in text and "1 conditions" in text, text)
    set_u64("syscalls", 0)
    command("syscalls", CALLS)
    stop = cont_to(point)
    equal("thread", stop.thread, 1)
    # Where the store has not happened yet, gdb lets it before it shows the stop.
    equal("the counter", u64(counter), AT if NAME == "x86_64" else AT + 1)
    end = hbreak("agent_done")
    stop = cont()
    check(stop.at(end), f"a stop that was not asked for: {stop}")
    equal("calls that the guest counted", [u64(counter + 8 * n) for n in range(2)], [CALLS, CALLS])


run(body)
