# scenario: guest=bare cpus=2 timeout=180
"""A VM at a breakpoint is sent to another process over a unix socket."""

from chvmove import *

run(lambda: stop_moves())
