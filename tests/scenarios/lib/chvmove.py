"""A VM at a breakpoint goes to the spare VMM, by whatever way: the stop moves with it, and so do the breakpoints."""

from bare import *
from chv import *
from gdbcase import *


def stop_moves(**way: Any) -> None:
    """The arguments are those of chv.migrate."""
    select("step_svc")
    keep_inserted()
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    pc, code = reg("pc"), mem(sym("finished"), 8)
    svc, end = hbreak("vector_sync"), sbreak("finished")
    before = inserted()

    migrate(**way)
    equal("state", spare().state(), "BreakPoint")
    connect_spare()
    equal("pc", reg("pc"), pc)
    equal("code below the software breakpoint", mem(sym("finished"), 8), code)
    equal("breakpoints", inserted(), before)
    cont_to(svc)
    svc.delete()
    cont_to(end)


__all__ = [name for name in dir() if not name.startswith("_")]
