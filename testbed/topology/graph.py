"""The storage stack of a guest as a graph: devices, filesystems, files and swaps, and what each is built on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from testbed.topology.base import KeyPath
from testbed.topology.disks import Disk, Namespace, Nvme, Partition
from testbed.topology.model import GuestModel
from testbed.topology.storage import Dm, File, Filesystem, Loop, Md, Swap
from testbed.units import MIB

Kind = Literal["device", "filesystem", "file", "swap"]
# A GPT label, its copy, and the space that sfdisk leaves for alignment: 1 MiB at each end.
LABEL_BYTES = 2 * MIB


class Key(NamedTuple):
    """The identity of a node. Devices and filesystems have separate sets of names; files are `FILESYSTEM/FILE`."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionOf:
    """Partition `number` (from 1) of the device `holder`."""

    holder: str
    number: int
    partition: Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOf:
    """An additional namespace of the NVMe disk `disk`; `number` is its NSID."""

    disk: str
    number: int
    namespace: Namespace


NodeModel = Disk | NamespaceOf | PartitionOf | Loop | Dm | Md | Filesystem | File | Swap


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One part of the stack.

    `where`: its place below the guest's keys. `needs`: the nodes that it is built on, each with the place that names
    it.
    """

    key: Key
    where: KeyPath
    model: NodeModel
    needs: tuple[tuple[Key, KeyPath], ...] = ()


@dataclass(slots=True)
class Graph:
    """`nodes` in the order of the file; `clashes`: places of nodes whose name is taken, and the node that has it."""

    nodes: dict[Key, Node] = field(default_factory=dict)
    clashes: list[tuple[KeyPath, Node]] = field(default_factory=list)

    def add(self, node: Node) -> None:
        if node.key in self.nodes:
            self.clashes.append((node.where, self.nodes[node.key]))
        else:
            self.nodes[node.key] = node

    def users(self) -> dict[Key, list[Node]]:
        """Return the nodes that are built directly on each node, if there are any."""
        found: dict[Key, list[Node]] = {}
        for node in self.nodes.values():
            for needed, _ in node.needs:
                found.setdefault(needed, []).append(node)
        return found

    def ordered(self) -> tuple[Key, ...]:
        """Sort the nodes so that each comes after its needs, otherwise in the order of the file.

        Nodes in or above a cycle are omitted, and so are those with a missing need.
        """
        done: dict[Key, bool] = {}
        seen: set[Key] = set()
        waiting = list(reversed(self.nodes))  # no recursion: a file may have a stack of thousands of devices
        while waiting:
            key = waiting[-1]
            needs = [needed for needed, _ in self.nodes[key].needs] if key in self.nodes else []
            if key not in seen:
                seen.add(key)
                waiting += [needed for needed in reversed(needs) if needed not in seen]
                continue
            waiting.pop()
            if key not in done:
                # A need that is not done yet is itself waiting for this node: a cycle.
                done[key] = key in self.nodes and all(done.get(needed, False) for needed in needs)
        return tuple(key for key, reached in done.items() if reached)

    def in_cycle(self, key: Key) -> bool:
        """Return whether a node is, directly or not, built on itself."""
        seen: set[Key] = set()
        waiting = [needed for needed, _ in self.nodes[key].needs]
        while waiting:
            at = waiting.pop()
            if at == key:
                return True
            if at not in seen and at in self.nodes:
                seen.add(at)
                waiting += [needed for needed, _ in self.nodes[at].needs]
        return False


def device_key(name: str) -> Key:
    return Key("device", name)


def build_graph(guest: GuestModel) -> Graph:
    """Build the graph of a guest's stack; parts whose name is taken go into `clashes`."""
    graph = Graph()
    for name, disk in guest.disks.items():
        graph.add(Node(key=device_key(name), where=("disks", name), model=disk))
        _partitions(graph, name, ("disks", name), disk.partitions)
        for number, (other, namespace) in enumerate(disk.namespaces.items() if isinstance(disk, Nvme) else (), start=2):
            model = NamespaceOf(disk=name, number=number, namespace=namespace)
            graph.add(Node(key=device_key(other), where=("disks", name, "namespaces", other), model=model))
    for name, filesystem in guest.filesystems.items():
        _filesystem(
            graph,
            name,
            filesystem,
            ("filesystems", name),
            ("filesystems", name, "device") if filesystem.device else None,
        )
    for name, file in guest.files.items():
        _file(graph, file, ("files", name), ("files", name, "path"))
    for name, loop in guest.loops.items():
        _loop(graph, name, loop)
    joined: dict[str, Mapping[str, Dm | Md]] = {"dm": guest.dm, "md": guest.md}
    for section, things in joined.items():
        for name, joining in things.items():
            needs = tuple((device_key(other), (section, name, "on", number)) for number, other in enumerate(joining.on))
            graph.add(Node(key=device_key(name), where=(section, name), model=joining, needs=needs))
    for name, swap in guest.swaps.items():
        where: KeyPath = ("swaps", name)
        if "/" in swap.on and swap.size is not None:
            _file(graph, File(path=swap.on, size=swap.size), where, (*where, "on"), implied=True)
        below = Key("file", swap.on) if "/" in swap.on else device_key(swap.on)
        graph.add(Node(key=Key("swap", name), where=where, model=swap, needs=((below, (*where, "on")),)))
    return graph


