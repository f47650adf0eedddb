"""A kernel's files in a .deb, read with suspicion: regular files of a few folders, and within limits.

Of links only those that lead to a file of the package go along, as another name of that file: what is unpacked has no symbolic link in it.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from testbed.errors import UsageError
from testbed.host import paths, tempdirs
from testbed.store import archives, decompression
from testbed.store.kernels.kernel_image import why_unreadable

# A distribution's kernel and modules unpack to some 0.6 GiB; debug information, ten times as much, is in packages of its own.
MOST_BYTES, _MOST_FILES, _MOST_HOPS = 8 << 30, 100_000, 8
# Of a name, with its folders; those of modules have some 100.
_MOST_NAME_BYTES, _MOST_DEPTH = 255, 32
_FOLDERS = ("boot/", "lib/modules/", "usr/lib/modules/")
# What a file is that is a folder elsewhere in the package, or the other way around.
_CLASHES = (NotADirectoryError, IsADirectoryError, FileExistsError)
# Links of every kernel's modules, to its sources.
_SOURCES = ("build", "source")


def unpack(deb: Path, tree: Path) -> tuple[str, ...]:
    """The kernel, the modules and the configuration that are in a package, into the folder `tree`. Returns what of them is left out, in
    words: links that lead to none of its files, devices, pipes.

    :raise UsageError: it is no package, damaged, too large, or cannot be read. :raise ToolMissing: dpkg-deb is not installed.
    :raise OSError: they cannot be written.
    """
    try:
        deb.open("rb").close()
    except OSError as error:
        raise why_unreadable(deb, error) from error
    with tempdirs.temporary() as folder:
        try:
            with (folder / "tar").open("wb") as file:
                # From the root: one that is called `-x.deb` is no option.
                for piece in decompression.output_of(
                    ("dpkg-deb", "--fsys-tarfile", str(deb.absolute())), str(deb), MOST_BYTES
                ):
                    file.write(piece)
        except decompression.Refused as error:
            raise _none(deb, error) from error
        return pick(folder / "tar", tree, deb)


def _none(deb: Path, why: Exception) -> UsageError:
    return UsageError(f"{deb}: expected a Debian package with files of a kernel: {why}")


def pick(tar: Path, tree: Path, deb: Path) -> tuple[str, ...]:
    """As `unpack`, of the tar in a package; `deb` is how messages call that.

    :raise UsageError: it is damaged, or holds what no package of a kernel does. :raise OSError: its files cannot be written.
    """
    try:
        return _picked(tar, tree)
    except (ValueError, OverflowError, RecursionError, tarfile.TarError, *_CLASHES) as error:
        raise _none(deb, error) from error


def _picked(tar: Path, tree: Path) -> tuple[str, ...]:
    files: set[PurePosixPath] = set()
    links: dict[PurePosixPath, str] = {}
    left_out: list[str] = []
    with archives.open_archive(tar) as archive:
        for number, entry in enumerate(archive):
            name = PurePosixPath(entry.name)
            if name.is_absolute() or ".." in name.parts or number >= _MOST_FILES:
                raise tarfile.TarError(
                    f"expected at most {_MOST_FILES} files, all below its root, got {entry.name[:200]!r}"
                )
            if not str(name).startswith(_FOLDERS) or entry.isdir():
                continue
            if len(os.fsencode(name)) > _MOST_NAME_BYTES or len(name.parts) > _MOST_DEPTH:
                raise tarfile.TarError(
                    f"expected names of at most {_MOST_NAME_BYTES} bytes and {_MOST_DEPTH} folders, got {entry.name[:200]!r}"
                )
            if entry.issym() or entry.islnk():
                links[name] = entry.linkname if entry.issym() else f"/{entry.linkname}"
                files.discard(name)
            elif entry.isreg() and not entry.issparse():
                source = archive.extractfile(entry)
                assert source is not None  # it is a file
                with source, paths.create_file(_free(tree / name)) as file:
                    shutil.copyfileobj(source, file)
                files.add(name)
                links.pop(name, None)
            else:
                left_out.append(f"{name} ({'a sparse file' if entry.issparse() else 'a device or a pipe'})")
    for name, to in links.items():
        target = _file(name, links, files)
        if target is not None:
            _free(tree / name).hardlink_to(tree / target)
        elif name.name not in _SOURCES:
            left_out.append(f"{name} (a link to {to}, which is no file of the package)")
    return tuple(left_out)


def _free(path: Path) -> Path:
    """A path where nothing is yet: what an earlier package, or the same one, has put there goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _file(name: PurePosixPath, links: dict[PurePosixPath, str], files: set[PurePosixPath]) -> PurePosixPath | None:
    """The file of a package that a link leads to, perhaps by others, or None. A path from the root is one of the package."""
    for _ in range(_MOST_HOPS):
        at: list[str] = [] if links[name].startswith("/") else list(name.parent.parts)
        for step in PurePosixPath(links[name]).parts:
            if step == ".." and not at:
                return None
            at = at[:-1] if step == ".." else [*at, step] if step != "/" else at
        name = PurePosixPath(*at)
        if name in files:
            return name
        if name not in links:
            return None
    return None
