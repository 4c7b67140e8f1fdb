"""Tries out one thing that scenarios need of a host: the ability in ABILITY, on a bare-metal guest that has just been started.

What KVM says of itself is not always so where the host is a virtual machine. Exit code 0 means that the host can do it.
"""

from __future__ import annotations

import os
import struct

from rsp import *

# Long for a guest that has a few instructions to execute.
ANSWER = 4.0 * PATIENCE


def pc(client: Client) -> int:
    return struct.unpack("<Q", bytes.fromhex(client.ask(b"p10").decode()))[0]


def expect(client: Client, action: bytes, what: bytes = b"") -> None:
    reply = client.ask(action, ANSWER)
    check(reply[:1] == b"T" and what in reply, f"{action!r} answered {reply!r}")


def single_step(client: Client, symbol: dict[str, int]) -> None:
    expect(client, b"vCont;s:1")
    check(pc(client) == symbol["boot_second"], f"a step from {symbol['boot_code']:#x} went to {pc(client):#x}")


def breakpoint_(kind: int) -> Callable[[Client, dict[str, int]], None]:
    def body(client: Client, symbol: dict[str, int]) -> None:
        client.insert(kind, symbol["boot_loop_end"])
        expect(client, b"vCont;c")
        check(pc(client) == symbol["boot_loop_end"], f"stopped at {pc(client):#x}")

    return body


def iret_step(client: Client, symbol: dict[str, int]) -> None:
    """Emulations of IRET differ in where they look at TF."""
    client.set_u64(symbol["timer_period"], 0)
    client.set_u64(symbol["selected"], ARCH.tests.index("step_iret"))
    for _ in range(500):
        if pc(client) == symbol["step_iret_off"]:
            break
        expect(client, b"vCont;s:1")
    expect(client, b"vCont;s:1")
    check(pc(client) == symbol["step_iret_off_target"], f"a step over IRET went to {pc(client):#x}")


def watchpoint(client: Client, symbol: dict[str, int]) -> None:
    check(client.ask(b"Z2,%x,8" % symbol["loops"]) == b"OK", "a watch is refused")
    expect(client, b"vCont;c", b"watch:")


def test(name: str) -> Callable[[Client, dict[str, int]], None]:
    """Whether the guest gets through one of its tests when nobody debugs it."""

    def body(client: Client, symbol: dict[str, int]) -> None:
        for variable, value in (("timer_period", 0), ("rounds", 2), ("selected", ARCH.tests.index(name))):
            client.set_u64(symbol[variable], value)
        client.send_raw(packet(b"vCont;c"))
        deadline = time.monotonic() + ANSWER
        while True:
            time.sleep(0.2)
            client.send_raw(b"\x03")
            client.reply(ANSWER)
            if client.u64(symbol["loops"]) > 1:
                return
            check(time.monotonic() < deadline, f"the guest does not get through {name}")
            client.send_raw(packet(b"vCont;c"))

    return body


def body(symbol: dict[str, int]) -> None:
    ability = os.environ["ABILITY"]
    probes = {
        "single-step": single_step,
        "hardware-breakpoint": breakpoint_(1),
        "software-breakpoint": breakpoint_(0),
        "watchpoint": watchpoint,
        "iret-step": iret_step,
    }
    probe = probes.get(ability) or test(ability.removeprefix("test:"))
    client = Client()
    client.stop_reply()
    probe(client, symbol)


run(body)
