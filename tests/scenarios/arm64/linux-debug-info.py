# scenario: guest=linux cpus=2 timeout=300 symbols=debug-info needs=hardware-breakpoint,single-step,watchpoint
"""With the kernel's debug information: frames have files and lines, next goes by lines, finish and a watch of a variable end where they
should, and SP_EL0 leads to the task."""

from gdbcase import *
from linux import *

# asm-generic/unistd.h: clock_nanosleep, by which the agent sleeps.
CLOCK_NANOSLEEP = 115
LINES = 5


def frames() -> list[str]:
    frame, names = gdb.newest_frame(), []
    while frame:
        sal = frame.find_sal()
        names.append(f"{frame.name()} {sal.symtab.filename if sal.symtab else '?'}:{sal.line}")
        frame = frame.older()
    return names


def source_line() -> str:
    return frames()[0].split(" ")[1]


def body() -> None:
    poll()
    run_to("__arm64_sys_clock_nanosleep")
    seen = frames()
    check(seen[0].startswith("__arm64_sys_clock_nanosleep kernel/time/posix-timers.c:"), f"frames {seen}")
    check(seen[-1].startswith("el0t_64_sync "), f"frames {seen}")
    check(len(seen) >= 5 and not any(name.endswith("?:0") for name in seen), f"frames {seen}")
    equal("the system call's number", int(gdb.parse_and_eval("regs->syscallno")), CLOCK_NANOSLEEP)
    task = gdb.parse_and_eval("(struct task_struct *) $SP_EL0")
    equal("the task's name", task["comm"].string(), "init")

    # Interrupts are masked there, and nothing sleeps.
    run_to("update_process_times")
    thread, line = gdb.selected_thread().num, source_line()
    for _ in range(LINES):
        gdb.execute("next", to_string=True)
        equal("the thread", gdb.selected_thread().num, thread)
        equal("the function", where(reg("pc")).split(" ")[0], "update_process_times")
        equal("the start of a line", gdb.find_pc_line(reg("pc")).pc, reg("pc"))
        check(source_line() != line, f"next stayed at {line}")
        line = source_line()

    run_to("tick_do_update_jiffies64")
    caller = gdb.newest_frame().older()
    back, function = caller.pc(), caller.name()
    gdb.execute("finish", to_string=True)
    equal("where finish ends", (reg("pc"), gdb.newest_frame().name()), (back, function))

    before = int(gdb.parse_and_eval("jiffies_64"))
    gdb.execute("watch jiffies_64", to_string=True)
    cont()
    check(int(gdb.parse_and_eval("jiffies_64")) > before, "the watch stopped before the write")
    check(source_line().startswith("kernel/time/t"), f"written by {frames()[0]}")


run(body)
