"""Reads the modules of a user's kernel: the folder `lib/modules/RELEASE`, whose links are not followed out of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from testbed.errors import UsageError
from testbed.store import inflate
from testbed.store.initramfs import module_name
from testbed.store.kernel_image import unreadable

# amdgpu.ko with its debug information has some 0.4 GiB; Debian's kernel for all machines has 4,000 modules.
MOST_BYTES, _MOST_FILES = 1 << 30, 100_000
_MODULE = re.compile(r".+\.ko(?:\.(?:gz|xz|zst))?")
_VERMAGIC = re.compile(rb"\0vermagic=([^\0]*)\0")
# What leads out of the folder, or is no file of it.
_LEFT_OUT = ("build", "source", "vmlinuz")
# Of so many modules the magic is read; unpacking all takes minutes.
_MOST_READ = 12


def files(folder: Path) -> Iterator[Path]:
    """The files of a folder; of links those that stay in it.

    :raise UsageError: some of it cannot be read, or there are far too many.
    """
    root, found = folder.resolve(), 0

    def refused(error: OSError) -> None:
        raise unreadable(Path(error.filename), error)

    for place, folders, names in os.walk(root, onerror=refused):
        folders[:] = sorted(name for name in folders if place != str(root) or name not in _LEFT_OUT)
        for path in (Path(place) / name for name in sorted(names) if place != str(root) or name not in _LEFT_OUT):
            found += 1
            if found > _MOST_FILES:
                raise UsageError(f"{folder}: expected the modules of one kernel (lib/modules/RELEASE), found more than {_MOST_FILES} files")
            try:
                inside = path.is_file() and path.resolve().is_relative_to(root)
            except OSError as error:
                raise unreadable(path, error) from error
            if inside:
                yield path


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a folder, by their names (`virtio_blk`).

    :raise UsageError: some of it cannot be read.
    """
    return {module_name(path.name): path for path in files(folder) if _MODULE.fullmatch(path.name)}


def vermagics(there: dict[str, Path], first: Collection[str]) -> dict[str, str]:
    """What modules say they were built for, with the name of one that says so: of those in `first`, and of some others.

    :raise UsageError: one is damaged, or no module.
    """
    names = [*(name for name in first if name in there), *(name for name in there if name not in first)][:_MOST_READ]
    found: dict[str, str] = {}
    for name in names:
        magic = _VERMAGIC.search(read(there[name]))
        if magic is None:
            raise UsageError(f"{there[name]}: expected a kernel module, which says what kernel it is for (vermagic), found none")
        found.setdefault(magic[1].decode("ascii", "replace").strip(), name)
    return found


def read(path: Path) -> bytes:
    """A module as the kernel's loader takes it, unpacked.

    :raise UsageError: it is damaged, too large, or cannot be read.
    """
    try:
        return inflate.read(path, MOST_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    except inflate.Refused as error:
        raise UsageError(str(error)) from error


def copy(folder: Path, target: Path) -> None:
    """The files of a folder into a new one. Modules that gzip has packed are unpacked: Debian's kmod, here and in the guest, reads none.

    :raise UsageError: one is damaged, or cannot be read. :raise OSError: the copy cannot be written.
    """
    target.mkdir(parents=True)
    root = folder.resolve()
    for path in files(folder):
        made = target / path.relative_to(root)
        made.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".ko.gz"):
            made.with_name(path.name.removesuffix(".gz")).write_bytes(read(path))
            continue
        try:
            shutil.copyfile(path, made)
        except PermissionError as error:
            raise unreadable(path, error) from error
