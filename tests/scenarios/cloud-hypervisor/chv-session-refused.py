# scenario: guest=bare cpus=1 timeout=180
"""A session that was damaged, or that is too much for the host, is refused, in a snapshot as in a migration.

The API's answer and the log name the field or what is missing, no VM is left behind, and the process takes the next one.
"""

from fleet import FIRST, output

from bare import *
from chv import *
from gdbcase import *

Session = dict[str, Any]
# As many as any hardware has, more than this one; nothing is mapped there.
TOO_MANY = 16
NOWHERE = 0x70_0000_0000


def newer(session: Session) -> None:
    session["version"] = 99


def misaligned(session: Session) -> None:
    session["hardware"][0] += 2


def one_vcpu_more(session: Session) -> None:
    session["vcpus"].append(session["vcpus"][0])


def endless(session: Session) -> None:
    session["watches"][0]["length"] = 1 << 63


def without_software(session: Session) -> None:
    del session["software"]


def many_watches(session: Session) -> None:
    first = session["watches"][0]
    session["watches"] = [{**first, "address": first["address"] + 0x100 * n} for n in range(TOO_MANY)]


def many_breakpoints(session: Session) -> None:
    session["hardware"] = [NOWHERE + 4 * n for n in range(TOO_MANY)]


REFUSED = (
    (newer, "version 99"), (misaligned, "hardware[0]: "), (one_vcpu_more, "vcpus: "), (endless, "watches[0]"),
    (without_software, "missing field `software`"), (many_watches, "watchpoint slots"),
)


def no_vm(what: str) -> None:
    status, text = spare().call("GET", "vm.info")
    check(status >= 400, f"{what}: there is a VM: {text}")


def logged(text: str) -> None:
    check(text in (said := output(FIRST)), f"no {text!r} in the log: {said[-2000:]}")


def send(config: dict[str, Any], tree: dict[str, Any], complete: bool = False) -> tuple[bool, str]:
    """A VM that no VMM would send: whether it was taken, and what the destination's API says."""
    with arriving("unix:" + host_path("migration.sock")) as errors:
        source = Source()
        taken = source.send(config, tree)
        if taken and complete:
            taken = source.request(Source.COMPLETE)
        source.close()
    return taken, " ".join(map(str, errors))


def body() -> None:
    select("step_svc")
    keep_inserted()
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    watch(sym("ops"), 8)
    pc, before = reg("pc"), inserted()
    url = snapshot()
    tree, config = tree_of(url), json.loads(run_on_host(f"cat {host_path('config.json')}"))
    for change, text in REFUSED:
        damaged = change_session(tree, change)
        write_tree(url, damaged)
        for resume in (False, True):
            said = spare().refuses("vm.restore", {"source_url": url, "resume": resume})
            check(text in said, f"{change.__name__}, vm.restore: no {text!r} in {said}")
            no_vm(change.__name__)
        logged(text)
        taken, said = send(config, damaged)
        check(not taken and text in said, f"{change.__name__}, vm.receive-migration: no {text!r} in {said!r}")
        check("there is no VM" in said, said)
        no_vm(change.__name__)

    # Whether software breakpoints can stand in for these is known when the guest's page tables are there.
    crowded = change_session(tree, many_breakpoints)
    write_tree(url, crowded)
    spare().put("vm.restore", {"source_url": url})
    for _ in range(2):
        said = spare().refuses("vm.resume")
        check("hardware breakpoints need a slot" in said, said)
        equal("state of a VM that can't be resumed", spare().state(), "Paused")
    logged("The VM stays paused: ")
    spare().put("vm.delete")
    said = spare().refuses("vm.restore", {"source_url": url, "resume": True})
    check("hardware breakpoints need a slot" in said, said)
    no_vm("restored with too many breakpoints")
    taken, said = send(config, crowded, complete=True)
    check(not taken and "hardware breakpoints need a slot" in said, said)
    no_vm("received with too many breakpoints")

    vmm().put("vm.resume")
    equal("state of the VM that was saved", vmm().state(), "BreakPoint")
    write_tree(url, tree)
    spare().put("vm.restore", {"source_url": url, "resume": True})
    connect_spare()
    equal("pc", reg("pc"), pc)
    equal("breakpoints", inserted(), before)
    stepi()


run(body)
