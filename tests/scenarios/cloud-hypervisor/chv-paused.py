# scenario: guest=bare cpus=2 timeout=120
"""gdb and a VM that is paused: everything can be looked at, and what was ordered is done when the VM is resumed."""

from bare import *
from chv import *
from gdbcase import *


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

    resumes: list[str] = []

    def resume() -> None:
        time.sleep(1.0)
        resumes.append(vmm().state())
        vmm().put("vm.resume")

    resuming = threading.Thread(target=resume)
    resuming.start()
    stepi()
    resuming.join()
    equal("states when the VM was resumed", resumes, ["Paused"])
    equal("function after the step", where(reg("pc")), "vector_sync")
    equal("state", vmm().state(), "BreakPoint")


run(body)
