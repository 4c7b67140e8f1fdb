# scenario: guest=linux cpus=2 timeout=60 needs=hardware-breakpoint,software-breakpoint,single-step
"""break in a user program: arguments, locals, a caller's frame, and finish with the value it returns."""

from gdbcase import *
from linux import *


def body() -> None:
    poll()
    command("lines", 41)
    breakpoint = sbreak("lines_callee")
    cont_to(breakpoint)
    check(in_user_mode(), "the vCPU is not in user mode")
    equal("value", int(gdb.parse_and_eval("value")), 42)
    caller = gdb.newest_frame().older()
    equal("caller", caller.name(), "lines")
    equal("a in the caller", int(caller.read_var("a")), 42)
    _ = gdb.execute("finish", to_string=True)
    equal("what it returned", reg(ARCH.result), 126)
    done("lines")
    equal("result", u64("lines_result"), 168)
    equal("hits", breakpoint.hit_count, 1)


run(body)
