"""Reads the modules of a user's kernel (`lib/modules/RELEASE`), which may be hostile: links stay inside, names are
plain, and everything is within limits.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.errors import UsageError
from testbed.store import decompression
from testbed.store.initramfs import module_name
from testbed.store.kernels.kernel_image import unreadable_error
from testbed.units import format_size

# amdgpu.ko with its debug information has some 0.4 GiB; Debian's kernel for all machines has 4,000 modules, below 8
# folders, of 0.5 GiB.
MOST_BYTES, _MOST_IN_ALL_BYTES, _MOST_FILES, _MOST_DEPTH = 1 << 30, 8 << 30, 100_000, 32
# The limit of the few modules that reach the root disk, decompressed, with debug information.
MOST_EARLY_BYTES = 256 << 20
_MODULE = re.compile(r".+\.ko(?:\.(?:gz|xz|zst))?")
# depmod(8) writes names unquoted into modules.dep, as `PATH: PATH PATH`: with a folder called `virtio_blk: ` and a
# folder `etc` in it, it would be read as a module that needs /etc/....
_PLAIN = frozenset(string.ascii_letters + string.digits + "._+,=@~-")
# Links to the sources, which a guest does not have, and the kernel itself, which a guest does not need.
_NOT_OF_GUESTS = ("build", "source", "vmlinuz")
_MAGIC, _LONGEST_MAGIC = b"\0vermagic=", 4096
# vermagic is read from at most this many modules; decompressing all takes minutes.
_MOST_READ = 12


@dataclass(slots=True, kw_only=True)
class Tree:
    """The content of a modules folder: regular `files` below the real path `root`, and descriptions of what is left
    out.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def survey_modules(folder: Path) -> Tree:
    """List the files of a modules folder that a guest can get; links only if they lead to a file in the folder.

    :raise UsageError: a part cannot be read, or there is far more than the modules of one kernel.
    """
    tree = Tree(root=folder.resolve())
    waiting, size_bytes = [tree.root], 0
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            for entry in entries:
                if place == tree.root and entry.name in _NOT_OF_GUESTS:
                    continue
                path = Path(entry.path)
                if why := _unfit(entry, path, tree.root):
                    tree.left_out.append(f"{path.relative_to(tree.root)} ({why})")
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    tree.files.append(path)
                    size_bytes += entry.stat().st_size
                if max(len(tree.files), len(tree.left_out), len(waiting)) > _MOST_FILES:
                    raise _too_much(folder, f"more than {_MOST_FILES} files")
        except OSError as error:
            raise unreadable_error(Path(error.filename or place), error) from error
        if size_bytes > _MOST_IN_ALL_BYTES:
            raise _too_much(folder, f"files of {format_size(size_bytes)}")
    return tree


def _too_much(folder: Path, found: str) -> UsageError:
    return UsageError(f"{folder}: expected the modules of one kernel (lib/modules/RELEASE), found {found}")


def _unfit(entry: os.DirEntry[str], path: Path, root: Path) -> str:
    """Return why an entry is left out; an empty string if it is not."""
    if not _PLAIN.issuperset(entry.name):
        return "its name is none that module tools read"
    if len(path.parts) - len(root.parts) > _MOST_DEPTH:
        return f"more than {_MOST_DEPTH} folders below each other"
    if entry.is_symlink():
        try:
            real = path.resolve()
        except RuntimeError:  # the link leads to itself
            return "a link that leads nowhere"
        return (
            ""
            if real.is_relative_to(root) and real.is_file()
            else f"a link to {os.readlink(path)}, which is no file in it"  # noqa: PTH115 - a string is needed
        )
    mode = entry.stat(follow_symlinks=False).st_mode
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "neither a file nor a folder"


def check_location(folder: Path, bzimage: Path, release: str) -> None:
    """Check that a modules folder is where the user sees it, or is some `lib/modules/RELEASE`.

    An untrusted archive with a kernel could have a link in its place that leads to a folder of the user's.

    :raise UsageError: a link below the folder that it shares with the kernel leads elsewhere.
    """
    named, real = Path(os.path.abspath(folder)), folder.resolve()  # noqa: PTH100 - must not follow links
    shared = Path(os.path.commonpath([named.parent, os.path.abspath(bzimage)]))  # noqa: PTH100 - as above
    if shared.resolve() / named.relative_to(shared) != real and real.parts[-3:] != ("lib", "modules", release):
        raise UsageError(
            f"{folder}: expected the modules of Linux {release}, got a link to {real}; "
            "where that is what you mean, name it instead"
        )


