# scenario: guest=bare cpus=1 timeout=120
"""A VM is saved at a breakpoint and restored by another process: the stop is there, and so are the breakpoints."""

from bare import *
from chv import *
from gdbcase import *


def body() -> None:
    select("step_svc")
    keep_inserted()
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    pc, x0 = reg("pc"), reg("x0")
    svc, end = hbreak("vector_sync"), sbreak("finished")
    before = inserted()
    equal("state", vmm().state(), "BreakPoint")
    url = snapshot()
    equal("state", vmm().state(), "Paused")
    equal("pc while the VM is paused", reg("pc"), pc)
    vmm().put("vm.resume")
    equal("state", vmm().state(), "BreakPoint")
    equal("pc of the VM that was saved", reg("pc"), pc)
    equal("breakpoints of the VM that was saved", inserted(), before)

    spare().put("vm.restore", {"source_url": url, "resume": True})
    equal("state", spare().state(), "BreakPoint")
    connect_spare()
    equal("pc", reg("pc"), pc)
    equal("x0", reg("x0"), x0)
    equal("breakpoints", inserted(), before)
    cont_to(svc)
    svc.delete()
    cont_to(end)
    for _ in range(50):
        stepi()


run(body)
