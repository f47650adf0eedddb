"""Lists running VMs as a dynamic inventory for Ansible. Pure.

The form is that of Ansible's "inventory scripts" (developing dynamic inventory): groups, and `_meta` with each host's
variables.
"""

from __future__ import annotations

import re
from typing import Any

from testbed.host.registry import READY, VmHandle


def host_variables(vm: VmHandle) -> dict[str, Any]:
    """Return how Ansible reaches a VM, and facts about it."""
    record = vm.record
    return {
        # A name in the guest's own ssh configuration file, which has its port and keys.
        "ansible_host": record.name,
        "ansible_user": "root",
        "ansible_ssh_common_args": f"-F '{vm.ssh_config}'",
        "ansible_python_interpreter": "/usr/bin/python3",
        "testbed_guest": record.guest,
        "testbed_topology": record.topology,
        "testbed_point": record.point,
        "testbed_kernel": record.kernel,
        "testbed_release": record.release,
        "testbed_cpus": record.cpus,
        "testbed_memory_bytes": record.memory_bytes,
        "testbed_disks": {name: record.devices[name] for name in record.disks if name in record.devices},
        "testbed_loops": {name: record.devices[name] for name in record.loops if name in record.devices},
        "testbed_devices": record.devices,
        "testbed_evidence": record.evidence,
    }


def make_inventory(vms: tuple[VmHandle, ...]) -> dict[str, Any]:
    """List every VM that is ready, in the group `testbed` and in the group of its kernel."""
    ready = [vm for vm in vms if vm.record.state == READY]
    kernels: dict[str, list[str]] = {}
    for vm in ready:
        kernels.setdefault(_group(vm.record.kernel), []).append(vm.record.name)
    return {
        "_meta": {"hostvars": {vm.record.name: host_variables(vm) for vm in ready}},
        "testbed": {"hosts": [vm.record.name for vm in ready], "children": list(kernels)},
        **{group: {"hosts": names} for group, names in kernels.items()},
    }


def _group(kernel: str) -> str:
    """Return the name of a kernel's group, of letters, digits and underscores."""
    return "kernel_" + re.sub(r"[^a-z0-9]+", "_", kernel.rpartition("/")[2].lower()).strip("_")
