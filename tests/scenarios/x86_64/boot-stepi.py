# scenario: guest=bare cpus=1 timeout=60 needs=single-step
"""stepi in boot code on the loader's page tables, every pc and register known, then across the switch to the guest's own."""

from bare import *
from gdbcase import *


def body() -> None:
    equal("pc", reg("pc"), sym("boot_code"))
    check(reg("cr0") >> 31 & 1 == 1 and reg("efer") >> 10 & 1 == 1, "the vCPU is not in 64-bit mode")
    loaders = reg("cr3")
    # mov %rsi, %r15; mov $0, %eax; mov $5, %ecx
    for n in range(1, 4):
        step_on(f"step {n} of the boot code")
    equal("r15", reg("r15"), reg("rsi"))
    equal("rcx", reg("rcx"), 5)
    total = 0
    for left in range(5, 0, -1):
        equal("pc", reg("pc"), sym("boot_loop"))
        step_on("ADD")
        total += left
        equal("rax", reg("rax"), total)
        step_on("SUB")
        equal("ZF", reg("eflags") >> 6 & 1, int(left == 1))
        step_to("boot_loop" if left > 1 else "boot_loop_end", "JNE")
    equal("rax", reg("rax"), 15)

    while reg("pc") != sym("tables_load"):
        step_on("an instruction on the way")
    step_on("MOV")
    equal("cr3", reg("cr3"), loaders)
    step_to("tables_loaded", "MOV to CR3")
    equal("cr3", reg("cr3"), sym("level4"))

    # GiB 256 is the first GiB as well: the same bytes through the tables, and nothing where nothing is mapped.
    address = sym("boot_code")
    equal("code through the alias", mem(256 << 30 | address, 64), mem(address, 64))
    fails("an address that is not mapped", lambda: mem(300 << 30, 8))
    run_to("main")
    equal("cr4", reg("cr4"), 1 << 5 | 1 << 9)


run(body)
