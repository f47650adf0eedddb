"""A kernel's files in a .deb, read with suspicion: regular files of a few folders, no links, and within limits."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from testbed import held
from testbed.errors import UsageError
from testbed.store import archives, inflate
from testbed.store.kernel_image import unreadable

# A distribution's kernel and modules unpack to some 0.6 GiB; debug information, ten times as much, is in packages of its own.
MOST_BYTES, _MOST_FILES = 8 << 30, 100_000
_FOLDERS = ("boot/", "lib/modules/", "usr/lib/modules/")


def unpack(deb: Path, tree: Path) -> None:
    """The kernel, the modules and the configuration that are in a package, into the folder `tree`.

    :raise UsageError: it is no package, damaged, too large, or cannot be read. :raise ToolMissing: dpkg-deb is not installed.
    :raise OSError: they cannot be written.
    """
    try:
        deb.open("rb").close()
    except OSError as error:
        raise unreadable(deb, error) from error
    with held.temporary() as folder:
        try:
            with (folder / "tar").open("wb") as file:
                for piece in inflate.output_of(("dpkg-deb", "--fsys-tarfile", str(deb)), str(deb), MOST_BYTES):
                    file.write(piece)
            _pick(folder / "tar", tree)
        except (inflate.Refused, ValueError, RecursionError, tarfile.TarError, NotADirectoryError, IsADirectoryError) as error:
            raise UsageError(f"{deb}: expected a Debian package with files of a kernel: {error}") from error


def _pick(tar: Path, tree: Path) -> None:
    """A link is passed over: of a kernel's packages they lead to its sources."""
    with archives.opened(tar) as archive:
        for number, entry in enumerate(archive):
            name = PurePosixPath(entry.name)
            if name.is_absolute() or ".." in name.parts or number >= _MOST_FILES:
                raise tarfile.TarError(f"expected at most {_MOST_FILES} files, all below its root, got {entry.name!r}")
            if not str(name).startswith(_FOLDERS) or not entry.isreg() or entry.issparse():
                continue
            source = archive.extractfile(entry)
            assert source is not None  # it is a file
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            with source, (tree / name).open("wb") as file:
                shutil.copyfileobj(source, file)
