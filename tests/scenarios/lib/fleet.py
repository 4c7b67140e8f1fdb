"""The VMs of a scenario that moves one: VM 0 runs when it begins, others come by asking the runner.

Each is known by its number. What the runner answers is in crates/xtask/src/scenarios/fleet.rs.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any


try:
    from gdbcase import Skip
except ImportError:  # a script without gdb
    from rsp import Skip


class Refused(Exception):
    """The VMM says no; the text is its own."""


class Unsupported(Skip):
    """This VMM has no such thing. Ends the scenario as one that was skipped."""


class Vm:
    """A VM, and where its gdb server is."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.number: int = answer["vm"]
        self.address: str = answer["address"]


FIRST = Vm({"vm": 0, "address": os.environ.get("GDB_TARGET", "")})


def ask(op: str, **members: Any) -> dict[str, Any]:
    """One request, and its answer. Refused if it is an error."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["FLEET"])
        connection.sendall(json.dumps({"op": op, **members}).encode() + b"\n")
        line = connection.makefile().readline()
    if not line:
        raise Refused(f"no answer to {op}")
    answer = json.loads(line)
    if "error" in answer:
        text = answer["error"]
        raise Unsupported(text) if text.startswith("unsupported: ") else Refused(text)
    return answer


def snapshot(vm: Vm, name: str) -> str:
    return ask("snapshot", vm=vm.number, name=name)["text"]


def restore(name: str, **landing: Any) -> Vm:
    """Members of landing: gdb, hold, watchpoints, breakpoints, plain. Returns when the VM is there, or has failed to be."""
    vm = Vm(ask("restore", name=name, **{"gdb": True, **landing}))
    try:
        while status(vm).startswith("restoring "):
            time.sleep(0.05)
    except Refused:
        pass  # it has ended; whoever asks is told why
    return vm


def receive(**landing: Any) -> Vm:
    """Members of landing: those of restore, and tcp."""
    return Vm(ask("receive", **{"gdb": True, **landing}))


def send(vm: Vm, to: Vm) -> str:
    return ask("send", vm=vm.number, to=to.number)["text"]


def migrate(vm: Vm, **landing: Any) -> Vm:
    to = receive(**landing)
    send(vm, to)
    return to


def status(vm: Vm) -> str:
    return ask("status", vm=vm.number)["text"]


def quit_vm(vm: Vm) -> None:
    """Tells its VMM to end."""
    ask("quit", vm=vm.number)


def kill(vm: Vm) -> None:
    ask("kill", vm=vm.number)


def ended(vm: Vm, seconds: float = 0.0) -> str | None:
    return ask("ended", vm=vm.number, seconds=seconds)["ended"]


def output(vm: Vm) -> str:
    return ask("ended", vm=vm.number, seconds=0.0)["output"]


def shell(command: str) -> tuple[int, str]:
    """In the directory with the snapshots, on the host."""
    answer = ask("shell", command=command)
    return answer["code"], answer["output"]


class Meanwhile(threading.Thread):
    """Does something while gdb waits for its guest."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        super().__init__()
        self.what, self.arguments = what, arguments
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.what(*self.arguments)
        except BaseException as error:  # shown by whoever asks for the result
            self.error = error

    def result(self) -> Any:
        self.join()
        if self.error:
            raise self.error
        return self.value
