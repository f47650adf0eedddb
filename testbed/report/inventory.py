"""Guests that stay, as a dynamic inventory of Ansible. Pure.

The form is Ansible's own (developing dynamic inventory, "inventory scripts"): groups, and `_meta` with each host's variables.
"""

from __future__ import annotations

import re
from typing import Any

from testbed.host.registry import READY, VmHandle


def variables(vm: VmHandle) -> dict[str, Any]:
    """How a guest is reached, and what is known of it."""
    record = vm.record
    return {
        # A name of the guest's own configuration of ssh, which has its port and keys.
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


def listing(there: tuple[VmHandle, ...]) -> dict[str, Any]:
    """Every guest that is ready, in the group `testbed` and in its kernel's."""
    ready = [vm for vm in there if vm.record.state == READY]
    kernels: dict[str, list[str]] = {}
    for vm in ready:
        kernels.setdefault(_group(vm.record.kernel), []).append(vm.record.name)
    return {
        "_meta": {"hostvars": {vm.record.name: variables(vm) for vm in ready}},
        "testbed": {"hosts": [vm.record.name for vm in ready], "children": list(kernels)},
        **{group: {"hosts": names} for group, names in kernels.items()},
    }


def _group(kernel: str) -> str:
    """A group's name has letters, digits and underscores."""
    return "kernel_" + re.sub(r"[^a-z0-9]+", "_", kernel.rpartition("/")[2].lower()).strip("_")
