# scenario: guest=bare cpus=2 timeout=180
"""A VM at a breakpoint is handed to another process on this host, which shares its memory."""

from chvmove import *

run(lambda: stop_moves(local=True))
