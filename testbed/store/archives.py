"""Archives (tar) that somebody else made, read with suspicion."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from testbed import paths
from testbed.errors import HostError

_MOST_AT_ONCE = 16 << 20
_MOST_ENTRIES = 100_000


class _Pieces:
    """A file that is read in pieces: what tar says of a name, or of anything else that is kept in memory, may be as long as the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"expected at most {_MOST_AT_ONCE} bytes of one header, got {size}")
        return self._file.read(size)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """An archive as it is, not a compressed one.

    :raise tarfile.TarError: it is none. :raise OSError: it cannot be read.
    """
    with path.open("rb") as file, tarfile.TarFile(fileobj=_Pieces(file)) as archive:  # type: ignore[arg-type]  # it has all that is called
        yield archive


def unpack(path: Path, folder: Path) -> None:
    """Its files and folders, into a folder that is made where it is not there, and nowhere else: an archive with anything but files and
    folders is refused there, since links have led out of folders whatever was checked before (CVE-2025-4517).

    :raise HostError: it is refused, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root = folder.resolve()
        with opened(path) as archive:
            for number, entry in enumerate(archive):
                name = PurePosixPath(entry.name)
                plain = entry.isdir() or (entry.isreg() and not entry.issparse())
                if not plain or name.is_absolute() or ".." in name.parts or number >= _MOST_ENTRIES:
                    raise tarfile.TarError(f"expected at most {_MOST_ENTRIES} files and folders below it, got {entry.name!r}")
                target = root / name
                if target == root:
                    continue
                if not target.parent.resolve().is_relative_to(root):
                    raise tarfile.TarError(f"a link that was there leads {entry.name!r} out of it")
                if entry.isdir():
                    target.mkdir(exist_ok=True)
                else:
                    _write(archive, entry, target)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise HostError(f"{folder}: what the guest gave cannot be unpacked: {error}") from error


def _write(archive: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(entry)
    assert source is not None  # it is a file
    with source, paths.created(target, 0o777 if entry.mode & 0o100 else 0o666) as file:
        shutil.copyfileobj(source, file)
