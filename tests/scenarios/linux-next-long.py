# scenario: guest=linux cpus=2 timeout=120 needs=hardware-breakpoint,software-breakpoint,single-step
"""next over a function that takes long: a breakpoint behind the call, and the guest runs, whatever the function executes."""

import re
from pathlib import Path

from gdbcase import *
from linux import *

# Each is some ten instructions.
ROUNDS = 100_000
CALL = "case CMD_SPIN:"


def line_of(text: str) -> int:
    """Line of the agent's source with a text."""
    source = Path(gdb.lookup_global_symbol("main").symtab.fullname())
    return next(number for number, line in enumerate(source.read_text().splitlines(), 1) if text in line)


def packets(log: str) -> list[str]:
    return re.findall(r"Sending packet: \$([^#]*)#", log)


def body() -> None:
    poll()
    command("spin", ROUNDS)
    call = gdb.Breakpoint(f"agent.c:{line_of(CALL)}", gdb.BP_BREAKPOINT)
    cont_to(call)
    call.delete()
    check(u64("lines_result") != ROUNDS, "the function has run before")
    gdb.execute("set debug remote 1")
    sent = packets(gdb.execute("next", to_string=True))
    gdb.execute("set debug remote 0")
    equal("rounds of the function", u64("lines_result"), ROUNDS)
    check(gdb.newest_frame().name() != "spin", "next ended in the function")
    resumes = [packet for packet in sent if packet.startswith("vCont;")]
    print(resumes)
    # Up to the call, into it, over it, and to the next line; not one for an instruction.
    check(1 <= len(resumes) <= 5, f"gdb resumed the guest {len(resumes)} times: {resumes}")
    check(any(packet.startswith("vCont;c") for packet in resumes), f"the guest was stepped all the way: {resumes}")
    inserted = [packet for packet in sent if re.match(r"Z[01],", packet)]
    check(inserted != [], "no breakpoint behind the call")
    done("spin")


run(body)
