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
MIGRATIONS = 6
# CMD_DIRTY of tests/guest/agent.c, and how much a busy guest writes to.
DIRTY, DIRTY_MIB = 10, 16
# Seconds without a hit: enough for the guest's timers to have come round.
QUIET = 3.0
# Most of the text of Debian's kernel; its symbols do not have the end.
TEXT_BYTES = 10 << 20
PC = 32
REPORT = re.compile(r"(\d+) of them with the guest stopped for ([\d.]+) ms: ([\d.]+) ms to bring it to a halt, ([\d.]+) ms for the debug session")


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


def begin_to_write(client: Client, agent: dict[str, int]) -> None:
    client.run_to(agent["agent_poll"])
    client.set_u64(agent["argument"], DIRTY_MIB)
    client.set_u64(agent["command"], DIRTY)


def end_to_write(client: Client, agent: dict[str, int]) -> None:
    client.run_to(agent["dirty_round"])
    client.set_u64(agent["argument"], 0)
    client.run_to(agent["agent_done"])


class Moving:
    """A VM, its client, and the breakpoints that are in it."""

    def __init__(self, planted: Planted) -> None:
        self.vm, self.planted = FIRST, planted
        self.client = Client(address=FIRST.address)
        self.client.stop_reply()

    def migrate(self) -> tuple[float, ...]:
        """Pages that were sent with the guest stopped; downtime, the time to bring it to a halt, and the session's part, in ms.
        The guest is stopped afterwards."""
        run_until_quiet(self.client, self.planted, 0.5)
        to = receive()
        text = send(self.vm, to)
        match = REPORT.search(text)
        check(match is not None, f"the VMM says {text!r}")
        self.client.close()
        self.vm, self.client = to, Client(address=to.address)
        self.client.stop_reply()
        return tuple(float(number) for number in match.groups())

    def report(self, what: str) -> None:
        times = [self.migrate() for _ in range(MIGRATIONS)]
        pages, downtime, _, session = (median(column) for column in zip(*times))
        print(f"{what}: sent with the guest stopped, median of {MIGRATIONS}\t{pages}\tpages\t-")
        print(f"{what}: downtime, median\t{downtime:.3f}\tms\t-")
        print(f"{what}: the session's part, median\t{session:.3f}\tms\t-")
        print(f"{what}: the session's share, median\t{median(100 * time[3] / time[1] for time in times):.3f}\t%\t-")


def body(agent: dict[str, int]) -> None:
    kernel = symbols(os.environ["KERNEL_ELF"])
    text = range(kernel["_stext"], kernel["_stext"] + TEXT_BYTES)
    functions = sorted({address for address in kernel.values() if address in text and address % 4 == 0})
    random.seed(1)
    random.shuffle(functions)
    moving = Moving(Planted(functions))
    for count in COUNTS:
        while len(moving.planted.inside) < count:
            moving.planted.add(moving.client)
        run_until_quiet(moving.client, moving.planted, QUIET)
        moving.client.send_raw(b"\x03")
        moving.client.reply()
        moving.report(f"migration, idle guest, {count} software breakpoints")
        begin_to_write(moving.client, agent)
        moving.report(f"migration, busy guest, {count} software breakpoints")
        end_to_write(moving.client, agent)
    moving.client.detach()


run(body)
