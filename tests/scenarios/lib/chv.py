"""Driving cloud-hypervisor by its REST API, beside the gdb session.

The runner passes, beside what gdbcase.py knows:

VMM_API         port of the API of the VMM with the guest
SPARE_API       port of the API of a second VMM, which has no guest
SPARE_GDB       what `target remote` connects to there
HOST_DIRECTORY  an empty directory where the VMMs run
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time

try:
    import gdb
    from gdbcase import Failure
except ImportError:  # a script without gdb
    class Failure(Exception):
        pass


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


def migrate(local: bool) -> None:
    """Moves the guest to the spare VMM."""
    url = "unix:" + host_path("migration.sock")
    results: list[BaseException] = []

    def receive() -> None:
        try:
            spare().put("vm.receive-migration", {"receiver_url": url})
        except BaseException as error:  # told by the thread that waits
            results.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    # It listens soon, and says so nowhere.
    time.sleep(1.0)
    vmm().put("vm.send-migration", {"destination_url": url, "local": local})
    thread.join(60)
    if results:
        raise results[0]


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
    gdb.execute(f"target remote {os.environ['SPARE_GDB']}", to_string=True)


def inserted() -> list[str]:
    """What the session has inserted, whether gdb knows of it or not."""
    lines = gdb.execute("monitor breakpoints", to_string=True).splitlines()
    print(lines)
    return [line for line in lines if "0x" in line]
