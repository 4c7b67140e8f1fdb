# scenario: guest=bare cpus=1 timeout=120
"""A VM is saved while it runs. Restored, it hits a breakpoint before anybody has attached, and waits for whoever does."""

from bare import *
from chv import *
from gdbcase import *

# Time enough to save the VM before its timer interrupts it, in ticks of 16 ns.
PERIOD = 400_000_000


def body() -> None:
    select("none", timer_period=PERIOD)
    keep_inserted()
    hit = hbreak("irq")
    states: list[str] = []

    def save_and_restore() -> None:
        time.sleep(0.5)
        states.append(vmm().state())
        url = snapshot()
        spare().put("vm.restore", {"source_url": url, "resume": True})
        vmm().put("vm.resume")

    saver = threading.Thread(target=save_and_restore)
    saver.start()
    # The VM that was saved goes on, and gets there as well.
    equal("stop", cont().at(hit), True)
    saver.join()
    equal("state when it was saved", states, ["Running"])
    for _ in range(200):
        if spare().state() == "BreakPoint":
            break
        time.sleep(0.1)
    connect_spare()
    equal("function", where(reg("pc")), "irq")
    stepi()


run(body)
