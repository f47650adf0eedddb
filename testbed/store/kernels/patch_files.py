"""Reads the files of a patch series within limits: a mailbox, a patch, a folder, or a quilt series; also compressed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from testbed.errors import BuildError
from testbed.store import decompression
from testbed.store.kernels import mailbox, patches
from testbed.store.kernels.mailbox import ALL_PATCHES, Message, Selection
from testbed.store.kernels.patches import Patch
from testbed.units import format_size

# The largest mailboxes of lore, of a thousand patches for stable kernels, decompress to some 10 MiB.
_MOST_BYTES, _MOST_FILES = 64 << 20, 5_000
_SUFFIXES = (".patch", ".diff", ".mbox", ".mbx", ".eml")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
# Files that editors and patch(1) leave beside a patch.
_LEFTOVER = re.compile(r"\..*|.*(?:~|\.orig|\.rej|\.bak|\.swp)")


def read_patches(path: Path, selection: Selection = ALL_PATCHES) -> tuple[Patch, ...]:
    """Read the patches of a file, or of a folder: ordered by its `series` (quilt), else by their numbers or names.

    :raise BuildError: there are none, they are not one series, or cannot be read.
    """
    try:
        if not path.is_dir():
            return mailbox.select_series(_messages(path), str(path), selection)
        if (path / "series").is_file():
            if selection != ALL_PATCHES:
                raise BuildError(
                    f"{path}: its file `series` already selects patches; --series-version and --series-patches do not "
                    "apply to it"
                )
            return _of_quilt(path, path / "series")
        files = tuple(_files(path))
        messages = [message for file in files for message in _messages(file, of=path)]
    except OSError as error:
        raise BuildError(f"{error.filename or path}: cannot be read as a patch: {error.strerror}") from error
    if not files:
        raise BuildError(f"{path}: expected a file `series` or files *.patch, *.diff, *.mbox, found none")
    return mailbox.select_series(messages, str(path), selection, of_folder=True)


def _of_quilt(folder: Path, quilt: Path) -> tuple[Patch, ...]:
    try:
        listed = patches.parse_quilt_series(_bytes(quilt, folder).decode(), str(quilt))
    except UnicodeDecodeError as error:
        raise BuildError(f"{quilt}: expected UTF-8, a file name in each line: {error}") from error
    series = tuple(
        patch
        for name, strip in listed
        for patch in mailbox.select_series(_messages(folder / name, strip, of=folder), str(folder / name))
    )
    if not series:
        raise BuildError(f"{quilt}: expected names of files, found none")
    return series


def _files(folder: Path) -> Iterator[Path]:
    """Yield the patch files in a folder, or in the two of a maildir (`b4 am -M`), by name, numbers sorted as numbers.

    A patch is recognized by its name, or by the first line that `git format-patch` writes.
    """
    folders = (
        [folder / name for name in ("new", "cur")]
        if (folder / "new").is_dir() and (folder / "cur").is_dir()
        else [folder]
    )
    paths = [path for one in folders for path in one.iterdir() if not _LEFTOVER.fullmatch(path.name)]
    if len(paths) > _MOST_FILES:
        raise BuildError(f"{folder}: expected a folder of patches, found {len(paths)} files in it")
    for path in sorted(
        paths, key=lambda path: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", path.name)]
    ):
        name = path.name.removesuffix(path.suffix) if path.suffix in _COMPRESSED else path.name
        if name.endswith(_SUFFIXES) or len(folders) > 1 or mailbox.is_git_patch(_head(path)):
            yield path


def _head(path: Path) -> bytes:
    """Read the beginning of a file; of anything else, and of an empty file as in /proc, nothing."""
    if not path.is_file() or path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return file.read(200)


def _messages(path: Path, strip: int | None = None, *, of: Path | None = None) -> tuple[Message, ...]:
    return mailbox.parse_messages(_bytes(path, of), str(path), strip)


def _bytes(path: Path, of: Path | None = None) -> bytes:
    """Read a file. `of`: the folder that it was found in, which may be hostile: nothing outside of it is read.

    :raise BuildError: it is not a file, lies elsewhere, or is too large. :raise OSError: it cannot be read.
    """
    # A pipe would be empty when a build reads it again; a device has no end.
    if "\0" in str(path) or (path.exists() and not path.is_file()):
        raise BuildError(f"{path}: expected a file of patches, got something else; write it into a file first")
    if of is not None and not Path(os.path.realpath(path)).is_relative_to(of.resolve()):
        raise BuildError(f"{path}: expected a file of {of}, got one that lies elsewhere")
    try:
        return decompression.read_decompressed(path, _MOST_BYTES)
    except decompression.DecompressionError as error:
        raise BuildError(f"{error}; a series of patches has at most {format_size(_MOST_BYTES)}") from error
