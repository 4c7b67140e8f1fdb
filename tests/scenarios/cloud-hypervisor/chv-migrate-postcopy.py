# scenario: guest=bare cpus=2 timeout=180
"""A VM at a breakpoint goes on in another process before its memory is there: what is missing is fetched when it is used."""

from chvmove import *

POSTCOPY = {"memory_mode": "Postcopy"}

run(lambda: stop_moves(there=POSTCOPY, here=POSTCOPY))
