"""Draws and describes the stacks of a run's guests, from the `stack` of each side in results.json. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from testbed.report import topology_svg
from testbed.report.schema import Case, Side
from testbed.report.stack_model import Block, Stack
from testbed.report.topology_svg import Box, Frame, Group
from testbed.units import format_size

_OLD = "the run is of a testbed that did not record it"
_FEW_GROUPS = 4
_PLURAL_CPUS = re.compile("[-,]")


def side_stack(side: Side) -> Stack | str:
    """Return the stack of a kernel's guest, or why it is not known."""
    return side.stack if side.stack is not None else side.stack_unread or _OLD


def group_by_stack(case: Case, sides: Sequence[str]) -> list[tuple[list[str], Stack | str]]:
    """Return each stack of a case with its kernels: one for all kernels, unless the descriptions differ."""
    groups: dict[str, tuple[list[str], Stack | str]] = {}
    for side in sides:
        stack = side_stack(case.sides[side])
        groups.setdefault(describe_stack(stack), ([], stack))[0].append(side)
    return list(groups.values())


def describe_stack(stack: Stack | str) -> str:
    """One line: disks, filesystems, loops, swap and control groups."""
    if isinstance(stack, str):
        return f"not known: {stack}"
    made = stack_devices(stack)
    titles = {thing.key: thing.title for thing in made}
    said = []
    for thing in made:
        below = f" on {', '.join(titles[key] for key in thing.on)}" if thing.on else ""
        said += [f"{thing.title} ({thing.detail}){below}"] if thing.kind != "file" else []
    if limited := [group.title + (f" ({group.detail})" if group.detail else "") for group in stack_cgroups(stack)]:
        said.append(f"cgroups: {', '.join(limited)}")
    said += [f"{stack.more_groups} more cgroups"] if stack.more_groups else []
    return "; ".join(said) or "nothing on any disk"


def svg(stack: Stack, title: str) -> str:
    """The picture."""
    cpus = f"CPU{'s' if _PLURAL_CPUS.search(stack.cpus) else ''} {stack.cpus}"
    more = f"; {stack.more_groups} more cgroups" if stack.more_groups else ""
    about = f"{cpus}; controllers: {stack.controllers or 'none'}{more}"
    frame = Frame(title=title, about=about, things=stack_devices(stack), groups=stack_cgroups(stack))
    return topology_svg.draw((frame,), f"What stood: {title}")


def stack_devices(stack: Stack) -> tuple[Box, ...]:
    """Devices, files, filesystems and swap, each after what it stands on; in a time that grows with their number, which a guest chooses."""
    found = {thing.key: thing for thing in _things(stack)}
    places = {key: place for place, key in enumerate(found)}
    needs = {key: {below for below in thing.on if below in found} for key, thing in found.items()}
    users: dict[str, list[str]] = {key: [] for key in found}
    for key, below in needs.items():
        for one in below:
            users[one].append(key)
    ready, rest, ordered = [key for key, below in needs.items() if not below], iter(found), dict[str, Box]()
    while len(ordered) < len(found):
        # A guest may say that something stands on itself: such an edge is left out.
        ready = ready or [next(key for key in rest if key not in ordered)]
        ordered |= {
            key: replace(found[key], on=tuple(below for below in found[key].on if below in ordered)) for key in ready
        }
        for key in ready:
            for user in users[key]:
                needs[user].discard(key)
        above = {user for key in ready for user in users[key] if not needs[user] and user not in ordered}
        ready = sorted(above, key=places.__getitem__)
    return tuple(ordered.values())


def _things(stack: Stack) -> Iterator[Box]:
    for block in stack.blocks:
        yield Box(key=block.device, kind=_kind(block), title=block.name, detail=_detail(block), on=_below_block(block))
        for part, size_bytes in block.partitions.items():
            yield Box(
                key=part,
                kind="partition",
                title=part.removeprefix("/dev/"),
                detail=f"partition {format_size(size_bytes)}",
                on=(block.device,),
            )
        if block.backing_file and not _is_device(block.backing_file):
            yield Box(
                key=block.backing_file,
                kind="file",
                title=block.backing_file,
                detail="file",
                on=_holder(stack, block.backing_file),
            )
    for mount in stack.mounts:
        yield Box(
            key=f"mount {mount.mount_point}",
            kind="filesystem",
            title=mount.mount_point,
            detail=mount.type,
            on=(mount.source,),
        )
    for swap in stack.swaps:
        below = (swap.on,) if _is_device(swap.on) else _holder(stack, swap.on)
        yield Box(
            key=f"swap {swap.on}", kind="swap", title="swap", detail=f"swap {format_size(swap.size_bytes)}", on=below
        )


def _kind(block: Block) -> str:
    return {"loop": "loop", "dm": "mapped", "md": "mapped"}.get(block.kind, "disk")


def _is_device(path: str) -> bool:
    return path.startswith("/dev/")


def _below_block(block: Block) -> tuple[str, ...]:
    return (block.backing_file,) if block.backing_file else tuple(block.on)


def _holder(stack: Stack, path: str) -> tuple[str, ...]:
    """The filesystem that a file is on: of several mounted at one place the last."""
    holding = [mount.mount_point for mount in stack.mounts if path.startswith(f"{mount.mount_point.rstrip('/')}/")]
    return (f"mount {max(holding, key=len)}",) if holding else ()


def _detail(block: Block) -> str:
    said = [block.kind, format_size(block.size_bytes)]
    if block.kind == "loop":
        said.append("direct I/O" if block.direct_io else "buffered")
    if block.profile:
        said.append(block.profile)
    if block.logical_block_size != 512:
        said.append(f"{block.logical_block_size} B sectors")
    if block.offset_bytes:
        said.append(f"from {format_size(block.offset_bytes)}")
    if block.read_only:
        said.append("read-only")
    if block.scheduler == "bfq":
        said.append("bfq")
    return ", ".join((" ".join(said[:2]), *said[2:]))


def stack_cgroups(stack: Stack) -> tuple[Group, ...]:
    """Control groups, with what limits them; devices by name. Of many that nothing limits only their number."""
    names = {block.number: block for block in stack.blocks}
    free = [group for group in stack.groups if not group.limits]
    few = len(free) <= _FEW_GROUPS
    found = [] if few else [Group(title=f"{len(free)} cgroups", detail="without limits")]
    for group in stack.groups if few else (group for group in stack.groups if group.limits):
        limits = [f"{file} {_limit(line, names)}" for file, lines in group.limits.items() for line in lines]
        numbers = {line.split()[0] for lines in group.limits.values() for line in lines if line.strip()}
        found.append(
            Group(
                title=group.path.removeprefix("/") or "/",
                detail=", ".join(limits),
                limits=tuple(names[number].device for number in sorted(numbers) if number in names),
            )
        )
    return tuple(found)


def _limit(line: str, names: dict[str, Block]) -> str:
    """A line of a limit's file: bytes with their unit, devices by name, nothing that is unlimited."""
    plain = [names[word].name if word in names else word for word in line.split() if not word.endswith("=max")]
    return " ".join(
        format_size(int(word)) if word.isascii() and word.isdecimal() and int(word) >= 1 << 20 else word
        for word in plain
    )