def _filesystem(graph: Graph, name: str, filesystem: Filesystem, where: KeyPath, device_at: KeyPath | None) -> None:
    needs = () if filesystem.type == "tmpfs" else ((device_key(filesystem.device or name), device_at or where),)
    graph.add(Node(key=Key("filesystem", name), where=where, model=filesystem, needs=needs))


def _file(graph: Graph, file: File, where: KeyPath, path_at: KeyPath, *, implied: bool = False) -> None:
    key = Key("file", file.path)
    if implied and key in graph.nodes:
        return
    graph.add(
        Node(key=key, where=where, model=file, needs=((Key("filesystem", file.path.partition("/")[0]), path_at),))
    )


def _loop(graph: Graph, name: str, loop: Loop) -> None:
    where, backing_at = ("loops", name), ("loops", name, "backing")
    below = device_key(loop.holder)
    if loop.file:
        # The short form implies a filesystem on the device of that name and a file, unless they are declared.
        holder = Key("filesystem", loop.holder)
        if holder not in graph.nodes:
            _filesystem(graph, loop.holder, Filesystem(type=loop.filesystem), where, backing_at)
        below = Key("file", loop.backing)
        if loop.size is not None:
            on_tmpfs = isinstance(found := graph.nodes[holder].model, Filesystem) and found.type == "tmpfs"
            allocate = loop.allocate or ("sparse" if on_tmpfs else "written")
            _file(graph, File(path=loop.backing, size=loop.size, allocate=allocate), where, backing_at, implied=True)
    graph.add(Node(key=device_key(name), where=where, model=loop, needs=((below, backing_at),)))
    _partitions(graph, name, where, loop.partitions)


def _partitions(graph: Graph, holder: str, where: KeyPath, partitions: tuple[Partition, ...]) -> None:
    for number, partition in enumerate(partitions, start=1):
        graph.add(
            Node(
                key=device_key(f"{holder}-p{number}"),
                where=(*where, "partitions", number - 1),
                model=PartitionOf(holder=holder, number=number, partition=partition),
                needs=((device_key(holder), where),),
            )
        )


def sizes(graph: Graph, order: tuple[Key, ...]) -> dict[Key, int]:
    """Compute the bytes of each device and file; an md array may lose up to a chunk of each member.

    `order`: the keys as `Graph.ordered` sorts them.
    """
    found: dict[Key, int] = {}
    for key in order:
        node = graph.nodes[key]
        below = [found.get(needed, 0) for needed, _ in node.needs]
        match node.model:
            case Disk(size=size) | File(size=size):
                found[key] = size
            case NamespaceOf(namespace=namespace):
                found[key] = namespace.size
            case PartitionOf() as part:
                taken = sum(found.get(device_key(f"{part.holder}-p{number}"), 0) for number in range(1, part.number))
                left = max(0, below[0] - LABEL_BYTES - taken)
                found[key] = part.partition.size if part.partition.size is not None else left
            case Loop() as loop:
                offered = max(0, below[0] - loop.offset)
                found[key] = offered if loop.size_limit is None else min(offered, loop.size_limit)
            case Dm():
                found[key] = sum(below)
            case Md(level=level):
                found[key] = min(below) * (len(below) if level == "raid0" else 1)
    return found


def block_sizes(graph: Graph, order: tuple[Key, ...]) -> dict[Key, int]:
    """Compute the logical block size of each device, and of the device below each filesystem and file.

    A loop without its own has that of its backing if it does direct I/O, otherwise 512 (seen on Linux 5.10, 6.1 and
    6.12, with losetup of util-linux 2.38). `order`: the keys as `Graph.ordered` sorts them.
    """
    found: dict[Key, int] = {}
    for key in order:
        node = graph.nodes[key]
        below = max((found.get(needed, 512) for needed, _ in node.needs), default=512)
        match node.model:
            case Disk(logical_block_size=size) | NamespaceOf(namespace=Namespace(logical_block_size=size)):
                found[key] = size
            case Loop() as loop:
                found[key] = loop.logical_block_size or (below if loop.direct_io else 512)
            case _:
                found[key] = below
    return found
