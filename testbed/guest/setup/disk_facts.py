"""Lists what sysfs of a guest must show of its disks, as the topology describes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.guest.devices import Device
from testbed.guest.setup.readback import Expected
from testbed.qemu import blockdev
from testbed.topology.disks import Disk, Nvme


def expected_facts(disks: Mapping[str, Disk], there: Mapping[str, Device], cpus: int) -> tuple[Expected, ...]:
    """Return what to read back of the disks beyond the agent's listing: the properties that the topology sets, no
    defaults.
    """
    found: list[Expected] = []
    for name, disk in disks.items():
        block = f"/sys/block/{there[name].path.removeprefix('/dev/')}"
        properties: dict[str, tuple[str, str]] = {
            "logical_block_size": ("queue/logical_block_size", str(disk.logical_block_size)),
            "physical_block_size": ("queue/physical_block_size", str(disk.physical_block_size)),
            "write_cache": ("queue/write_cache", "back" if disk.write_cache else "through"),
        }
        if disk.queues is not None:
            properties["queues"] = ("mq", str(min(disk.queues, cpus)))
        if isinstance(disk, Nvme) and disk.zoned is not None:
            properties["zoned"] = ("queue/zoned", "host-managed")
        if not disk.discard:
            properties["discard"] = ("queue/discard_max_bytes", "0")
        found += [
            Expected(where=f"disks.{name}.{key.replace('_', '-')}", file=f"{block}/{file}", expected=expected)
            for key, (file, expected) in properties.items()
            if key in disk.model_fields_set
        ]
        for namespace, settings in blockdev.namespaces(disk).items():
            block = f"/sys/block/{there[namespace].path.removeprefix('/dev/')}"
            where = f"disks.{name}.namespaces.{namespace}"
            found.append(
                Expected(
                    where=f"{where}.logical-block-size",
                    file=f"{block}/queue/logical_block_size",
                    expected=str(settings.logical_block_size),
                )
            )
            if settings.zoned is not None:
                found.append(Expected(where=f"{where}.zoned", file=f"{block}/queue/zoned", expected="host-managed"))
    return tuple(found)
