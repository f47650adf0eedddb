"""Reads and writes files below a folder that a stranger may have filled: follows no link, opens regular files only, bounds their sizes.

The folder itself is what the caller named, and may be reached through links. Each step of a name below it is opened from the one above
(openat(2)) with O_NOFOLLOW, so that a link which is put there meanwhile is an error and not a way out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@contextlib.contextmanager
def open_below(folder: Path, name: str, most_bytes: int) -> Iterator[BinaryIO]:
    """Open the regular file `name`, such as `guests/g0/console.log`, for reading.

    :raise FileNotFoundError: there is none. :raise OSError: it is something else, a link is in its way, it has more than `most_bytes`, or
        it cannot be read.
    """
    with _above(folder, name) as (above, last):
        # What is no file is not opened at all: some devices do something when they are.
        _check_regular(os.stat(last, dir_fd=above, follow_symlinks=False), folder / name)
        descriptor = os.open(last, _FILE, dir_fd=above)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_regular(found, folder / name)
        if found.st_nlink > 1 and found.st_uid != folder.stat().st_uid:
            # A hard link leads out of the folder like any other.
            raise OSError(
                errno.EACCES,
                "expected a file of the folder's owner, got a hard link to somebody else's",
                str(folder / name),
            )
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, got {found.st_size}", str(folder / name))
        yield file


def read_below(folder: Path, name: str, most_bytes: int) -> bytes:
    """Read all of a file; raises as `opened`."""
    with open_below(folder, name, most_bytes) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, it has grown", str(folder / name))
    return data


def exists_below(folder: Path, name: str) -> bool:
    """Tell whether there is anything of that name, be it a link."""
    return _mode(folder, name) != 0


def is_file_below(folder: Path, name: str) -> bool:
    """Whether there is a regular file of that name, and no link leads to it."""
    return stat.S_ISREG(_mode(folder, name))


def is_folder_below(folder: Path, name: str) -> bool:
    """Whether there is a folder of that name, and no link leads to it."""
    return stat.S_ISDIR(_mode(folder, name))


def names_below(folder: Path, name: str = "") -> list[str]:
    """What the folder holds, or one below it, sorted; nothing, where there is none, or a link is in its way.

    :raise OSError: it cannot be read.
    """
    try:
        with _folder(folder, _steps(folder, name) if name else []) as descriptor:
            return sorted(os.listdir(descriptor))  # noqa: PTH208 - a descriptor, of which pathlib has none
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_below(folder: Path, name: str, text: str) -> None:
    """Write the file `name` of the folder, as a whole or not at all. A link of that name is replaced, and what it leads to is not touched.

    :raise OSError: it cannot be written.
    """
    # Nobody knows the name beforehand, and what has it already is not written to.
    unfinished = f".{name}.{secrets.token_hex(4)}.unfinished"
    with _above(folder, name) as (above, last):
        descriptor = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=above
        )
        try:
            # What a guest said may hold lone surrogates.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            os.replace(unfinished, last, src_dir_fd=above, dst_dir_fd=above)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished, dir_fd=above)
            raise


def _mode(folder: Path, name: str) -> int:
    try:
        with _above(folder, name) as (above, last):
            return os.stat(last, dir_fd=above, follow_symlinks=False).st_mode
    except OSError:
        return 0


def _steps(folder: Path, name: str) -> list[str]:
    """:raise OSError: it is no name of something below the folder."""
    steps = name.split("/")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        steps = []
    if not steps or any(step in ("", ".", "..") or "\0" in step for step in steps):
        raise OSError(
            errno.EINVAL, f"expected the name of something below this folder, got {name[:100]!r}", str(folder)
        )
    return steps


@contextlib.contextmanager
def _above(folder: Path, name: str) -> Iterator[tuple[int, str]]:
    """The folder that a name is in, as a descriptor, and the name's last step."""
    *steps, last = _steps(folder, name)
    with _folder(folder, steps) as above:
        yield above, last


@contextlib.contextmanager
def _folder(folder: Path, steps: list[str]) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for step in steps:
            below = os.open(step, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _check_regular(found: os.stat_result, path: Path) -> None:
    """:raise OSError: it is no regular file."""
    if not stat.S_ISREG(found.st_mode):
        what = (
            "a link"
            if stat.S_ISLNK(found.st_mode)
            else "a folder"
            if stat.S_ISDIR(found.st_mode)
            else "a pipe, a socket or a device"
        )
        raise OSError(
            errno.ELOOP if what == "a link" else errno.EINVAL, f"expected a regular file, got {what}", str(path)
        )
