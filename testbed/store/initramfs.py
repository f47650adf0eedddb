"""Packs the initramfs of a guest: an init script, a static busybox, and the few modules that reach the root disk.

The archive is cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel tree),
uncompressed: it is small, and inflating it under emulation costs more than reading it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_REGULAR_FILE = 0o100000
_DIRECTORY = 0o040000
_CHARACTER_DEVICE = 0o020000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of the archive; `device` is (major, minor) of a character device node."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    return Entry(path=path, mode=_DIRECTORY | 0o755)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path=path, mode=_REGULAR_FILE | mode, content=content)


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return the bytes of the archive: the same entries always give the same bytes (no times, no owners)."""
    parts: list[bytes] = []
    trailer = Entry(path="TRAILER!!!", mode=0)
    for number, entry in enumerate([*entries, trailer], start=1):
        name = entry.path.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(header + name), _padded(entry.content)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def module_order(modules_dep: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of `wanted` modules and of all that they need, in loading order.

    A wanted name that is not in `modules_dep` is a built-in one. `modules_dep`: the text of depmod's `modules.dep`, one
    `path: dependency dependency ...` per line, the nearest dependency first.
    """
    dependencies = dict(_parse_modules_dep(modules_dep))
    by_name = {module_name(path): path for path in dependencies}
    order: dict[str, None] = {}
    for name in wanted:
        if path := by_name.get(module_name(name)):
            # modules.dep lists what must be loaded first at the end of the line.
            for needed in (*reversed(dependencies[path]), path):
                order[needed] = None
    return tuple(order)


def _parse_modules_dep(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for line in text.splitlines():
        path, _, needed = line.partition(":")
        yield path.strip(), tuple(needed.split())


def module_name(path: str) -> str:
    """Return the name of a module: `virtio_blk` for `kernel/drivers/block/virtio_blk.ko.xz` and for `virtio-blk`."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def build(init: bytes, busybox: bytes, modules: Mapping[str, bytes], *, with_modules_disk: bool) -> bytes:
    """Return the initramfs; `modules` maps a file name to its bytes, in loading order."""
    folders = ("bin", "dev", "modules", "proc", "root", "sys")
    return cpio(
        [
            *(directory(folder) for folder in folders),
            Entry(path="dev/console", mode=_CHARACTER_DEVICE | 0o600, device=(5, 1)),
            file("bin/busybox", busybox, 0o755),
            file("init", init, 0o755),
            file("modules.order", "".join(f"{name}\n" for name in modules).encode()),
            file("modules.disk", b"yes\n" if with_modules_disk else b""),
            *(file(f"modules/{name}", content) for name, content in modules.items()),
        ]
    )
