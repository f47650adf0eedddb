"""Reads and writes files in folders that a stranger, or a stranger's program, may have filled.

Follows no link, opens regular files only, and bounds their sizes. The folder itself is the one that the caller named,
and may be reached through links. Each step of a name below it is opened relative to the step above (openat(2)) with
O_NOFOLLOW: a link put there meanwhile is an error and not a way out.

`open_below` and the other `..._below` functions raise OSError. `open_regular`, `text_of_regular` and `copy_file` raise
BuildError: their callers read what a build has left, and make sure that none of its processes runs any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from testbed.errors import BuildError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def open_below(folder: Path, name: str, most_bytes: int) -> Iterator[BinaryIO]:
    """Open the regular file `name`, such as `guests/g0/console.log`, for reading.

    :raise FileNotFoundError: the file does not exist.
    :raise OSError: it is not a regular file, a link is in its path, it is larger than `most_bytes`, or it cannot be
        read.
    """
    with _parent_of(folder, name) as (parent, last):
        # Check before opening: opening some devices has side effects.
        _check_regular(os.stat(last, dir_fd=parent, follow_symlinks=False), folder / name)
        descriptor = os.open(last, _FILE, dir_fd=parent)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _check_regular(status, folder / name)
        if status.st_nlink > 1 and status.st_uid != folder.stat().st_uid:
            # A hard link leads out of the folder like any other.
            raise OSError(
                errno.EACCES,
                "expected a file of the folder's owner, got a hard link to somebody else's",
                str(folder / name),
            )
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, got {status.st_size}", str(folder / name))
        yield file


def read_below(folder: Path, name: str, most_bytes: int) -> bytes:
    """Read a whole file; raises as `open_below`."""
    with open_below(folder, name, most_bytes) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, it has grown", str(folder / name))
    return data


def exists_below(folder: Path, name: str) -> bool:
    """Tell whether the folder has an entry of that name; a link counts, whatever it leads to."""
    return _mode(folder, name) != 0


def is_file_below(folder: Path, name: str) -> bool:
    """Tell whether the name is a regular file, reached without a link."""
    return stat.S_ISREG(_mode(folder, name))


def is_folder_below(folder: Path, name: str) -> bool:
    """Tell whether the name is a folder, reached without a link."""
    return stat.S_ISDIR(_mode(folder, name))


def names_below(folder: Path, name: str = "") -> list[str]:
    """List the entries of the folder, or of one below it, sorted; none if it does not exist, or a link is in its path.

    :raise OSError: it cannot be read.
    """
    try:
        with _open_folder(folder, _steps(folder, name) if name else []) as descriptor:
            return sorted(os.listdir(descriptor))  # noqa: PTH208 - pathlib cannot list a descriptor
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_below(folder: Path, name: str, text: str) -> None:
    """Write the file `name` atomically. A link of that name is replaced; its target is not touched.

    :raise OSError: it cannot be written.
    """
    # The name cannot be guessed, and an existing file of that name is never written to.
    unfinished = f".{name}.{secrets.token_hex(4)}.unfinished"
    with _parent_of(folder, name) as (parent, last):
        descriptor = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent
        )
        try:
            # A guest's output may contain lone surrogates.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            os.replace(unfinished, last, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished, dir_fd=parent)
            raise


@contextlib.contextmanager
def open_regular(folder: Path, name: str, limit_bytes: int) -> Iterator[BinaryIO]:
    """Open the file `name` of a build's folder, which may be in folders below it.

    :raise BuildError: it is not a regular file, a link is in its path, it is larger than `limit_bytes`, or it cannot be
        read.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_below(folder, str(PurePosixPath(name)), limit_bytes))
        except OSError as error:
            why = str(error.strerror)
            raise BuildError(
                f"{folder / name}: {why if why.startswith('expected') else f'expected a regular file: {why}'}"
            ) from error
        yield file


def text_of_regular(folder: Path, name: str, limit_bytes: int) -> str:
    """Read the text of a build's file; bytes that are not UTF-8 are replaced.

    :raise BuildError: as `open_regular`.
    """
    with open_regular(folder, name, limit_bytes) as file:
        return file.read(limit_bytes).decode("utf-8", "replace")


def copy_file(folder: Path, name: str, target: Path, limit_bytes: int) -> None:
    """Copy the bytes of a build's file to `target`.

    :raise BuildError: as `open_regular`.
    """
    with open_regular(folder, name, limit_bytes) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, _CHUNK_BYTES)


def write_file(scratch: Path, folder: Path, name: str, data: bytes) -> None:
    """Write a file of a build's folder, in place of any entry of that name; `scratch` is a folder of ours on the same
    disk.
    """
    new = scratch / name
    new.write_bytes(data)
    new.chmod(0o644)
    if (folder / name).is_dir() and not (folder / name).is_symlink():
        remove_folder(folder / name)
    new.replace(folder / name)


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder, at any depth, each folder before its entries; links are not followed.

    Folders that cannot be listed are skipped, such as one whose path is longer than the kernel accepts.
    """
    waiting = [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def remove_folder(folder: Path) -> None:
    """Remove a folder as far as possible, however deeply it is nested: shutil.rmtree recurses once for each level."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        command: list[str | Path] = ["rm", "-rf", "--", folder]
        subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - a folder of ours


def _mode(folder: Path, name: str) -> int:
    """Return the mode of an entry, 0 if there is none."""
    try:
        with _parent_of(folder, name) as (parent, last):
            return os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        return 0


def _steps(folder: Path, name: str) -> list[str]:
    """Split a name into its steps.

    :raise OSError: it does not name an entry below the folder.
    """
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
def _parent_of(folder: Path, name: str) -> Iterator[tuple[int, str]]:
    """Open the folder that holds an entry; yields its descriptor and the last step of the name."""
    *steps, last = _steps(folder, name)
    with _open_folder(folder, steps) as parent:
        yield parent, last


@contextlib.contextmanager
def _open_folder(folder: Path, steps: list[str]) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for step in steps:
            below = os.open(step, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _check_regular(status: os.stat_result, path: Path) -> None:
    """:raise OSError: it is not a regular file."""
    if stat.S_ISREG(status.st_mode):
        return
    kind = "a pipe, a socket or a device"
    if stat.S_ISLNK(status.st_mode):
        kind = "a link"
    elif stat.S_ISDIR(status.st_mode):
        kind = "a folder"
    number = errno.ELOOP if kind == "a link" else errno.EINVAL
    raise OSError(number, f"expected a regular file, got {kind}", str(path))
