# scenario: guest=bare cpus=2 timeout=60 needs=hardware-breakpoint,watchpoint,software-breakpoint,single-step
"""Breakpoints of both kinds and a watch that were armed before a vCPU was powered on stop it as well."""

from bare import *
from gdbcase import *


def body() -> None:
    select("both_cpus", timer_period=0)
    set_u64("rounds", 3)
    threads = gdb.selected_inferior().threads()
    equal("threads", len(threads), 2)
    point, word = hbreak("secondary_main"), watch(sym("cpus_on"), 8)
    stop = cont_to(point)
    equal("thread", stop.thread, 2)
    equal("its argument", argument(0), 1)
    stop = cont_to(word)
    equal("thread", stop.thread, 2)
    equal("cpus_on", u64("cpus_on"), 1)
    point.delete()
    word.delete()
    hit = sbreak("hit_me")
    seen = [cont_to(hit).thread for _ in range(6)]
    equal("hits per thread", sorted(seen), [1, 1, 1, 2, 2, 2])
    hit.delete()
    finish()


run(body)
