# scenario: guest=linux cpus=2 timeout=60
"""Ctrl-C stops a guest that idles and one that is busy, and it runs on afterwards."""

from gdbcase import *
from linux import *


def stop_and_go(times: int) -> None:
    for _ in range(times):
        before = jiffies()
        stop = run_for(0.5)
        equal("signal", stop.signal, "SIGINT")
        equal("threads", len(gdb.selected_inferior().threads()), cpus())
        check(jiffies() > before, "the guest did not run")


def body() -> None:
    stop_and_go(3)
    poll()
    command("hammer")
    done("hammer")
    stop_and_go(3)
    poll()
    command("calm")
    done("calm")


run(body)
