"""Plans a guest's block stack: the ordered steps that set it up, each with the command that undoes it, and what to read
back. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from testbed.guest.setup.readback import Expected
from testbed.guest.setup.steps import Step, sh
from testbed.topology.disks import Disk, Partition
from testbed.topology.filesystems import FILESYSTEMS
from testbed.topology.graph import Graph, Key, NamespaceOf, Node, PartitionOf, build_graph, device_key, sizes
from testbed.topology.model import GuestModel
from testbed.topology.storage import Dm, File, Filesystem, Loop, Md, Swap
from testbed.units import KIB, MIB

MOUNTS = "/mnt"
# A key of 64 bytes for aes-xts. It is no secret: only the path of the I/O is tested.
_DM_KEY = "0f" * 64

_NO_DIRECT_IO = (
    "a kernel gives a loop no direct I/O, without an error, where the loop's blocks or its offset are no multiples of"
    " the logical block size below, or the filesystem below can do none"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """A loop of the topology in the guest: its device, its backing file or device, and the disks below it."""

    path: str
    backing_file: str
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A planned stack: its steps in order, and what to read back.

    `devices` (/dev paths) and `loops` exist afterwards, by name.
    """

    steps: tuple[Step, ...]
    facts: tuple[Expected, ...]
    devices: dict[str, str]
    loops: dict[str, LoopDevice]


def plan_stack(guest: GuestModel, disks: Mapping[str, str], *, again: bool = False) -> Stack:
    """Plan the stack on a guest's disks. `disks`: the /dev path of each disk and namespace.

    `again`: the disks have the contents already, so that filesystems are mounted and files attached, but not made. A
    loop device's number is the loop's position among the guest's loops.
    """
    made = build_graph(guest)
    paths = _paths(guest, made, disks)
    order = made.ordered()
    planner = _Planner(made, paths, sizes(made, order), again=again)
    for key in order:
        planner.add(made.nodes[key])
    loops = {
        name: LoopDevice(
            path=paths[name], backing_file=planner.backing(loop), disks=tuple(_disks_below(made, device_key(name)))
        )
        for name, loop in guest.loops.items()
    }
    return Stack(steps=tuple(planner.steps), facts=tuple(planner.facts), devices=paths, loops=loops)


def _paths(guest: GuestModel, made: Graph, disks: Mapping[str, str]) -> dict[str, str]:
    """Return the /dev path of each block device, by name."""
    numbers = {name: number for number, name in enumerate(guest.loops)}
    arrays = {name: number for number, name in enumerate(guest.md)}
    found: dict[str, str] = {}
    for key, node in made.nodes.items():
        match node.model:
            case Disk() | NamespaceOf() if key.name in disks:
                found[key.name] = disks[key.name]
            case Loop():
                found[key.name] = f"/dev/loop{numbers[key.name]}"
            case Dm():
                found[key.name] = f"/dev/mapper/{key.name}"
            case Md():
                found[key.name] = f"/dev/md{arrays[key.name]}"
    for key, node in made.nodes.items():
        if isinstance(node.model, PartitionOf) and node.model.holder in found:
            whole = found[node.model.holder]
            found[key.name] = f"{whole}{'p' if whole[-1].isdigit() else ''}{node.model.number}"
    return found


def _disks_below(made: Graph, key: Key) -> Iterator[str]:
    """Yield the disks and namespaces that a device is on."""
    for needed, _ in made.nodes[key].needs:
        if isinstance(made.nodes[needed].model, Disk | NamespaceOf):
            yield needed.name
        else:
            yield from _disks_below(made, needed)


