"""The Python API for tests: guests of a topology, commands in them, cgroups, faulty and slow disks, comparisons of
kernels.

async with testbed.open_testbed() as tb, tb.vm("topology.yaml") as vm:
    print((await vm.run("uname -r")).stdout)
"""

from testbed.api.cgroup import Cgroup, CgroupMaker, Counters
from testbed.api.compare import Compare, Comparison, SideFailed
from testbed.api.devices import Disk, Loop
from testbed.api.hardware import Hardware
from testbed.api.qmp import Qmp
from testbed.api.testbed import Testbed, open_testbed
from testbed.api.vm import Vm
from testbed.guest.channels.ssh import Result

__all__ = [
    "Cgroup",
    "CgroupMaker",
    "Compare",
    "Comparison",
    "Counters",
    "Disk",
    "Hardware",
    "Loop",
    "Qmp",
    "Result",
    "SideFailed",
    "Testbed",
    "Vm",
    "open_testbed",
]
