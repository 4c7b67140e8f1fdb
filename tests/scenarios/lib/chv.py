"""Driving cloud-hypervisor by its REST API, beside the gdb session.

The runner passes, beside what gdbcase.py knows:

VMM_API         port of the API of the VMM with the guest
SPARE_API       port of the API of a second VMM, which has no guest
SPARE_GDB       what `target remote` connects to there
SPARE_ARRIVAL   port behind which it receives a VM, at migration.sock in HOST_DIRECTORY
HOST_DIRECTORY  an empty directory where the VMMs run
FLEET           see fleet.py
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    import gdb
    from gdbcase import Failure, connect
except ImportError:  # a script without gdb
    class Failure(Exception):
        pass

from fleet import shell

# A snapshot's place for the session.
LEAF = "guest-debug"


class Vmm:
    """One cloud-hypervisor process."""

    def __init__(self, variable: str) -> None:
        self.port = int(os.environ[variable])

    def call(self, method: str, name: str, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = None if body is None else json.dumps(body)
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, f"/api/v1/{name}", data, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def put(self, name: str, body: object = None) -> str:
        status, text = self.call("PUT", name, body)
        if status not in (200, 204):
            raise Failure(f"{name} is answered with {status}: {text}")
        return text

    def refuses(self, name: str, body: object = None) -> str:
        status, text = self.call("PUT", name, body)
        if status in (200, 204):
            raise Failure(f"{name} is not refused")
        return text

    def state(self) -> str:
        status, text = self.call("GET", "vm.info")
        if status != 200:
            raise Failure(f"vm.info is answered with {status}: {text}")
        return json.loads(text)["state"]


def vmm() -> Vmm:
    return Vmm("VMM_API")


def spare() -> Vmm:
    return Vmm("SPARE_API")


def host_path(name: str) -> str:
    return os.path.join(os.environ["HOST_DIRECTORY"], name)


def snapshot() -> str:
    """Pauses the VM, saves it, and answers where."""
    url = "file://" + os.environ["HOST_DIRECTORY"]
    vmm().put("vm.pause")
    vmm().put("vm.snapshot", {"destination_url": url})
    return url


def run_on_host(command: str) -> str:
    code, text = shell(command)
    if code != 0:
        raise Failure(f"{command[:80]} ends with {code}: {text}")
    return text


def put_file(path: str, data: bytes) -> None:
    """On the host. A command line has 128 KiB."""
    run_on_host(f": > {path}")
    for start in range(0, len(data), 0xC000):
        piece = base64.b64encode(data[start : start + 0xC000]).decode()
        run_on_host(f"echo {piece} | base64 -d >> {path}")


def tree_of(url: str) -> dict[str, Any]:
    """What a snapshot has beside guest memory and the VM's configuration."""
    return json.loads(run_on_host(f"cat {url.removeprefix('file://')}/state.json"))


def session_in(tree: dict[str, Any]) -> dict[str, Any]:
    return json.loads(tree["snapshots"][LEAF]["snapshot_data"]["state"])


def change_session(tree: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The same with another session."""
    session = session_in(tree)
    change(session)
    leaf = {"snapshots": {}, "snapshot_data": {"state": json.dumps(session)}}
    return {**tree, "snapshots": {**tree["snapshots"], LEAF: leaf}}


def write_tree(url: str, tree: dict[str, Any]) -> None:
    put_file(f"{url.removeprefix('file://')}/state.json", json.dumps(tree).encode())


@contextlib.contextmanager
def arriving(url: str, **how: object) -> Iterator[list[BaseException]]:
    """Has the spare VMM receive a VM while the body sends one. What is wrong with that is in the list afterwards."""
    errors: list[BaseException] = []
    if url.startswith("unix:"):
        # An earlier one is left where it was.
        run_on_host(f"rm -f {url.removeprefix('unix:')}")

    def receive() -> None:
        try:
            spare().put("vm.receive-migration", {"receiver_url": url, **how})
        except BaseException as error:  # told by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    wait_for_listener(url)
    yield errors
    thread.join(60)
    if thread.is_alive():
        errors.append(Failure("the migration has not ended after 60 s"))


def wait_for_listener(url: str) -> None:
    """The VMM listens soon, and says so nowhere. A connection to find out would be taken for the migration."""
    kind, _, address = url.partition(":")
    if kind == "tcp":
        looks = f"grep -q ' 0100007F:{int(address.rpartition(':')[2]):04X} .* 0A ' /proc/net/tcp"
    else:
        looks = f"grep -q ' 00010000 .* {address}$' /proc/net/unix"
    for _ in range(100):
        if shell(looks)[0] == 0:
            return
        time.sleep(0.1)
    raise Failure(f"nobody listens at {url}")


def migrate(local: bool = False, url: str = "", there: dict[str, object] = {}, here: dict[str, object] = {}) -> None:
    """Moves the guest to the spare VMM: by its unix socket, or wherever else. Further options for either side."""
    url = url or "unix:" + host_path("migration.sock")
    with arriving(url, **there) as errors:
        vmm().put("vm.send-migration", {"destination_url": url, "local": local, **here})
    if errors:
        raise errors[0]


class Source:
    """Sends a VM that no VMM would send, as far as the destination takes it.

    cloud-hypervisor v53.0, vm-migration/src/protocol.rs: a request is a number of 16 bits, 6 bytes, and the length of what
    follows in 64 bits; the answer to it has the same form, and 1 says that it was taken.
    """

    START, CONFIG, STATE, COMPLETE = 1, 2, 3, 5

    def __init__(self) -> None:
        self.connection = socket.create_connection(("127.0.0.1", int(os.environ["SPARE_ARRIVAL"])))

    def request(self, number: int, body: bytes = b"") -> bool:
        self.connection.sendall(struct.pack("<H6xQ", number, len(body)) + body)
        answer = b""
        while len(answer) < 16:
            piece = self.connection.recv(16 - len(answer))
            if not piece:
                raise Failure(f"the destination closed the connection instead of answering request {number}")
            answer += piece
        return struct.unpack("<H14x", answer)[0] == 1

    def send(self, config: dict[str, Any], tree: dict[str, Any]) -> bool:
        """Whether the destination takes the state of a VM, whose memory is zero."""
        memory = json.loads(tree["snapshots"]["memory-manager"]["snapshot_data"]["state"])
        offer = json.dumps({"vm_config": config, "memory_manager_data": memory}).encode()
        for number, body in ((self.START, b""), (self.CONFIG, offer)):
            if not self.request(number, body):
                raise Failure(f"request {number} was refused")
        return self.request(self.STATE, json.dumps(tree).encode())

    def close(self) -> None:
        self.connection.close()


def keep_inserted() -> None:
    """gdb takes its breakpoints out at every stop, so a VM that is saved there has none. Not so from here on."""
    gdb.execute("set breakpoint always-inserted on", to_string=True)


def connect_spare() -> None:
    """Leaves the first VMM without a word, and attaches gdb to the second.

    gdb keeps its list of breakpoints. It needs it: a hit of one that it does not know it takes for a late one, and goes on.
    """
    if gdb.selected_inferior().pid:
        try:
            gdb.execute("disconnect", to_string=True)
        except gdb.error as error:  # it is gone already
            print(f"disconnect: {error}")
    gdb.execute("set breakpoint always-inserted off", to_string=True)
    connect(os.environ["SPARE_GDB"])


def inserted() -> list[str]:
    """What the session has inserted, whether gdb knows of it or not."""
    lines = gdb.execute("monitor breakpoints", to_string=True).splitlines()
    print(lines)
    return [line for line in lines if "0x" in line]
