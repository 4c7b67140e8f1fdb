# scenario: guest=bare cpus=1 timeout=60 needs=single-step
"""Steps over PUSHF, POPF, CLI and STI with a timer interrupt pending: the guest sees its own flags, and keeps them."""

from bare import *
from gdbcase import *

# (instruction, whether IF is set after it, and what PUSHF has saved is so in the register into which it pops)
PROGRAM = [
    ("PUSHF", True, None),
    ("POP RAX", True, "rax"),
    ("CLI", False, None),
    ("PUSHF", False, None),
    ("POP RCX", False, "rcx"),
    ("STI", True, None),
    ("NOP", True, None),
    ("PUSHF", True, None),
    ("POP RDX", True, "rdx"),
    ("CLI", False, None),
    ("PUSH RAX", False, None),
    ("POPF", True, None),
    ("PUSHF", True, None),
    ("POP R8", True, "r8"),
]


def body() -> None:
    select("step_flags", timer_period=100)
    run_to("step_flags")
    check(not masked(), "interrupts are masked at the start")
    taken = u64("timer_count")
    pc, instructions = reg("pc"), iter(PROGRAM)
    for instruction, on, popped in instructions:
        pc = after(pc)
        now = stepi()
        if instruction == "STI" and now == after(pc):
            # Nothing traps on the boundary behind STI on some CPUs.
            pc = after(pc)
            instruction, on, popped = next(instructions)
        equal(f"pc after {instruction}", now, pc)
        equal(f"IF after {instruction}", reg("eflags") & EFLAGS_IF != 0, on)
        equal(f"TF after {instruction}", reg("eflags") & EFLAGS_TF, 0)
        if popped:
            equal(f"IF that PUSHF has saved for {instruction}", reg(popped) & EFLAGS_IF != 0, on)
            equal(f"TF that PUSHF has saved for {instruction}", reg(popped) & EFLAGS_TF, 0)
    equal("pc", pc, sym("step_flags_end"))
    equal("timer interrupts taken during the steps", u64("timer_count"), taken)
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
