# scenario: guest=bare cpus=1 timeout=90 tool=python needs=hardware-breakpoint
"""A second client is turned away or has to wait; the first one notices nothing, and its place is free afterwards."""

from rsp import *


def turned_away() -> None:
    """A second client is refused, hung up on, or not answered."""
    try:
        second = Client(timeout=2.0)
    except OSError:
        return
    check(not second.answers(timeout=1.0), "two clients are served at once")
    second.reset()


def body(symbol: dict[str, int]) -> None:
    first = Client()
    first.stop_reply()
    first.run_to(symbol["main"])
    for _ in range(5):
        turned_away()
        first.run_to(symbol["finished"])

    # Also while the guest runs.
    first.send_raw(packet(b"vCont;c"))
    turned_away()
    first.send_raw(b"\x03")
    reply = first.reply()
    check(reply[:1] == b"T", f"Ctrl-C answered {reply!r}")
    first.detach()

    third = connect_again()
    third.run_to(symbol["finished"])
    third.detach()


run(body)
