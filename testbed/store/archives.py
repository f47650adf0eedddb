"""Unpacks tar archives that a guest made: nothing outside the target folder, and within limits of size and number."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

from testbed.errors import HostError
from testbed.host import paths

_MOST_AT_ONCE = 16 << 20
# The blocks of one header that tarfile reads one after the other and keeps in memory, as for the map of a sparse file.
_MOST_IN_A_ROW = 1 << 20
# Headers that come before an entry and describe it: a long name, a long link, pax headers of this entry and of all that
# follow. tarfile reads each in a call nested in the one before.
_MOST_HEADERS = 8
_MOST_ENTRIES = 100_000
_MOST_FILE_BYTES = 16 << 30
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
# Keywords of a pax header that are used here (pax(1), and GNU tar's for sparse files); the rest would be kept with each
# entry.
_USED = {
    b"path",
    b"linkpath",
    b"size",
    *(f"GNU.sparse.{key}".encode() for key in ("major", "minor", "name", "size", "realsize", "map")),
}
# GNU tar wrote these for a short time; their reader takes quadratic time.
_SPARSE_0_0 = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_MOST_PAX_VALUE_BYTES = 4096  # PATH_MAX of Linux; a map of a sparse file may have more
# tarfile searches a pax header for this record, before 3.11.10 in quadratic time (CVE-2024-6232). It is put first, so
# that the search ends at once.
_CHARSET = b"38 hdrcharset=ISO-IR 10646 2000 UTF-8\n"


class _BoundedFile:
    """The archive's file as tarfile reads it; limits what tarfile keeps in memory, such as a very long name."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._in_a_row = 0
        self._headers = 0
        self._is_header = self._is_pax = False
        self.tell, self.seekable = file.tell, file.seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        self._in_a_row = 0
        return self._file.seek(offset, whence)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"expected at most {_MOST_AT_ONCE} bytes of one header, got {size}")
        if self._in_a_row and self._in_a_row + size > _MOST_IN_A_ROW:
            raise tarfile.ReadError(f"expected at most {_MOST_IN_A_ROW} bytes of headers of one file, got more")
        self._in_a_row += size
        data = self._file.read(size)
        if self._is_pax:
            data = _used_records(data)
        # Byte 156 of a header is the type of its entry; see tar(5).
        self._is_header, self._is_pax = False, self._is_header and data[156:157] in _PAX
        return data

    @contextlib.contextmanager
    def header(self) -> Iterator[None]:
        """Read one header, and the headers that follow it before their entry."""
        if not self._headers:
            self._in_a_row = 0
        if self._headers == _MOST_HEADERS:
            raise tarfile.ReadError(f"expected at most {_MOST_HEADERS} headers of one file, got more")
        self._headers += 1
        self._is_header = True
        try:
            yield
        finally:
            self._headers -= 1


def _used_records(data: bytes) -> bytes:
    """Return the records of a pax header that are used here; each is `LENGTH KEYWORD=VALUE` and a newline.

    :raise tarfile.ReadError: the header is damaged, or a value is too long.
    """
    kept = [_CHARSET]
    at = 0
    while at < len(data) and data[at]:  # zeros fill the last block
        digits, space, _ = data[at : at + 9].partition(b" ")
        end = at + int(digits) if space and digits.isdigit() else 0
        keyword, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError("expected records in a pax header, each with its length, keyword and value")
        if keyword in _SPARSE_0_0:
            raise tarfile.ReadError("expected a sparse file in GNU tar's format 0.1 or 1.0, got 0.0")
        if keyword in _USED:
            if len(value) > _MOST_PAX_VALUE_BYTES and keyword != b"GNU.sparse.map":
                raise tarfile.ReadError(
                    f"expected at most {_MOST_PAX_VALUE_BYTES} bytes of a pax header's {keyword.decode()}, got more"
                )
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


