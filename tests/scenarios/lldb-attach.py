# scenario: guest=linux cpus=2 timeout=120 tool=python needs=hardware-breakpoint,single-step
"""lldb attaches, reads registers and code, stops at a breakpoint, steps, and leaves the guest running."""

import os
import re
import shutil
import subprocess

from arch import ARCH
from rsp import Failure, Skip, check, connect_again, run, symbols


def lldb(commands: list[str]) -> str:
    program = shutil.which("lldb") or shutil.which("lldb-14")
    if not program:
        raise Skip("lldb is not installed")
    arguments = [program, "--no-lldbinit", "--batch"]
    for command in commands:
        arguments += ["-o", command]
    # Debian's lldb brings Python modules of its own, which a PYTHONPATH of ours must not hide.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout + done.stderr


def body(symbol: dict[str, int]) -> None:
    host, port = os.environ["GDB_TARGET"].rsplit(":", 1)
    address, pc = symbol["agent_poll"], ARCH.general[-2]
    text = lldb([
        "settings set target.require-hardware-breakpoint true",
        "settings set plugin.process.gdb-remote.packet-timeout 60",
        f"target create --arch {ARCH.lldb} {os.environ['GUEST_ELF']}",
        f"gdb-remote {host}:{port}",
        "thread list",
        f"breakpoint set --address {address:#x}",
        "process continue",
        f"register read {pc} {ARCH.arguments[0]} sp {ARCH.flags}",
        f"memory read --size 4 --format x --count 4 {address:#x}",
        "thread step-inst",
        f"register read {pc}",
        "breakpoint delete --force",
        "process detach",
    ])
    print(text)
    check(len(re.findall(r"thread #\d+: tid", text)) >= 2, "lldb does not show a thread for each vCPU")
    pcs = [int(value, 16) for value in re.findall(rf"{pc} = (0x[0-9a-f]+)", text)]
    check(len(pcs) >= 2, f"lldb showed pc {len(pcs)} times")
    check(pcs[0] == address, f"stopped at {pcs[0]:#x}, the breakpoint is at {address:#x}")
    check(pcs[1] - address in ARCH.lengths, f"after a step from {address:#x} pc is {pcs[1]:#x}")
    check("stop reason = " in text, "no stop reason")

    # The guest runs, and the next client is served.
    client = connect_again()
    client.run_to(address)
    client.detach()


run(body)
