# scenario: guest=bare cpus=1 timeout=120 needs=hardware-breakpoint,software-breakpoint,single-step,test:brks
"""A guest executes 1,000 breakpoint instructions of its own among our breakpoints: all reach its vector, none of ours does."""

from bare import *
from gdbcase import *

ROUNDS = 1000


def body() -> None:
    select("brks", timer_period=2000)
    set_u64("rounds", ROUNDS)
    start, end, never = sbreak("brk_rounds"), sbreak("finished"), sbreak("hit_me")
    cont_to(start)
    start.delete()
    cont_to(end)
    equal("breakpoint instructions that the guest handled", u64("brk_count"), ROUNDS)
    if NAME == "arm64":
        equal("comment of the last one", u64("brk_esr") & 0xFFFF, 0x55)
    check(sym("brk_rounds") <= u64("brk_elr") < sym("finished"), f"the last one was at {u64('brk_elr'):#x}")
    equal("hits elsewhere", never.hit_count, 0)


run(body)
