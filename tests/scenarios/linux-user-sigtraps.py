# scenario: guest=linux cpus=2 timeout=180 needs=hardware-breakpoint,software-breakpoint,single-step
"""A guest program takes 1,000 SIGTRAPs from breakpoint instructions of its own while kernel breakpoints are armed: all of them are its."""

from gdbcase import *
from linux import *

TRAPS = 1000


def body() -> None:
    poll()
    command("traps", TRAPS)
    armed = [hbreak(NEVER), sbreak(f"{ARCH.system_call}reboot"), sbreak(SYSCALL)]
    done("traps")
    equal("SIGTRAPs that the guest counted", u64("traps"), TRAPS)
    equal("hits of the armed breakpoints", [b.hit_count for b in armed], [0, 0, 0])
    # They still work.
    command("syscalls", 1)
    cont_to(armed[2])
    delete_all()
    done("syscalls")


run(body)
