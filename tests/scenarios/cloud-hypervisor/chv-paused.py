# scenario: guest=bare cpus=2 timeout=120
"""gdb and a VM that is paused: everything can be looked at, and what was ordered is done when the VM is resumed."""

from bare import *
from chv import *
from gdbcase import *


def resumed_soon() -> threading.Thread:
    """Resumes the VM while gdb waits for it."""

    def resume() -> None:
        time.sleep(1.0)
        vmm().put("vm.resume")

    thread = threading.Thread(target=resume)
    thread.start()
    return thread


def body() -> None:
    select("step_svc")
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    pc, code = reg("pc"), mem(sym("step_svc"), 8)
    vmm().put("vm.pause")
    equal("state", vmm().state(), "Paused")
    equal("pc while the VM is paused", reg("pc"), pc)
    equal("code while the VM is paused", mem(sym("step_svc"), 8), code)

    # Ctrl-C takes back what was ordered.
    stop = run_for(0.5)
    equal("signal", stop.signal, "SIGINT")
    equal("pc after an order that was taken back", stop.pc, pc)
    equal("state", vmm().state(), "Paused")

    resuming = resumed_soon()
    stepi()
    resuming.join()
    equal("function after the step", where(reg("pc")), "vector_sync")
    equal("state", vmm().state(), "BreakPoint")

    # Breakpoints that are set meanwhile are there when it goes on.
    vmm().put("vm.pause")
    end, code = sbreak("finished"), mem(sym("finished"), 8)
    resuming = resumed_soon()
    cont_to(end)
    resuming.join()
    equal("code below the breakpoint", mem(sym("finished"), 8), code)


run(body)
