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
# More groups without limits than this are shown as their number.
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
    """Describe a stack in one line: disks, filesystems, loop devices, swap and control groups."""
    if isinstance(stack, str):
        return f"not known: {stack}"
    boxes = stack_devices(stack)
    titles = {box.key: box.title for box in boxes}
    parts = []
    for box in boxes:
        below = f" on {', '.join(titles[key] for key in box.on)}" if box.on else ""
        parts += [f"{box.title} ({box.detail}){below}"] if box.kind != "file" else []
    if limited := [group.title + (f" ({group.detail})" if group.detail else "") for group in stack_cgroups(stack)]:
        parts.append(f"cgroups: {', '.join(limited)}")
    parts += [f"{stack.more_groups} more cgroups"] if stack.more_groups else []
    return "; ".join(parts) or "nothing on any disk"


def svg(stack: Stack, title: str) -> str:
    """Draw a stack."""
    cpus = f"CPU{'s' if _PLURAL_CPUS.search(stack.cpus) else ''} {stack.cpus}"
    more = f"; {stack.more_groups} more cgroups" if stack.more_groups else ""
    about = f"{cpus}; controllers: {stack.controllers or 'none'}{more}"
    frame = Frame(title=title, about=about, boxes=stack_devices(stack), groups=stack_cgroups(stack))
    return topology_svg.draw((frame,), f"Stack {title}")


def stack_devices(stack: Stack) -> tuple[Box, ...]:
    """Return devices, files, filesystems and swap areas, each after those below it. The time grows with their number
    only, which a guest chooses."""
    boxes = {box.key: box for box in _boxes(stack)}
    places = {key: place for place, key in enumerate(boxes)}
    needs = {key: {below for below in box.on if below in boxes} for key, box in boxes.items()}
    users: dict[str, list[str]] = {key: [] for key in boxes}
    for key, below in needs.items():
        for lower in below:
            users[lower].append(key)
    ready, rest, ordered = [key for key, below in needs.items() if not below], iter(boxes), dict[str, Box]()
    while len(ordered) < len(boxes):
        # A guest may report a circle: the edge that closes it is left out.
        ready = ready or [next(key for key in rest if key not in ordered)]
        ordered |= {
            key: replace(boxes[key], on=tuple(below for below in boxes[key].on if below in ordered)) for key in ready
        }
        for key in ready:
            for user in users[key]:
                needs[user].discard(key)
        above = {user for key in ready for user in users[key] if not needs[user] and user not in ordered}
        ready = sorted(above, key=places.__getitem__)
    return tuple(ordered.values())


def _boxes(stack: Stack) -> Iterator[Box]:
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
    """Return the key of the filesystem that holds a file: of several mounted at one place the last."""
    holding = [mount.mount_point for mount in stack.mounts if path.startswith(f"{mount.mount_point.rstrip('/')}/")]
    return (f"mount {max(holding, key=len)}",) if holding else ()


def _detail(block: Block) -> str:
    words = [block.kind, format_size(block.size_bytes)]
    if block.kind == "loop":
        words.append("direct I/O" if block.direct_io else "buffered")
    if block.profile:
        words.append(block.profile)
    if block.logical_block_size != 512:
        words.append(f"{block.logical_block_size} B sectors")
    if block.offset_bytes:
        words.append(f"from {format_size(block.offset_bytes)}")
    if block.read_only:
        words.append("read-only")
    if block.scheduler == "bfq":
        words.append("bfq")
    return ", ".join((" ".join(words[:2]), *words[2:]))


def stack_cgroups(stack: Stack) -> tuple[Group, ...]:
    """Return control groups with their limits, devices by name. Many groups without limits become one with their
    number."""
    names = {block.number: block for block in stack.blocks}
    free = [group for group in stack.groups if not group.limits]
    few = len(free) <= _FEW_GROUPS
    groups = [] if few else [Group(title=f"{len(free)} cgroups", detail="without limits")]
    for group in stack.groups if few else (group for group in stack.groups if group.limits):
        limits = [f"{file} {_limit(line, names)}" for file, lines in group.limits.items() for line in lines]
        numbers = {line.split()[0] for lines in group.limits.values() for line in lines if line.strip()}
        groups.append(
            Group(
                title=group.path.removeprefix("/") or "/",
                detail=", ".join(limits),
                limits=tuple(names[number].device for number in sorted(numbers) if number in names),
            )
        )
    return tuple(groups)


def _limit(line: str, names: dict[str, Block]) -> str:
    """Format a line of a limit file: bytes with their unit, devices by name, without values that limit nothing."""
    plain = [names[word].name if word in names else word for word in line.split() if not word.endswith("=max")]
    return " ".join(
        format_size(int(word)) if word.isascii() and word.isdecimal() and int(word) >= 1 << 20 else word
        for word in plain
    )
