# scenario: guest=bare cpus=2 timeout=180
"""gdb reads registers all the time while its VM is paused and saved, again and again: neither disturbs the other.

KVM answers EBUSY for the state of the GIC while anybody is in an ioctl of a vCPU, and v53.0 does not survive that answer.
"""

from bare import *
from chv import *
from fleet import Meanwhile
from gdbcase import *

SNAPSHOTS = 10


def save_again_and_again() -> None:
    for number in range(SNAPSHOTS):
        path = host_path(f"saved-{number}")
        run_on_host(f"mkdir {path}")
        vmm().put("vm.pause")
        vmm().put("vm.snapshot", {"destination_url": f"file://{path}"})
        vmm().put("vm.resume")
        run_on_host(f"rm -r {path}")


def general() -> list[int]:
    return [reg(name) for name in ARCH.general]


def body() -> None:
    select("step_svc")
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    before = general()
    saving = Meanwhile(save_again_and_again)
    reads = 0
    while saving.is_alive():
        gdb.execute("maintenance flush register-cache", to_string=True)
        equal(f"registers after {reads} reads", general(), before)
        reads += 1
    saving.result()
    check(reads >= SNAPSHOTS, f"{reads} reads beside {SNAPSHOTS} snapshots")
    equal("state", vmm().state(), "BreakPoint")
    stepi()
    equal("function after the step", where(reg("pc")), "vector_sync")


run(body)
