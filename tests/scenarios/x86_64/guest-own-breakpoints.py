# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,single-step,test:own_breakpoints
"""A guest's own execution breakpoint fires while a client is attached that uses no debug register, and stays as it was set."""

from bare import *
from gdbcase import *

ROUNDS = 50


def finish_without() -> None:
    """Lets the test run to its end with nothing in the debug registers of the session."""
    set_u64("rounds", ROUNDS)
    set_u64("selected", TESTS.index("own_breakpoints"))
    set_u64("own_rounds", 0)
    for _ in range(50):
        run_for(0.2)
        if u64("own_rounds") == ROUNDS and u64("selected") == 0:
            return
    raise Failure(f"the test does not end: {u64('own_rounds')} rounds")


def body() -> None:
    select("none", timer_period=0)
    finish()
    finish_without()
    equal("hits of the guest's own breakpoint", u64("db_count"), ROUNDS)
    equal("where", u64("db_rip"), sym("own_target"))
    equal("DR6 that the guest saw", u64("db_dr6") & 0xF, 1)
    equal("rounds in which a debug register was another one", u64("own_lost"), 0)


run(body)
