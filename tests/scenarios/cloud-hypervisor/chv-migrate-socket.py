# scenario: guest=bare cpus=2 timeout=180
"""A VM at a breakpoint is sent to another process over a socket: the stop moves with it, and so do the breakpoints."""

from bare import *
from chv import *
from gdbcase import *


def body() -> None:
    select("step_svc")
    keep_inserted()
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    pc, code = reg("pc"), mem(sym("finished"), 8)
    svc, end = hbreak("vector_sync"), sbreak("finished")
    before = inserted()

    migrate(local=False)
    equal("state", spare().state(), "BreakPoint")
    connect_spare()
    equal("pc", reg("pc"), pc)
    equal("code below the software breakpoint", mem(sym("finished"), 8), code)
    equal("breakpoints", inserted(), before)
    cont_to(svc)
    svc.delete()
    cont_to(end)


run(body)
