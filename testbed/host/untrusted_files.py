"""Files of folders that a stranger's programs have written to: no link is followed, nothing but a regular file is opened, none without end.

The caller sees to it that no such program runs any more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from testbed.errors import BuildError
from testbed.host import untrusted_folder

_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def open_regular(folder: Path, name: str, limit_bytes: int) -> Iterator[BinaryIO]:
    """The file `name` of a folder, which may be below folders in it.

    :raise BuildError: there is no such regular file, it is behind a link, larger than `limit_bytes`, or cannot be read.
    """
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(untrusted_folder.open_below(folder, str(PurePosixPath(name)), limit_bytes))
        except OSError as error:
            why = str(error.strerror)
            raise BuildError(
                f"{folder / name}: {why if why.startswith('expected') else f'expected a regular file: {why}'}"
            ) from error
        yield file


def text_of_regular(folder: Path, name: str, limit_bytes: int) -> str:
    """What a file of a folder says, with what is no UTF-8 replaced.

    :raise BuildError: as `opened`.
    """
    with open_regular(folder, name, limit_bytes) as file:
        return file.read(limit_bytes).decode("utf-8", "replace")


def copy_file(folder: Path, name: str, target: Path, limit_bytes: int) -> None:
    """Copy the bytes of a file of a folder.

    :raise BuildError: as `opened`.
    """
    with open_regular(folder, name, limit_bytes) as file, target.open("wb") as made:
        shutil.copyfileobj(file, made, _PIECE_BYTES)


def write_file(scratch: Path, folder: Path, name: str, data: bytes) -> None:
    """Make a file of a folder, in place of what has its name; through `scratch`, a folder of ours on the same disk."""
    new = scratch / name
    new.write_bytes(data)
    new.chmod(0o644)
    if (folder / name).is_dir() and not (folder / name).is_symlink():
        remove_folder(folder / name)
    new.replace(folder / name)


def walk(folder: Path) -> Iterator[Path]:
    """All that is below a folder, at any depth, folders before what is in them; links are not followed.

    What cannot be listed is left out, as a path that is longer than the kernel takes.
    """
    waiting = [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as there:
            for entry in there:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def remove_folder(folder: Path) -> None:
    """Remove a folder, as far as that is possible, also one that is nested without end: rmtree calls itself for each level."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)  # noqa: S603, S607 - a folder of ours