class _Entry(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read an entry as the base class does, with limits on its headers."""
        file: Any = tarfile.fileobj
        with file.header():
            return super().fromtarfile(tarfile)


class _Archive(tarfile.TarFile):
    """A tar archive that does not keep the entries that it has returned."""

    members: list[tarfile.TarInfo]  # typeshed does not declare it

    def next(self) -> tarfile.TarInfo | None:
        """:raise tarfile.TarError: the archive is damaged, or exceeds a limit."""
        try:
            found = super().next()
        except IndexError as error:
            # Python 3.11's tarfile reads the first byte of a number, also where the archive ends before it.
            raise tarfile.ReadError("expected a whole header, the archive ends within it") from error
        self.members.clear()
        if found is not None and found.size < 0:
            raise tarfile.ReadError(f"{found.name}: expected a size, got {found.size}")
        return found

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while (found := self.next()) is not None:
            yield found


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed archive, to be read once from its beginning to its end.

    :raise tarfile.TarError: it is no tar archive. :raise OSError: it cannot be read.
    """
    bounded: Any  # it has those methods of a file that tarfile calls
    with path.open("rb") as file:
        bounded = _BoundedFile(file)
        with _Archive(fileobj=bounded, tarinfo=_Entry) as archive:
            yield archive


def unpack(path: Path, folder: Path) -> tuple[str, ...]:
    """Unpack files with their holes, folders and links into `folder`, which is created if needed, and nowhere else.

    Symbolic links have led out of folders in spite of every check (CVE-2025-4517): they are made last, when no file is
    written any more, and only where every folder on their way comes from the archive.

    :return: a description of each entry that is left out: links that lead out of the folder, devices, pipes.
    :raise HostError: an entry lies outside the folder, the archive exceeds a limit, or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_archive(path) as archive:
            return _Target(folder.resolve()).unpack(archive)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise HostError(f"{folder}: what the guest gave cannot be unpacked: {error}") from error


def unpack_file(path: Path, target: Path) -> None:
    """Unpack the only file of an archive, with its holes, to `target`. Raises as `unpack`."""
    try:
        with open_archive(path) as archive:
            entry = archive.next()
            if entry is None or not entry.isreg():
                raise tarfile.TarError("expected a file")
            _write(archive, entry, target)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise HostError(f"{target}: what the guest gave cannot be unpacked: {error}") from error


class _Target:
    """A folder that an archive is unpacked into, with what is unpacked so far and what is left out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = {PurePosixPath(".")}
        self._files: set[PurePosixPath] = set()
        self._links: dict[PurePosixPath, str] = {}
        self._left_out: list[str] = []

    def unpack(self, archive: tarfile.TarFile) -> tuple[str, ...]:
        for number, entry in enumerate(archive):
            name = PurePosixPath(entry.name)
            if name.is_absolute() or ".." in name.parts or number >= _MOST_ENTRIES:
                raise tarfile.TarError(
                    f"expected at most {_MOST_ENTRIES} files and folders below it, got {entry.name!r}"
                )
            if name.parts:
                self._add(archive, entry, name)
        for name, to in self._links.items():
            self._link(name, to)
        return tuple(self._left_out)

    def _add(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, name: PurePosixPath) -> None:
        target = self._root / name
        if not target.parent.resolve().is_relative_to(self._root):
            raise tarfile.TarError(f"a link that was there leads {entry.name!r} out of it")
        if entry.isdir():
            if target.is_symlink():
                raise tarfile.TarError(f"expected a folder {entry.name!r}, a link was there")
            target.mkdir(exist_ok=True)
            self._folders.add(name)
        elif entry.isreg():
            _write(archive, entry, target)
            self._files.add(name)
        elif entry.islnk() and PurePosixPath(entry.linkname) in self._files:
            if not target.is_dir():
                target.unlink(missing_ok=True)
            target.hardlink_to(self._root / entry.linkname)
            self._files.add(name)
        elif entry.issym():
            self._links[name] = entry.linkname
        else:
            what = {tarfile.LNKTYPE: f"a hard link to {entry.linkname!r}", tarfile.FIFOTYPE: "a pipe"}.get(
                entry.type, "a device"
            )
            self._left_out.append(f"{entry.name} ({what})")

    def _link(self, name: PurePosixPath, to: str) -> None:
        target = self._root / name
        if (
            name.parent not in self._folders
            or target.parent.resolve() != self._root / name.parent
            or not self._stays_inside(name, to)
        ):
            self._left_out.append(f"{name} (a link to {to!r}, out of what is copied)")
            return
        if target.is_symlink():
            target.unlink()
        target.symlink_to(to)

    def _stays_inside(self, name: PurePosixPath, to: str) -> bool:
        """Tell whether a link leads to a place in the folder, through folders of the archive and no other link."""
        at = list(name.parent.parts)
        steps = [part for part in to.split("/") if part not in ("", ".")]
        for step in steps:
            if PurePosixPath(*at) not in self._folders or (step == ".." and not at):
                return False
            at = at[:-1] if step == ".." else [*at, step]
        return bool(to) and not to.startswith("/")


def _write(archive: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    if entry.size > _MOST_FILE_BYTES:
        raise tarfile.TarError(f"{entry.name}: expected a file of at most {_MOST_FILE_BYTES} bytes, got {entry.size}")
    with contextlib.suppress(FileNotFoundError):
        # A hard link of an earlier copy: writing to it would change the file under its other name as well.
        if target.lstat().st_nlink > 1 and target.is_file():
            target.unlink()
    source = archive.extractfile(entry)
    assert source is not None  # it is a file
    with source, paths.create_file(target, 0o777 if entry.mode & 0o100 else 0o666) as file:
        if not entry.issparse():
            shutil.copyfileobj(source, file)
            return
        for offset, size in _data(entry):
            source.seek(offset)
            file.seek(offset)
            for begin in range(0, size, _MOST_AT_ONCE):
                file.write(source.read(min(size - begin, _MOST_AT_ONCE)))
        file.truncate(entry.size)


def _data(entry: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return where a sparse file has data, as offsets and sizes in bytes.

    :raise tarfile.TarError: the places are not in order, or lie outside the file.
    """
    places: Any = entry.sparse  # typeshed declares it as bytes; unused places have no size
    used: list[tuple[int, int]] = [(offset, size) for offset, size in places if size]
    edges = [0, *itertools.chain.from_iterable((offset, offset + size) for offset, size in used), entry.size]
    if any(before > after for before, after in itertools.pairwise(edges)):
        raise tarfile.TarError(f"{entry.name}: expected the places of its data in order, within {entry.size} bytes")
    return used
