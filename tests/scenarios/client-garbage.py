# scenario: guest=bare cpus=1 timeout=180 tool=python needs=hardware-breakpoint
"""Garbage, oversized and malformed packets get an error, an empty answer or a hang-up, and harm neither guest nor VMM."""

import random

from rsp import *

HUGE = b"f" * 16
# Each of these is well framed and wrong inside.
MALFORMED = [
    b"",
    b"m",
    b"m,",
    b"m0",
    b"m0,",
    b"m,10",
    b"mzzzz,4",
    b"m-1,4",
    b"m" + HUGE + b"," + HUGE,
    b"m" + HUGE + HUGE + b",1",
    b"m0," + HUGE,
    b"M0,ffffffff:00",
    b"M0,4:zz",
    b"M" + HUGE + b",8:0000000000000000",
    b"X0,ffffffffffffffff:",
    b"p",
    b"pffffffff",
    b"p" + HUGE,
    b"P",
    b"P0=",
    b"P0=zz",
    b"P0=" + b"00" * 300,
    b"Pffffffff=0000000000000000",
    b"g00",
    b"G",
    b"G00",
    b"G" + b"zz" * 100,
    b"H",
    b"Hg",
    b"Hgp1.ffffffff",
    b"Hg" + HUGE + HUGE,
    b"T",
    b"Tp1.77777777",
    b"Z",
    b"Z0",
    b"Z0,,",
    b"Z9,1000,4",
    b"Z1," + HUGE + b",4",
    b"Z1,1001,4",
    b"Z2,0,0",
    b"Z2,0," + HUGE,
    b"Z2," + HUGE + b"," + HUGE,
    b"z0,12345678,4",
    b"vCont",
    b"vCont;",
    b"vCont;q",
    b"vCont;r",
    b"vCont;r10,20:p1.99",
    b"vCont;s:p1.ffffffff",
    b"vCont;c:p1.7fffffffffffffff",
    b"qXfer:features:read:target.xml:",
    b"qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff",
    b"qXfer:features:read:../../etc/passwd:0,1000",
    b"qXfer:memory-map:write::0:",
    b"qRcmd,",
    b"qRcmd,zz",
    b"qRcmd," + b"41" * 900,
    b"qRcmd,7472616e736c61746520" + b"66" * 400,
    b"qSupported" + b";x+" * 300,
    b"qThreadExtraInfo,p1.ffff",
    b"vFile:open:2f6574632f706173737764,0,0",
    b"vAttach;ffffffff",
    b"vRun;",
    b"\xff\xfe\x80}\x00}",
    b"}",
    b"*" * 50,
]


class Server:
    """Asks, and connects again where the server hung up on what it was asked."""

    def __init__(self, code: int) -> None:
        self.client = Client()
        self.code = code
        self.hang_ups = 0

    def survive(self, what: str, data: bytes) -> None:
        try:
            self.client.send_raw(data)
            self.client.send_raw(packet(b"?"))
            # Whatever came back for the garbage, some packet does, and the connection is in step again after it.
            self.client.reply(10.0)
            while True:
                self.client.reply(0.1)
        except TimeoutError:
            pass
        except Closed:
            self.hang_ups += 1
            self.client.close()
            self.client = connect_again()
        try:
            if self.client.stop_reply():
                # A thread that does not exist may have been selected; it has no memory.
                self.client.ask(b"Hgp1.1")
                check(self.client.ask(b"m%x,4" % self.code)[:1] != b"E", f"no memory is readable after {what}")
                return
        except (Closed, TimeoutError):
            pass
        # Asked once more on a fresh connection: a server may give up on a client, not on all of them.
        self.hang_ups += 1
        self.client.close()
        self.client = connect_again()
        check(bool(self.client.stop_reply()), f"no answer any more after {what}")


def body(symbol: dict[str, int]) -> None:
    server = Server(symbol["main"])
    server.client.stop_reply()
    server.client.run_to(symbol["main"])
    server.client.run_to(symbol["finished"])
    code = server.client.read(symbol["main"] & ~0xFFF, 1024)

    for bad in MALFORMED:
        server.survive(repr(bad[:40]), packet(bad))
    server.survive("a wrong checksum", b"$g#00")
    server.survive("no checksum digits", b"$g#zz")
    server.survive("noise between packets", b"+++---\x00\x01\x02#$#\x7f" * 20)
    server.survive("a packet inside a packet", b"$m0,$g#67")
    server.survive("a packet of 1 MiB", b"$" + b"m" * (1 << 20) + b"#00")
    server.survive("1 MiB without an end, then an end", b"$" + b"0" * (1 << 20) + packet(b"?"))
    server.survive("1 MiB of closing marks", b"#" * (1 << 20))
    noise = random.Random(2)
    for size in (1, 7, 100, 5000, 70000):
        # Bytes that would resume the guest are left out: it shall be stopped at the end.
        junk = bytes(b for b in noise.randbytes(size) if b not in b"$\x03")
        server.survive(f"{size} random bytes", junk)
        server.survive(f"{size} random bytes in a packet", packet(bytes(b for b in junk if b not in b"#}*sScCvDkRrK")))

    client = server.client
    check(client.read(symbol["main"] & ~0xFFF, 1024) == code, "the guest's code has changed")
    client.run_to(symbol["finished"])
    client.set_u64(symbol["selected"], COMMON_TESTS.index("slots"))
    client.run_to(symbol["finished"])
    check(client.u64(symbol["slot_calls"]) > 0, "the guest does not run its tests any more")
    print(f"the server hung up {server.hang_ups} times")
    client.detach()


run(body)
