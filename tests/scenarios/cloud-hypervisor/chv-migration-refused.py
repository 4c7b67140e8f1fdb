# scenario: guest=bare cpus=1 timeout=180
"""A session that sleeps is too much for the process that it is sent to, which would wake it: the VM goes on where it is."""

import fleet

from bare import *
from chv import *
from gdbcase import *

# As many as any hardware has, more than this one.
TOO_MANY = 16


def crowd(session: dict[str, Any]) -> None:
    first = session["watches"][0]
    session["watches"] = [{**first, "address": first["address"] + 0x100 * n} for n in range(TOO_MANY)]


def body() -> None:
    select("step_svc")
    keep_inserted()
    here = hbreak("step_svc")
    equal("stop", cont().at(here), True)
    watch(sym("ops"), 8)
    url = snapshot()
    write_tree(url, change_session(tree_of(url), crowd))
    vmm().put("vm.resume")

    run_on_host(f"ln -s {host_path('.')} asleep")
    source, to = fleet.restore("asleep", gdb=False), fleet.receive(gdb=True)
    equal("state", fleet.status(source), "Running")
    try:
        fleet.send(source, to)
    except fleet.Refused as refused:
        print(refused)
    else:
        raise Failure("it was taken")
    equal("state of the source", fleet.status(source), "Running")
    said = fleet.output(to)
    check(f"need {TOO_MANY} watchpoint slots" in said, said)
    check("Migration failed" in (said := fleet.output(source)), said)


run(body)
