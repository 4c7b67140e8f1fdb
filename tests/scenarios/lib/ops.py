"""Accesses that a guest makes for the debugger: tests/guest/ops.h, which both guests have."""

from __future__ import annotations

import struct

from gdbcase import Failure, check, cont, equal, gdb, hbreak, mem, set_mem, set_u64, sym, u64, where

KINDS = "none store8 store16 store32 store64 store_pair dc_zva load8 load16 load32 load64 load_pair".split()


class Op:
    """One access: `hits` says whether the watch has to stop it."""

    def __init__(self, kind: str, address: int, value: int = 0, hits: bool = False) -> None:
        self.kind, self.address, self.value, self.hits = kind, address, value, hits

    def __str__(self) -> str:
        return f"{self.kind} at {self.address:#x}"


def load_ops(ops: list[Op]) -> None:
    set_mem(sym("ops"), b"".join(struct.pack("<QQQ", KINDS.index(op.kind), op.address, op.value) for op in ops))
    set_u64("ops_count", len(ops))
    set_u64("ops_done", 0)


def op_value(index: int) -> int:
    """What op `index` read."""
    return u64(sym("ops") + 24 * index + 16)


def expect_stops(watches: list[gdb.Breakpoint], ops: list[Op], end: str) -> None:
    """Runs the ops that were loaded: those that hit stop at one of the watches, in order, and no other does."""
    finished = hbreak(end)
    for index, op in enumerate(ops):
        if not op.hits:
            continue
        stop = cont()
        check(any(stop.at(w) for w in watches), f"{op} ({index}) did not stop at the watch: {stop}")
        # gdb lets the access happen before it shows the stop, the next op has not begun.
        check(where(stop.pc).startswith("run_op"), f"{op}: stopped at {where(stop.pc)}")
        equal(f"ops done at the stop of {op}", u64("ops_done"), index)
    stop = cont()
    check(stop.at(finished), f"a stop that was not asked for: {stop}, ops done {u64('ops_done')}")
    finished.delete()
    equal("ops done", u64("ops_done"), len(ops))


def stored(what: str, address: int, data: bytes) -> None:
    got = mem(address, len(data))
    if got != data:
        raise Failure(f"{what}: memory at {address:#x} is {got.hex()}, expected {data.hex()}")