class _Planner:
    """Collects steps and facts; add each node after the nodes below it."""

    def __init__(self, made: Graph, paths: Mapping[str, str], known: Mapping[Key, int], *, again: bool) -> None:
        self._made, self._paths, self._sizes, self._again = made, paths, known, again
        self.steps: list[Step] = []
        self.facts: list[Expected] = []

    def add(self, node: Node) -> None:
        where = ".".join(str(part) for part in node.where)
        match node.model:
            case Filesystem() as filesystem:
                self._filesystem(node, filesystem, where)
            case File() as file:
                if not self._is_there(node):
                    self._file(file, where)
            case Loop() as loop:
                self._loop(node.key.name, loop, where)
                self._read_ahead(node.key.name, loop.read_ahead, where)
                self._partitions(node, loop.partitions)
            case Disk() as disk:
                self._read_ahead(node.key.name, disk.read_ahead, where)
                self._partitions(node, disk.partitions)
            case Dm() as dm:
                self._dm(node.key.name, dm)
            case Md() as md:
                self._md(node.key.name, md, where)
            case Swap() as swap:
                self._swap(swap, where)

    def _is_there(self, node: Node) -> bool:
        """Return whether an earlier guest has made it on a disk: nothing below it is in memory."""
        return self._again and not self._in_memory(node)

    def _in_memory(self, node: Node) -> bool:
        on_memory = isinstance(node.model, Filesystem) and node.model.type == "tmpfs"
        return on_memory or any(self._in_memory(self._made.nodes[needed]) for needed, _ in node.needs)

    def backing(self, of: Loop) -> str:
        """Return the path of a loop's backing file or device in the guest."""
        return f"{MOUNTS}/{of.backing}" if of.file else self._paths[of.holder]

    def _step(self, what: str, *do: str, undo: str | None = None) -> None:
        self.steps.append(Step(what=what, do=do, undo=undo))

    def _filesystem(self, node: Node, filesystem: Filesystem, where: str) -> None:
        row, folder = FILESYSTEMS[filesystem.type], f"{MOUNTS}/{node.key.name}"
        on = self._paths[node.needs[0][0].name] if node.needs else None
        options = [*row.options, *filesystem.mount]
        make = (
            (sh(*row.mkfs, *filesystem.mkfs, on),)
            if on is not None and filesystem.make and not self._is_there(node)
            else ()
        )
        mount = sh(
            "mount",
            "-t",
            filesystem.type,
            *(["-o", ",".join(options)] if options else []),
            on or filesystem.type,
            folder,
        )
        what = f"{filesystem.type} on {on or 'memory'} at {folder}"
        self._step(what, *make, sh("mkdir", "-p", folder), mount, undo=sh("umount", folder))
        self.facts.append(
            Expected(
                where=where, file="/proc/mounts", line=f"{on or filesystem.type} {folder} ", expected=filesystem.type
            )
        )

    def _file(self, file: File, where: str) -> None:
        path = f"{MOUNTS}/{file.path}"
        blocks, rest = divmod(file.size, MIB)
        truncate = sh("truncate", "-s", str(file.size), path)
        commands = {
            "sparse": (truncate,),
            "fallocated": (sh("fallocate", "-l", str(file.size), path),),
            # In the root cgroup, so that later I/O is charged where it is done, not where the file was made. With
            # direct I/O if the filesystem supports it, which takes a quarter of the time.
            "written": (
                *((_write(path, blocks, direct=not self._on_tmpfs(file)),) if blocks else ()),
                *((truncate,) if rest or not blocks else ()),
            ),
        }
        self._step(f"{file.allocate} {path}", *commands[file.allocate])

    def _on_tmpfs(self, file: File) -> bool:
        holder = self._made.nodes[Key("filesystem", file.path.partition("/")[0])].model
        return isinstance(holder, Filesystem) and holder.type == "tmpfs"

    def _loop(self, name: str, loop: Loop, where: str) -> None:
        path, backing = self._paths[name], self.backing(loop)
        scan = loop.partition_scan or bool(loop.partitions)
        words = [f"--direct-io={'on' if loop.direct_io else 'off'}"]
        words += ["--read-only"] if loop.read_only else []
        words += ["--partscan"] if scan else []
        words += [f"--offset={loop.offset}"] if loop.offset else []
        words += [f"--sizelimit={loop.size_limit}"] if loop.size_limit is not None else []
        words += [f"--sector-size={loop.logical_block_size}"] if loop.logical_block_size is not None else []
        self._step(f"{path} on {backing}", sh("losetup", *words, path, backing), undo=sh("losetup", "-d", path))
        block = f"/sys/block/{path.removeprefix('/dev/')}"
        expected = {
            "backing": ("loop/backing_file", backing),
            "direct-io": ("loop/dio", str(int(loop.direct_io))),
            "partition-scan": ("loop/partscan", str(int(scan))),
            "offset": ("loop/offset", str(loop.offset)),
            "size-limit": ("loop/sizelimit", str(loop.size_limit or 0)),
            "read-only": ("ro", str(int(loop.read_only))),
            "logical-block-size": ("queue/logical_block_size", str(loop.logical_block_size or 512)),
        }
        if device_key(name) in self._sizes:
            expected["size"] = ("size", str(self._sizes[device_key(name)] // 512))
        if loop.logical_block_size is None:
            # Newer kernels give the loop the block size of the disk below, if that is larger.
            del expected["logical-block-size"]
        reasons = {"direct-io": _NO_DIRECT_IO if loop.direct_io else ""}
        self.facts += [
            Expected(where=f"{where}.{key}", file=f"{block}/{file}", expected=value, reason=reasons.get(key, ""))
            for key, (file, value) in expected.items()
        ]

    def _read_ahead(self, name: str, size_bytes: int | None, where: str) -> None:
        """Set the read-ahead of a device, before any file on it is opened: an open file keeps the old value."""
        if size_bytes is None:
            return
        block = self._paths[name].removeprefix("/dev/")
        file, kept, kib = f"/sys/block/{block}/queue/read_ahead_kb", f"/run/read-ahead-{block}", str(size_bytes // KIB)
        self._step(
            f"read-ahead of {kib}K on {name}",
            f"cat {sh(file)} >{sh(kept)}",
            f"echo {kib} >{sh(file)}",
            undo=f"cat {sh(kept)} >{sh(file)}",
        )
        self.facts.append(Expected(where=f"{where}.read-ahead", file=file, expected=kib))

    def _partitions(self, holder: Node, partitions: tuple[Partition, ...]) -> None:
        if not partitions:
            return
        path = self._paths[holder.key.name]
        table = "".join(f",{part.size // MIB}MiB\\n" if part.size is not None else ",\\n" for part in partitions)
        label = "true" if self._is_there(holder) else f"printf 'label: gpt\\n{table}' | {sh('sfdisk', '-q', path)}"
        self._step(f"{len(partitions)} partitions on {path}", label, undo=sh("sfdisk", "-q", "--delete", path))

    def _dm(self, name: str, dm: Dm) -> None:
        on = [self._paths[other] for other in dm.on]
        if dm.type == "crypt":
            rows = f"0 {self._sizes[device_key(dm.on[0])] // 512} crypt aes-xts-plain64 {_DM_KEY} 0 {on[0]} 0\\n"
        else:
            sectors = [self._sizes[device_key(other)] // 512 for other in dm.on]
            starts = [sum(sectors[:number]) for number in range(len(sectors))]
            rows = "".join(
                f"{start} {count} linear {path} 0\\n" for start, count, path in zip(starts, sectors, on, strict=True)
            )
        # The guest has no udev: with this variable dmsetup makes the device node itself.
        create, remove = (f"DM_DISABLE_UDEV=1 {sh('dmsetup', verb, name)}" for verb in ("create", "remove"))
        self._step(f"dm-{dm.type} {name} on {', '.join(on)}", f"printf '{rows}' | {create}", undo=remove)

    def _md(self, name: str, md: Md, where: str) -> None:
        path, on = self._paths[name], [self._paths[other] for other in md.on]
        clean = ["--assume-clean"] if md.level == "raid1" else []
        build = sh("mdadm", "--quiet", "--build", path, f"--level={md.level}", f"--raid-devices={len(on)}", *clean, *on)
        self._step(f"{md.level} {path} of {', '.join(on)}", build, undo=sh("mdadm", "--quiet", "--stop", path))
        self.facts.append(
            Expected(
                where=f"{where}.level", file=f"/sys/block/{path.removeprefix('/dev/')}/md/level", expected=md.level
            )
        )

    def _swap(self, swap: Swap, where: str) -> None:
        path = f"{MOUNTS}/{swap.on}" if "/" in swap.on else self._paths[swap.on]
        private = (sh("chmod", "600", path),) if "/" in swap.on else ()
        priority = ["-p", str(swap.priority)] if swap.priority is not None else []
        self._step(
            f"swap on {path}",
            *private,
            sh("mkswap", "-q", path),
            sh("swapon", *priority, path),
            undo=sh("swapoff", path),
        )
        self.facts.append(
            Expected(
                where=where, file="/proc/swaps", line=f"{path} ", expected="file" if "/" in swap.on else "partition"
            )
        )


def _write(path: str, blocks: int, *, direct: bool) -> str:
    flags = ["oflag=direct"] if direct else []
    return sh("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={blocks}", *flags, "conv=fsync", "status=none")
