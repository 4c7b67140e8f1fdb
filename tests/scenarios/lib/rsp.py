"""A bare client of the GDB remote serial protocol, for what no well-behaved debugger would send.

Used by scenarios that run in plain Python. Environment and exit codes are those of gdbcase.py.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import traceback
from typing import Callable, NoReturn

from arch import *

EXIT_FAILED = 1
EXIT_SKIPPED = 77
REPLY_TIMEOUT = 30.0


class Failure(Exception):
    """The server or the guest did something else than the scenario says."""


class Skip(Exception):
    """The scenario cannot be tried here; the text says why."""


class Closed(Exception):
    """The server closed the connection."""


def checksum(body: bytes) -> bytes:
    return b"%02x" % (sum(body) & 0xFF)


def packet(body: bytes) -> bytes:
    return b"$" + body + b"#" + checksum(body)


def expand(body: bytes) -> bytes:
    """Undoes run-length encoding: a star and a count, less 29, of further copies of the byte in front of it."""
    out = bytearray()
    at = 0
    while at < len(body):
        if body[at : at + 1] == b"*" and out and at + 1 < len(body):
            out += out[-1:] * (body[at + 1] - 29)
            at += 2
        else:
            out.append(body[at])
            at += 1
    return bytes(out)


class Client:
    """One connection. Acknowledgements are on, as the protocol starts."""

    def __init__(self, timeout: float = REPLY_TIMEOUT, address: str | None = None) -> None:
        host, port = (address or os.environ["GDB_TARGET"]).rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send_raw(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def _byte(self, timeout: float) -> bytes:
        if not self.buffer:
            self.socket.settimeout(timeout)
            try:
                self.buffer = self.socket.recv(65536)
            except ConnectionResetError as error:
                raise Closed from error
            if not self.buffer:
                raise Closed
        byte, self.buffer = self.buffer[:1], self.buffer[1:]
        return byte

    def reply(self, timeout: float = REPLY_TIMEOUT) -> bytes:
        """The next packet's body, acknowledged. TimeoutError if none comes."""
        while self._byte(timeout) != b"$":
            pass
        body = b""
        while (byte := self._byte(timeout)) != b"#":
            body += byte
        self._byte(timeout)
        self._byte(timeout)
        self.send_raw(b"+")
        return expand(body)

    def ask(self, body: bytes, timeout: float = REPLY_TIMEOUT) -> bytes:
        self.send_raw(packet(body))
        return self.reply(timeout)

    def answers(self, timeout: float = 5.0) -> bool:
        """Whether the server serves this connection."""
        try:
            return bool(self.ask(b"?", timeout))
        except (Closed, TimeoutError):
            return False

    def drain(self) -> None:
        """Drops what comes unasked: QEMU tells a client that the guest has stopped for it."""
        try:
            while True:
                self.reply(0.2)
        except TimeoutError:
            pass

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Closes without a goodbye: the peer gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # What the scenarios ask a sane server.

    def stop_reply(self) -> bytes:
        reply = self.ask(b"?")
        if reply[:1] not in (b"T", b"S"):
            raise Failure(f"the answer to ? is {reply!r}, no stop reply")
        return reply

    def read(self, address: int, length: int) -> bytes:
        reply = self.ask(b"m%x,%x" % (address, length))
        if len(reply) == 3 and reply[:1] == b"E":
            raise Failure(f"reading {address:#x} answered {reply!r}")
        return bytes.fromhex(reply.decode())

    def write(self, address: int, data: bytes) -> None:
        reply = self.ask(b"M%x,%x:%s" % (address, len(data), data.hex().encode()))
        if reply != b"OK":
            raise Failure(f"writing {address:#x} answered {reply!r}")

    def u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def set_u64(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(8, "little"))

    def insert(self, kind: int, address: int) -> None:
        reply = self.ask(b"Z%d,%x,%d" % (kind, address, ARCH.breakpoint_kind))
        if reply != b"OK":
            raise Failure(f"Z{kind} at {address:#x} answered {reply!r}")

    def remove(self, kind: int, address: int) -> None:
        reply = self.ask(b"z%d,%x,%d" % (kind, address, ARCH.breakpoint_kind))
        if reply != b"OK":
            raise Failure(f"z{kind} at {address:#x} answered {reply!r}")

    def run_to(self, address: int) -> bytes:
        """Continues to a hardware breakpoint and takes it out again; the stop reply."""
        self.insert(1, address)
        reply = self.ask(b"vCont;c")
        self.remove(1, address)
        if reply[:1] != b"T":
            raise Failure(f"continuing answered {reply!r}")
        return reply

    def detach(self) -> None:
        reply = self.ask(b"D")
        if reply != b"OK":
            raise Failure(f"D answered {reply!r}")
        self.close()


def symbols(path: str) -> dict[str, int]:
    """Symbols of an ELF64 file by name."""
    with open(path, "rb") as file:
        data = file.read()
    sections_at, = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + n * size) for n in range(count)]
    found: dict[str, int] = {}
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, entry):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            end = data.index(b"\0", names + name)
            found[data[names + name : end].decode()] = value
    return found


def check(condition: bool, text: str) -> None:
    if not condition:
        raise Failure(text)


def connect_again(patience: float = 20.0, address: str | None = None) -> Client:
    """A new client, once the server has noticed that the last one is gone."""
    end = time.monotonic() + patience
    while True:
        client = None
        try:
            client = Client(address=address)
            if client.answers():
                client.drain()
                return client
        except OSError:
            pass
        if client:
            client.close()
        if time.monotonic() > end:
            raise Failure(f"no client is served any more, {patience} s after the last one went away")
        time.sleep(0.2)


def run(body: Callable[[dict[str, int]], None]) -> NoReturn:
    """Runs a scenario with the guest's symbols."""
    try:
        body(symbols(os.environ["GUEST_ELF"]))
    except Skip as skip:
        print(f"SKIPPED: {skip}")
        raise SystemExit(EXIT_SKIPPED) from None
    except Failure as failure:
        print(f"FAILED: {failure}")
        raise SystemExit(EXIT_FAILED) from None
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED: {type(error).__name__}: {error}")
        raise SystemExit(EXIT_FAILED) from None
    raise SystemExit(0)


__all__ = [name for name in dir() if not name.startswith("_")]
