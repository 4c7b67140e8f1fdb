# scenario: guest=bare cpus=2 timeout=60 needs=hardware-breakpoint
"""Threads are vCPUs by name; monitor lists them and the breakpoints, translates, and switches to physical memory."""

from bare import *
from gdbcase import *


def monitor(command: str) -> str:
    return gdb.execute(f"monitor {command}", to_string=True)


def body() -> None:
    try:
        listed = monitor("help")
    except gdb.error as error:
        raise Skip(f"the server has no monitor commands: {error}") from None
    if "translate" not in listed:
        raise Skip("the server has other monitor commands")
    select("none")
    run_to("finished")

    threads = gdb.execute("info threads", to_string=True)
    for cpu in range(2):
        check(f"vCPU {cpu}" in threads, f"no vCPU {cpu} in {threads}")
        check(f"vCPU {cpu}" in monitor("vcpus"), f"no vCPU {cpu} in {monitor('vcpus')}")

    # gdb sends a monitor command without saying which thread is current; a memory access says it.
    mem(sym("main"), 4)
    # The alias of RAM in GiB 256 leads to the same physical address as RAM's own.
    address = sym("boot_code")
    alias = 256 << 30 | address & (1 << 30) - 1
    for virtual in (address, alias):
        text = monitor(f"translate {virtual:#x}")
        check(f"physical {address:#x}" in text, f"translate {virtual:#x} says {text}")
    text = monitor(f"translate {300 << 30:#x}")
    check("physical 0x" not in text, f"an address that is not mapped: {text}")

    code = mem(alias, 32)
    monitor("phys on")
    equal("physical memory", mem(address, 32), code)
    fails("the alias as a physical address", lambda: mem(alias, 32))
    monitor("phys off")
    equal("virtual memory", mem(alias, 32), code)

    gdb.execute("set breakpoint always-inserted on", to_string=True)
    points = [hbreak("slot_0"), sbreak("slot_1"), watch(sym("slot_words"), 8)]
    listed = monitor("breakpoints")
    for what in (sym("slot_0"), sym("slot_1"), sym("slot_words")):
        check(f"{what:#x}" in listed, f"no {what:#x} in {listed}")
    for point in points:
        point.delete()
    check(f"{sym('slot_0'):#x}" not in monitor("breakpoints"), "a deleted breakpoint is listed")
    text = monitor("nonsense ﬀ")
    check(text.strip() != "", "an unknown monitor command is not answered")


run(body)
