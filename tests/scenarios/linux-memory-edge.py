# scenario: guest=linux cpus=2 timeout=60
"""User and kernel memory up to a page boundary with nothing behind it: read to the edge, refused across it."""

from gdbcase import *
from linux import *


# THREAD_SIZE and IRQ_STACK_SIZE, on both architectures.
STACK = 16 << 10


def readable(address: int) -> bool:
    try:
        return len(mem(address, 1)) == 1
    except gdb.MemoryError:
        return False


def examine(address: int, count: int) -> str:
    return gdb.execute(f"x/{count}xb {address:#x}", to_string=True)


def edge_at(edge: int) -> None:
    equal("the last bytes", len(mem(edge - 16, 16)), 16)
    fails("a read across the edge", lambda: mem(edge - 16, 32))
    fails("a read behind the edge", lambda: mem(edge, 1))
    message = fails("an examine across the edge", lambda: examine(edge - 8, 16))
    check(f"{edge:#x}" in message, f"gdb says: {message}")


def body() -> None:
    poll()
    edge = u64("edge") + PAGE
    edge_at(edge)
    equal("the last bytes of the user page", mem(edge - 16, 16), bytes(range(240, 256)))

    # All or nothing: what is in front of the edge stays as it was.
    fails("a write across the edge", lambda: set_mem(edge - 8, b"\xee" * 16))
    equal("bytes in front of the edge", mem(edge - 16, 16), bytes(range(240, 256)))
    set_mem(edge - 8, b"\xdd" * 8)
    equal("bytes in front of the edge", mem(edge - 8, 8), b"\xdd" * 8)
    set_mem(edge - 8, bytes(range(248, 256)))

    # A kernel stack ends at a guard page, an interrupt's as well.
    command("syscalls", 1)
    if can("hardware-breakpoint"):
        run_to(SYSCALL)
    check(not in_user_mode(), "the vCPU is in user mode")
    stack_end = (reg("sp") | PAGE - 1) + 1
    while readable(stack_end) and stack_end < reg("sp") + STACK:
        stack_end += PAGE
    edge_at(stack_end)
    delete_all()
    done("syscalls")


run(body)
