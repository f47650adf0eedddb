"""Checks that the parts of a topology fit together. Pure: takes valid models, returns (path, message) per mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from testbed.hardware.commands import MACHINE
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.hardware.profiles import PROFILES
from testbed.topology import networks, schedule
from testbed.topology.base import KeyPath
from testbed.topology.disks import Disk, Nvme
from testbed.topology.filesystems import FILESYSTEMS
from testbed.topology.graph import LABEL_BYTES, Graph, Key, Node, block_sizes, build_graph, device_key, sizes
from testbed.topology.model import GuestModel, Topology
from testbed.topology.storage import File, Filesystem, Loop, Swap
from testbed.units import MIB, format_size

# One PCIe root port per disk and network, each a function of a device on the root bus. q35 could have more.
MAX_PORTS = 16
_RESERVED = ("root", "modules", MACHINE)
# QEMU's QCOW_MAX_L1_SIZE, 32 MiB of entries of 8 bytes, each for 8192 clusters of 64 KiB.
_MOST_QCOW2_BYTES = 2 << 50
Mistake = tuple[KeyPath, str]


def topology_mistakes(topology: Topology) -> tuple[Mistake, ...]:
    """List the mistakes that validating the models does not find."""
    found: list[Mistake] = []
    for name, guest in topology.guests.items():
        found += ((("guests", name, *path), message) for path, message in _guest(guest))
    nics = {name: guest.networks for name, guest in topology.guests.items()}
    found += ((("guests", *path), message) for path, message in networks.network_mistakes(nics))
    return tuple(found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'this'?` if a known word is similar, otherwise the known words, or nothing."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (there are {', '.join(words)})" if words else ""


def _guest(guest: GuestModel) -> Iterator[Mistake]:
    if guest.memory % MIB or guest.memory < 256 * MIB:
        yield ("memory",), f"expected a whole number of MiB, at least 256M, got {format_size(guest.memory)}"
    if len(guest.disks) + len(guest.networks) > MAX_PORTS:
        more = f" and {len(guest.networks)} networks" if guest.networks else ""
        yield (
            ("disks",),
            f"expected at most {MAX_PORTS} disks and networks, one for each hot-plug port, "
            f"got {len(guest.disks)}{more}",
        )
    for name, disk in guest.disks.items():
        for path, message in _disk(name, disk, guest):
            yield ("disks", name, *path), message
    for name, limits in guest.throttle_groups.items():
        yield from ((("throttle-groups", name), message) for message in limits.throttle().mistakes())
    graph = build_graph(guest)
    for where, other in graph.clashes:
        yield (
            where,
            f"{where[-1]!r} is the name of something else already ({'.'.join(str(part) for part in other.where)})",
        )
    yield from _stack(graph)
    yield from _cgroups(guest, graph)
    parts = {
        part: DISK_KINDS[disk.type]
        for name, disk in guest.disks.items()
        for part in (name, *(disk.namespaces if isinstance(disk, Nvme) else ()))
    }
    for number, entry in enumerate(guest.timeline):
        yield from (
            (("timeline", number), message)
            for message in schedule.timeline_mistakes(entry, parts, memory_bytes=guest.memory, cpus=guest.cpus)
        )
    hot = {part: part in guest.disks and not guest.disks[part].cold for part in parts}
    yield from ((("timeline", number), message) for number, message in schedule.hotplug_mistakes(guest.timeline, hot))


def _disk(name: str, disk: Disk, guest: GuestModel) -> Iterator[Mistake]:
    if name in _RESERVED:
        yield (), f"{name!r} is the name of a disk that every guest has; choose another"
    yield from _disk_sizes(disk)
    yield from _disk_content(disk)
    yield from _disk_speed(disk, guest)
    serials = [other.serial or f"tb-{key}" for key, other in guest.disks.items()]
    if disk.serial is not None and serials.count(disk.serial) > 1:
        yield ("serial",), f"expected a serial that no other disk has, got {disk.serial!r}"


def _disk_sizes(disk: Disk) -> Iterator[Mistake]:
    step = max(4096, disk.logical_block_size)
    if disk.size % step:
        yield ("size",), f"expected a multiple of {step} bytes, got {disk.size}"
    if disk.size > _MOST_QCOW2_BYTES and (disk.format == "qcow2" or disk.image is not None):
        yield (
            ("size",),
            f"expected at most {format_size(_MOST_QCOW2_BYTES)}, which is as much as a qcow2 file holds, "
            f"got {format_size(disk.size)}",
        )
    if disk.physical_block_size is not None and disk.physical_block_size < disk.logical_block_size:
        yield (
            ("physical-block-size",),
            f"expected at least the logical block size of {disk.logical_block_size}, got {disk.physical_block_size}",
        )
    for key, size_bytes in (("read-ahead", disk.read_ahead), ("cache-size", disk.cache_size)):
        if size_bytes is not None and size_bytes % 4096:
            yield (key,), f"expected a multiple of 4096 bytes, got {size_bytes}"
    if isinstance(disk, Nvme) and disk.zoned is not None and disk.size % disk.zoned.zone_size:
        yield (
            ("zoned", "zone-size"),
            f"expected a part of the size of {format_size(disk.size)}, got {format_size(disk.zoned.zone_size)}",
        )


def _disk_content(disk: Disk) -> Iterator[Mistake]:
    """Check the combination of image, format, partitions and cache."""
    if disk.image is not None and disk.format != "raw":
        yield ("image",), f"expected no format beside an image, of which an overlay is made, got {disk.format}"
    if disk.image is None and disk.image_format is not None:
        yield ("image-format",), "expected an image beside it, got none"
    if disk.image is not None and disk.partitions:
        yield ("partitions",), "expected no partitions on an image, which has its own"
    if disk.cache is not None and (disk.format == "qcow2" or disk.image is not None):
        yield (
            ("cache",),
            "expected a disk that is kept in a raw file: what a lost write does to a qcow2 file is no disk's doing",
        )


def _disk_speed(disk: Disk, guest: GuestModel) -> Iterator[Mistake]:
    """Check the profile, latency and throttle of a disk."""
    if disk.profile is not None and disk.profile not in PROFILES:
        hint = did_you_mean(disk.profile, PROFILES)
        yield ("profile",), f"expected the name of a profile, got {disk.profile!r}{hint}"
    if disk.scale is not None and disk.profile is None:
        yield ("scale",), "expected a profile beside it, which it makes faster or slower, got none"
    if disk.latency is not None and disk.latency.latency().none:
        yield ("latency",), "expected a delay of both, read, write or flush, got none"
    limits = {"profile": disk.profile, "throttle": disk.throttle, "throttle-group": disk.throttle_group}
    given = [key for key, value in limits.items() if value]
    if len(given) > 1:
        yield (given[-1],), f"expected one of profile, throttle and throttle-group, got {' and '.join(given)}"
    if disk.throttle is not None:
        yield from ((("throttle",), message) for message in disk.throttle.throttle().mistakes())
    if disk.throttle_group is not None and disk.throttle_group not in guest.throttle_groups:
        hint = did_you_mean(disk.throttle_group, guest.throttle_groups)
        yield ("throttle-group",), f"expected one of the guest's throttle-groups, got {disk.throttle_group!r}{hint}"


def _stack(graph: Graph) -> Iterator[Mistake]:
    order = graph.ordered()
    known, standing, users, blocks = sizes(graph, order), set(order), graph.users(), block_sizes(graph, order)
    for key, node in graph.nodes.items():
        dangling = [(needed, where) for needed, where in node.needs if needed not in graph.nodes]
        for needed, where in dangling:
            yield where, _missing(needed, node, graph)
        if not dangling and key not in standing and graph.in_cycle(key):
            if key.kind == "device":  # every cycle contains a device
                yield node.needs[0][1], f"{key.name!r} stands on itself"
        else:
            yield from _fits(node, graph, known, users)
            yield from _direct(node, blocks)
    yield from _shared(known, users)
    yield from _one_filesystem(graph)
    yield from _one_size(graph)
    yield from _no_file(graph)


def _missing(needed: Key, node: Node, graph: Graph) -> str:
    if needed.kind == "file":
        return f"expected a size, or a file {needed.name!r} among `files`"
    names = [key.name for key in graph.nodes if key.kind == needed.kind and key != node.key]
    return f"expected the name of a {needed.kind}, got {needed.name!r}{did_you_mean(needed.name, names)}"


def _fits(node: Node, graph: Graph, known: dict[Key, int], users: dict[Key, list[Node]]) -> Iterator[Mistake]:
    room = known.get(node.needs[0][0]) if node.needs else None
    size = known.get(node.key)
    match node.model:
        case Filesystem(type=kind, make=True) if room is not None and room < FILESYSTEMS[kind].least_bytes:
            at = (*node.where, "type") if node.where[0] == "filesystems" else (*node.where, "filesystem")
            yield (
                at,
                f"{kind} needs at least {format_size(FILESYSTEMS[kind].least_bytes)}, "
                f"{node.needs[0][0].name!r} has {format_size(room)}",
            )
        case File(path=path) as file:
            if file.size % 4096:
                yield (*node.where, "size"), f"expected a multiple of 4096 bytes, got {file.size}"
            holder = Key("filesystem", path.partition("/")[0])
            yield from _files_fit(node, holder, graph, known, users)
        case Loop() as loop if size == 0:
            yield (*node.where, "offset"), f"expected less than the backing {node.needs[0][0]}, got {loop.offset}"
        case Loop(offset=offset) if offset % 512:
            yield (*node.where, "offset"), f"expected a multiple of 512 bytes, got {offset}"


def _direct(node: Node, blocks: Mapping[Key, int]) -> Iterator[Mistake]:
    """Check that a loop can do direct I/O: its block size and offset must be multiples of the block size below.

    Linux does not refuse such a loop: on 5.10 and 6.1 its reads fail with EIO, 6.12 does buffered I/O (seen with
    losetup of util-linux 2.38).
    """
    loop = node.model
    if not isinstance(loop, Loop) or not loop.direct_io or node.needs[0][0] not in blocks:
        return
    below, least = node.needs[0][0], blocks[node.needs[0][0]]
    if loop.logical_block_size is not None and loop.logical_block_size < least:
        yield (
            (*node.where, "logical-block-size"),
            f"expected at least {least} for direct I/O, which is the block size below {below}, "
            f"got {loop.logical_block_size}; leave out direct-io, or this",
        )
    if loop.offset % least and not loop.offset % 512:
        yield (
            (*node.where, "offset"),
            f"expected a multiple of {least} for direct I/O, which is the block size below {below}, got {loop.offset}",
        )


def _files_fit(
    node: Node, holder: Key, graph: Graph, known: dict[Key, int], users: dict[Key, list[Node]]
) -> Iterator[Mistake]:
    below = graph.nodes.get(holder)
    room = known.get(below.needs[0][0]) if below is not None and below.needs else None
    if room is None:
        return
    asked = sum(user.model.size for user in users[holder] if isinstance(user.model, File))
    if asked > room * 9 // 10:
        yield (
            (*node.where, "size"),
            f"the files on {holder.name!r} need more than nine tenths of its {format_size(room)}",
        )


def _shared(known: dict[Key, int], users_of: dict[Key, list[Node]]) -> Iterator[Mistake]:
    """Report devices with two users, and partitions that need more space than their device has."""
    for key, users in users_of.items():
        if key.kind != "device":
            continue
        parts = [user for user in users if "partitions" in user.where]
        if parts and sum(known.get(part.key, 0) for part in parts) > known.get(key, 0) - LABEL_BYTES:
            room = format_size(known.get(key, 0))
            yield (
                parts[-1].where,
                f"the partitions need more than the {room} of {key.name!r}, of which its label takes 2M",
            )
        if parts and known.get(parts[-1].key, 1) <= 0:
            yield parts[-1].where, f"nothing of {key.name!r} is left for it"
        alone = [user for user in users if user not in parts and not isinstance(user.model, Loop)]
        if len(alone) + bool(parts) > 1:
            said = " and ".join([*(str(user.key) for user in alone), *(["its partitions"] if parts else [])])
            yield alone[-1].where, f"{key.name!r} can be used by one thing alone, got {said}"


def _one_filesystem(graph: Graph) -> Iterator[Mistake]:
    """Report loops in the short form that name another filesystem than the device has."""
    for node in graph.nodes.values():
        if isinstance(node.model, Loop) and node.model.file and "filesystem" in node.model.model_fields_set:
            there = graph.nodes[Key("filesystem", node.model.holder)].model
            if isinstance(there, Filesystem) and there.type != node.model.filesystem:
                yield (
                    (*node.where, "filesystem"),
                    f"{node.model.holder!r} has {there.type} already, got {node.model.filesystem}",
                )


def _no_file(graph: Graph) -> Iterator[Mistake]:
    """Report keys of a backing file on loops and swaps whose backing is a whole device."""
    for node in graph.nodes.values():
        if isinstance(node.model, Loop | Swap) and node.needs and node.needs[0][0].kind == "device":
            for key in ("size", "allocate", "filesystem"):
                if getattr(node.model, key, None) is not None and key in node.model.model_fields_set:
                    advice = ", or size-limit" if key == "size" and isinstance(node.model, Loop) else ""
                    yield (
                        (*node.where, key),
                        "expected none on a whole device, which has a size and content of its own; "
                        f"write {node.needs[0][0].name}/FILE for a file there{advice}",
                    )


def _one_size(graph: Graph) -> Iterator[Mistake]:
    """Report loops and swaps that state another size or allocation than their file has, and that would be ignored."""
    for node in graph.nodes.values():
        below = graph.nodes.get(node.needs[0][0]) if isinstance(node.model, Loop | Swap) and node.needs else None
        if below is None or not isinstance(node.model, Loop | Swap) or not isinstance(below.model, File):
            continue
        there, same = f"already ({'.'.join(map(str, below.where))})", "give both the same, or leave this one out"
        if node.model.size not in (None, below.model.size):
            has = f"{below.key.name!r} has {format_size(below.model.size)} {there}"
            yield (*node.where, "size"), f"{has}, got {format_size(node.model.size)}; {same}"
        if isinstance(node.model, Loop) and node.model.allocate not in (None, below.model.allocate):
            yield (
                (*node.where, "allocate"),
                f"{below.key.name!r} is {below.model.allocate} {there}, got {node.model.allocate}; {same}",
            )


def _cgroups(guest: GuestModel, graph: Graph) -> Iterator[Mistake]:
    devices = [key.name for key in graph.nodes if key.kind == "device"]
    for path, group in guest.cgroups.items():
        where: KeyPath = ("cgroups", path)
        costs: dict[str, Mapping[str, object]] = {
            "io.cost.model": group.io_cost_model,
            "io.cost.qos": group.io_cost_qos,
        }
        named: dict[str, list[str]] = {"io.max": [*group.io_max], "io.latency": [*group.io_latency]}
        named |= {key: [*value] for key, value in costs.items()}
        if isinstance(group.io_weight, dict):
            named["io.weight"] = [name for name in group.io_weight if name != "default"]
        for key, names in named.items():
            for name in names:
                if device_key(name) not in graph.nodes:
                    yield (
                        (*where, key, name),
                        f"expected the name of a device, got {name!r}{did_you_mean(name, devices)}",
                    )
        if path == "/":
            for field in sorted(group.model_fields_set - {"controllers", "io_cost_model", "io_cost_qos"}):
                yield (*where, field.replace("_", ".")), "the root has no limits; expected it in a cgroup below"
        else:
            yield from (
                ((*where, key), "only the root has it; expected it under `/`") for key, value in costs.items() if value
            )
