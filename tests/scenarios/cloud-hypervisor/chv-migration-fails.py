# scenario: guest=bare cpus=1 timeout=120
"""A migration to nowhere leaves the VM at its breakpoint."""

from bare import *
from chv import *
from gdbcase import *


def body() -> None:
    select("step_svc")
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    pc = reg("pc")
    vmm().call("PUT", "vm.send-migration", {"destination_url": "unix:" + host_path("nobody.sock")})
    for _ in range(50):
        time.sleep(0.1)
        if vmm().state() == "BreakPoint":
            break
    equal("pc", reg("pc"), pc)
    step_to("vector_sync", "SVC")
    run_to("finished")


run(body)
