# scenario: guest=linux cpus=2 timeout=900 moves=yes tool=python
"""What a debug session adds to the downtime of a live migration. Prints figures as the example stepbench does.

The breakpoints are on functions all over the kernel, taken at random, so nearly each is on a page of its own. Those that the
guest comes by are taken out, others come in for them, until it runs for a while without meeting one.
"""

import random
import re
import time
from statistics import median

from fleet import *
from rsp import *

COUNTS = (0, 100, 10_000)
MIGRATIONS = 8
# Most of the text of Debian's kernel; its symbols do not have the end.
TEXT_BYTES = 10 << 20
# Seconds without a hit: enough for the guest's timers to have come round.
QUIET = 3.0
PC = 32
REPORT = re.compile(r"stopped for ([\d.]+) ms: ([\d.]+) ms to bring it to a halt, ([\d.]+) ms for the debug session")


class Planted:
    """The breakpoints, and the functions that are left for more."""

    def __init__(self, functions: list[int]) -> None:
        self.functions = functions
        self.inside: set[int] = set()

    def add(self, client: Client) -> None:
        address = self.functions.pop()
        client.insert(0, address)
        self.inside.add(address)

    def replace(self, client: Client) -> None:
        """The guest has met one."""
        address = int.from_bytes(bytes.fromhex(client.ask(b"p%x" % PC).decode()), "little")
        check(address in self.inside, f"a stop at {address:#x}, where no breakpoint is")
        client.remove(0, address)
        self.inside.remove(address)
        self.add(client)


def run_until_quiet(client: Client, planted: Planted, seconds: float) -> None:
    """Leaves the guest running."""
    client.send_raw(packet(b"vCont;c"))
    while True:
        try:
            client.reply(seconds)
        except TimeoutError:
            return
        planted.replace(client)
        client.send_raw(packet(b"vCont;c"))


def measured(vm: Vm) -> tuple[Vm, tuple[float, ...]]:
    to = receive()
    text = send(vm, to)
    match = REPORT.search(text)
    check(match is not None, f"the VMM says {text!r}")
    return to, tuple(float(number) for number in match.groups())


def body(_: dict[str, int]) -> None:
    kernel = symbols(os.environ["KERNEL_ELF"])
    text = range(kernel["_stext"], kernel["_stext"] + TEXT_BYTES)
    functions = sorted({address for address in kernel.values() if address in text})
    random.seed(1)
    random.shuffle(functions)
    planted = Planted([address for address in functions if address % 4 == 0])
    vm, client = FIRST, Client(address=FIRST.address)
    for count in COUNTS:
        client.stop_reply()
        while len(planted.inside) < count:
            planted.add(client)
        run_until_quiet(client, planted, QUIET)
        times = []
        for _ in range(MIGRATIONS):
            vm, figures = measured(vm)
            times.append(figures)
            client.close()
            client = Client(address=vm.address)
            client.stop_reply()
            run_until_quiet(client, planted, 0.5)
        client.close()
        client = connect_again(address=vm.address)
        name = f"migration, {count} software breakpoints"
        shares = sorted(100 * session / downtime for downtime, _, session in times)
        print(f"{name}: downtime, median of {MIGRATIONS}\t{median(time[0] for time in times):.3f}\tms\t-")
        print(f"{name}: the session's part, median\t{median(time[2] for time in times):.3f}\tms\t-")
        print(f"{name}: the session's share, median\t{median(shares):.3f}\t%\t-")
        print(f"{name}: the session's share, largest\t{shares[-1]:.3f}\t%\t-")
    client.detach()


run(body)
