# scenario: guest=bare cpus=2 timeout=120 tool=python
"""A VM that waits for gdb goes on without it, and is migrated while nobody debugs it."""

from chv import *

vmm().put("vm.resume")
assert vmm().state() == "Running"
migrate(local=False)
assert spare().state() == "Running"
