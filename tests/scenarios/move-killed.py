# scenario: guest=linux cpus=2 timeout=900 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""SIGKILL at 50 random moments of snapshots and migrations.

A snapshot is whole or not there. A destination that is killed leaves the source whole, unless it had the VM already. A
source that is killed leaves a destination that is whole, or one that says that it has nothing.
"""

import random
import time

from fleet import *
from moving import *

# Nine on a host where each takes half a minute.
SNAPSHOTS, DESTINATIONS, SOURCES = (20, 15, 15) if PATIENCE == 1 else (3, 3, 3)


def fitting(vm: Vm) -> None:
    """A VMM that does not write a snapshot beside its name, or does not say what is in a session, is another matter."""
    if "4 breakpoints and watchpoints" not in status(vm):
        raise Unsupported("unsupported: the VMM does not say how many breakpoints it has")


def whole(vm: Vm) -> None:
    # Its threads may just be starting.
    for _ in range(50 * PATIENCE):
        if "(stopped, stopped)" in (text := status(vm)):
            break
        time.sleep(0.2)
    check("4 breakpoints and watchpoints" in text and "(stopped, stopped)" in text, text)


def timed(what: Callable[[], object]) -> float:
    started = time.monotonic()
    what()
    return time.monotonic() - started


def in_the_middle(longest: float) -> None:
    time.sleep(random.uniform(0.0, longest))


def kill_snapshots(vm: Vm, longest: float) -> Vm:
    complete = 0
    for n in range(SNAPSHOTS):
        name = f"killed-{n}"
        saving = Meanwhile(snapshot, vm, name)
        in_the_middle(longest)
        kill(vm)
        saving.join()
        if shell(f"test -e {name}")[0] == 0:
            # Nothing has run since, so memory is what it was.
            equal("comparison of memory", shell(f"cmp base/memory {name}/memory")[0], 0)
            vm = restore(name)
            complete += 1
        else:
            vm = restore("base")
        whole(vm)
        shell(f"rm -rf {name} {name}.partial")
    print(f"{complete} of {SNAPSHOTS} snapshots were complete")
    return vm


def kill_destinations(vm: Vm, longest: float) -> Vm:
    moved = 0
    for _ in range(DESTINATIONS):
        to = receive()
        sending = Meanwhile(send, vm, to)
        in_the_middle(longest)
        kill(to)
        try:
            sending.result()
        except Refused:
            whole(vm)
        else:
            # It was the destination's by then.
            check((ended(vm, 10.0 * PATIENCE) or "").startswith("exit code 0"), "the source goes on with a VM that has moved")
            moved, vm = moved + 1, restore("base")
    print(f"{moved} of {DESTINATIONS} destinations had the VM already")
    return vm


def alone(to: Vm) -> str:
    """What becomes of a destination whose source is gone."""
    deadline = time.monotonic() + 30.0 * PATIENCE
    text = ""
    while time.monotonic() < deadline:
        if end := ended(to, 0.2):
            return end
        try:
            text = status(to)
        except Refused:
            continue  # it is ending
        if "(stopped, stopped)" in text or text.startswith("waiting for a VM"):
            return text
    raise Failure(f"long after the source is gone the destination says {text!r}: {output(to)}")


def kill_sources(vm: Vm, longest: float) -> Vm:
    moved = unmet = 0
    for _ in range(SOURCES):
        to = receive()
        sending = Meanwhile(send, vm, to)
        in_the_middle(longest)
        kill(vm)
        sending.join()
        if "(stopped, stopped)" in (what := alone(to)):
            whole(to)
            moved, vm = moved + 1, to
            continue
        if what.startswith("waiting"):
            # The source had not even connected.
            end_waiting(to)
            unmet += 1
        else:
            check(what.startswith("exit code 1"), f"the destination ended with {what}: {output(to)}")
        vm = restore("base")
    print(f"{moved} of {SOURCES} destinations went on, {unmet} had not met their source")
    return vm


def end_waiting(to: Vm) -> None:
    """A VMM that waits for a VM can be told to end."""
    quit_vm(to)
    equal("end of a destination that was told to end", ended(to, 10.0 * PATIENCE), "exit code 0")


def body() -> None:
    poll()
    arm()
    fitting(FIRST)
    snapshot(FIRST, "base")
    forget()
    kill(FIRST)
    seed = int(time.time())
    print(f"seed {seed}")
    random.seed(seed)
    vm = restore("base")
    whole(vm)
    vm = kill_snapshots(vm, 1.3 * timed(lambda: snapshot(vm, "timed")))
    shell("rm -rf timed")
    started = time.monotonic()
    vm = migrate(vm)
    longest = 1.3 * (time.monotonic() - started)
    vm = kill_sources(kill_destinations(vm, longest), longest)
    meet(vm)
    everything_listed()
    a_whole_round(hits_of_a_round())


run(body)