def list_modules(folder: Path) -> dict[str, Path]:
    """Return the modules of a folder by their names (`virtio_blk`).

    :raise UsageError: a part of it cannot be read.
    """
    return {module_name(path.name): path for path in survey_modules(folder).files if _MODULE.fullmatch(path.name)}


def read_vermagics(there: dict[str, Path], first: Collection[str]) -> dict[str, str]:
    """Return the vermagic strings of modules, each with the name of one module: of those in `first`, and of some
    others.

    :raise UsageError: one is damaged, or not a module.
    """
    names = [*(name for name in first if name in there), *(name for name in there if name not in first)][:_MOST_READ]
    found: dict[str, str] = {}
    for name in names:
        magic = _vermagic(there[name])
        if magic is None:
            raise UsageError(
                f"{there[name]}: expected a kernel module, which says what kernel it is for (vermagic), found none"
            )
        found.setdefault(magic.decode("ascii", "replace").strip(), name)
    return found


def _vermagic(path: Path) -> bytes | None:
    """Read a module's vermagic, in chunks: a module may decompress to much more than memory should hold."""
    window = b""
    try:
        with path.open("rb") as file:
            for piece in decompression.decompress_chunks(file, str(path), MOST_BYTES):
                window += piece
                _, found, rest = window.partition(_MAGIC)
                magic, ended, _ = rest.partition(b"\0")
                if found and (ended or len(magic) > _LONGEST_MAGIC):
                    return magic if len(magic) <= _LONGEST_MAGIC else None
                window = found + rest if found else window[-len(_MAGIC) :]
    except OSError as error:
        raise unreadable_error(path, error) from error
    except decompression.DecompressionError as error:
        raise UsageError(str(error)) from error
    return None


def read_module(path: Path) -> bytes:
    """Return a decompressed module, as the kernel's loader needs it.

    :raise UsageError: it is damaged, too large, or cannot be read.
    """
    try:
        return decompression.read_decompressed(path, MOST_BYTES)
    except OSError as error:
        raise unreadable_error(path, error) from error
    except decompression.DecompressionError as error:
        raise UsageError(str(error)) from error


def unpack_modules(folder: Path, order: Sequence[str], into: Path) -> tuple[str, ...]:
    """Decompress modules, given as paths in the folder, into a new folder `into`; returns their new names.

    :raise UsageError: a path is not a file of the folder, one is damaged, or all together are too large.
    :raise OSError: they cannot be written.
    """
    into.mkdir()
    tree = survey_modules(folder)
    made: dict[str, None] = {}
    left_bytes = MOST_EARLY_BYTES
    for path in order:
        source, name = tree.root / path, f"{module_name(path)}.ko"
        if source not in tree.files:
            raise UsageError(f"modules.dep: expected paths of modules that are given, got {path[:200]!r}")
        try:
            decompression.write_decompressed(source, into / name, left_bytes)
        except decompression.DecompressionError as error:
            raise UsageError(f"{error}: of modules that reach the root disk, and of all of them together") from error
        left_bytes -= (into / name).stat().st_size
        made[name] = None
    return tuple(made)


def copy_modules(folder: Path, target: Path) -> Tree:
    """Copy the files of a modules folder into a new folder, and decompress .ko.gz, which Debian's kmod cannot read.

    :return: the content of the folder, and what of it is left out.
    :raise UsageError: a module is damaged, cannot be read, or all are too large. :raise OSError: as of the copy.
    """
    target.mkdir(parents=True)
    tree = survey_modules(folder)
    left_bytes = _MOST_IN_ALL_BYTES
    for path in tree.files:
        made = target / path.relative_to(tree.root)
        made.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.name.endswith(".ko.gz"):
                made = made.with_name(made.name.removesuffix(".gz"))
                decompression.write_decompressed(path, made, min(MOST_BYTES, left_bytes))
            else:
                shutil.copyfile(path, made)
        except PermissionError as error:
            raise unreadable_error(path, error) from error
        except decompression.DecompressionError as error:
            raise UsageError(str(error)) from error
        left_bytes -= made.stat().st_size
        if left_bytes < 0:
            raise _too_much(folder, f"more than {format_size(_MOST_IN_ALL_BYTES)}")
    return tree
