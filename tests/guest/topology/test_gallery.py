"""Every shipped topology is built in a real guest, read back, and removed again."""

from pathlib import Path

import pytest

from testbed.guest.factory import GuestFactory
from testbed.guest.setup import apply
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import Topology, load_points

GALLERY = Path(__file__).parents[3] / "topologies"
EVERY = [
    pytest.param(topology, id=f"{path.stem}{':' if point else ''}{point}")
    for path in sorted(GALLERY.glob("*.yaml"))
    for point, topology in load_points(path).items()
]
# Prints mounts, loops, mapped devices, swaps, networks and limits that a plain guest does not have.
LEFT = """\
grep -o " /mnt/[^ ]*" /proc/mounts
cat /sys/block/loop*/loop/backing_file /sys/block/md*/md/level 2>/dev/null
ls /dev/mapper | grep -v control
tail -n +2 /proc/swaps
ls /sys/class/net | grep -v -e ^lo$ -e '^e[tn]' | while read -r nic; do ip -4 address show dev "$nic" up; done
grep -v -e localhost -e ^# -e '^$' /etc/hosts
find /sys/fs/cgroup -mindepth 1 -type d
grep -h enable=1 /sys/fs/cgroup/io.cost.qos
exit 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("topology", EVERY)
async def test_a_topology_is_built_verified_and_undone(
    topology: Topology, factory: GuestFactory, kernel: KernelFiles, tmp_path: Path
) -> None:
    async with factory.guests(topology, kernel, tmp_path) as guests:
        for name, guest in guests.items():
            async with apply.stack_applied(guest) as made:
                assert set(made.loops) == set(topology.guests[name].loops)
                there = (await guest.script(LEFT)).stdout
                for loop in made.loops.values():
                    assert loop.backing_file in there
            assert (await guest.script(LEFT)).stdout == ""
            assert [finding.text for finding in guest.console.findings] == []
