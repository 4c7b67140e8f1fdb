# scenario: guest=bare cpus=1 timeout=120 tool=python needs=hardware-breakpoint
"""Clients that vanish in mid-packet, while the guest runs, or with breakpoints armed: the next one finds all in order."""

from rsp import *


def body(symbol: dict[str, int]) -> None:
    client = Client()
    client.stop_reply()
    client.run_to(symbol["main"])
    code = client.read(symbol["hit_me"], 64)
    # From here on the guest goes round in its main loop, with a timer interrupt now and then.
    client.run_to(symbol["finished"])
    client.send_raw(b"$m%x,40#" % symbol["hit_me"])  # no checksum, and gone
    client.reset()

    client = connect_again()
    check(client.read(symbol["hit_me"], 64) == code, "code has changed after a client vanished in mid-packet")
    client.send_raw(b"$M%x,40:00" % symbol["hit_me"])  # half of a write, and gone
    client.reset()

    client = connect_again()
    check(client.read(symbol["hit_me"], 64) == code, "half of a write packet was carried out")
    client.insert(0, symbol["hit_me"])
    client.insert(0, symbol["slot_1"])
    client.insert(1, symbol["slot_0"])
    ticks = client.u64(symbol["timer_count"])
    client.send_raw(packet(b"vCont;c"))
    time.sleep(0.3)
    client.reset()  # while the guest runs, with breakpoints armed

    client = connect_again()
    check(client.read(symbol["hit_me"], 64) == code, "breakpoints were left in the guest's code")
    check(client.u64(symbol["timer_count"]) > ticks, "the guest did not run")
    # The breakpoints of the vanished client are gone: the guest runs through all of these.
    client.run_to(symbol["finished"])
    client.set_u64(symbol["selected"], COMMON_TESTS.index("slots"))
    client.run_to(symbol["finished"])
    calls = [client.u64(symbol["slot_calls"] + 8 * n) for n in range(16)]
    check(calls == [1] * 16, f"the guest counted {calls} calls")
    client.detach()

    client = connect_again()
    client.stop_reply()
    client.detach()


run(body)
