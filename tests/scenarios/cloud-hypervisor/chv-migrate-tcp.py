# scenario: guest=bare cpus=2 timeout=180
"""A VM at a breakpoint is sent to another process over four TCP connections."""

from chvmove import *

run(lambda: stop_moves(url="tcp:127.0.0.1:41001", here={"connections": 4}))
