"""The Ansible inventory of running VMs."""

from dataclasses import replace
from pathlib import Path

from testbed.host import registry
from testbed.host.registry import VmHandle
from testbed.report import inventory
from tests.support.vm_records import RECORD


def test_the_inventory_has_ready_guests_alone() -> None:
    there = (
        VmHandle(folder=Path("/run/g0"), record=RECORD),
        VmHandle(
            folder=Path("/run/g1"), record=replace(RECORD, name="g1", kernel="/tmp/My Kernel.deb", state=registry.READY)
        ),
        VmHandle(folder=Path("/run/g2"), record=replace(RECORD, name="g2", state=registry.LOST)),
    )
    listed = inventory.make_inventory(there)
    assert listed["testbed"] == {"hosts": ["g0", "g1"], "children": ["kernel_debian_6_1", "kernel_my_kernel_deb"]}
    assert listed["kernel_debian_6_1"] == {"hosts": ["g0"]}
    own = listed["_meta"]["hostvars"]["g0"]
    assert own["ansible_ssh_common_args"] == "-F '/run/g0/ssh_config'"
    assert own["testbed_disks"] == {"data": "/dev/vdc"} and own["testbed_loops"] == {"l0": "/dev/loop0"}
