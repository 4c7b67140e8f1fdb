# scenario: guest=bare cpus=1 timeout=60 needs=single-step,iret-step,test:step_user
"""Steps over IRETQ to CPL 3, instructions there, and SYSCALL back."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_user", timer_period=0)
    run_to("step_user_iret")
    target = reg("rdi")
    step_to(target, "IRETQ to CPL 3")
    check(in_user_mode(), "the vCPU is not at CPL 3")
    equal("flags", reg("eflags"), 0x202)
    equal("rsp", reg("rsp"), 0)
    step_on("MOV at CPL 3")
    equal("rax", reg("rax"), 0x123)
    step_on("ADD at CPL 3")
    equal("rax", reg("rax"), 0x124)
    # It takes a debug register to end the step in the kernel's entry.
    if can("hardware-breakpoint"):
        behind, flags = after(reg("pc")), reg("eflags")
        step_to("vector_syscall", "SYSCALL at CPL 3")
        check(not in_user_mode(), "the vCPU is still at CPL 3")
        equal("RCX", reg("rcx"), behind)
        equal("R11", reg("r11"), flags)
        equal("IF and TF in the entry", reg("eflags") & (EFLAGS_IF | EFLAGS_TF), 0)
    finish()
    equal("SYSCALLs from CPL 3 that the guest counted", u64("user_syscall_count"), 1)


run(body)
