# scenario: guest=bare cpus=1 timeout=120 needs=single-step,test:brks
"""A guest executes 1,000 INT3s of its own while a client is attached: all reach its handler, each one behind it."""

from bare import *
from gdbcase import *

ROUNDS = 1000


def body() -> None:
    select("brks", timer_period=2000)
    set_u64("rounds", ROUNDS)
    finish()
    equal("INT3s that the guest handled", u64("brk_count"), ROUNDS)
    at = u64("brk_elr")
    equal("the instruction before the last one's RIP", mem(at - 1, 1), b"\xcc")
    check(where(at).startswith("brk_rounds"), f"the last one was in {where(at)}")


run(body)
