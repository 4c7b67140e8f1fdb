# scenario: guest=linux cpus=2 timeout=60
"""break in a user program: arguments, locals, a caller's frame, and finish with the value it returns."""

from gdbcase import *
from linux import *


def body() -> None:
    poll()
    command("lines", 41)
    breakpoint = sbreak("lines_callee")
    cont_to(breakpoint)
    equal("mode", reg("cpsr") & PSTATE_MODE, MODE_EL0T)
    equal("value", int(gdb.parse_and_eval("value")), 42)
    caller = gdb.newest_frame().older()
    equal("caller", caller.name(), "lines")
    equal("a in the caller", int(caller.read_var("a")), 42)
    _ = gdb.execute("finish", to_string=True)
    equal("x0", reg("x0"), 126)
    done("lines")
    equal("result", u64("lines_result"), 168)
    equal("hits", breakpoint.hit_count, 1)


run(body)
