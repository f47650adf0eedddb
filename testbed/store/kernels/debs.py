"""Unpacks a kernel's files from a .deb that may be hostile: regular files of a few folders, and within limits.

A link to a file of the package becomes a hard link; all other links are left out, so that there are no symbolic links
in what is unpacked.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from testbed.errors import UsageError
from testbed.host import paths, tempdirs
from testbed.store import archives, decompression
from testbed.store.kernels.kernel_image import unreadable_error

# A distribution's kernel and modules unpack to some 0.6 GiB; debug information is ten times as large, and in packages
# of its own.
MOST_BYTES, _MOST_FILES, _MOST_HOPS = 8 << 30, 100_000, 8
# The limit of a name with its folders; names of modules have some 100 bytes.
_MOST_NAME_BYTES, _MOST_DEPTH = 255, 32
_FOLDERS = ("boot/", "lib/modules/", "usr/lib/modules/")
# Errors for a path that is a file in one entry of a package and a folder in another.
_CLASHES = (NotADirectoryError, IsADirectoryError, FileExistsError)
# Links to the sources, which every kernel's modules have.
_SOURCES = ("build", "source")


def unpack(deb: Path, tree: Path) -> tuple[str, ...]:
    """Unpack the kernel, the modules and the configuration of a package into the folder `tree`.

    :return: a description of each entry that is left out: links to no file of the package, devices, pipes.
    :raise UsageError: it is not a package, damaged, too large, or unreadable.
    :raise ToolMissing: dpkg-deb is not installed. :raise OSError: the files cannot be written.
    """
    try:
        deb.open("rb").close()
    except OSError as error:
        raise unreadable_error(deb, error) from error
    with tempdirs.temporary() as folder:
        try:
            with (folder / "tar").open("wb") as file:
                # An absolute path, so that a file called `-x.deb` is not taken for an option.
                for piece in decompression.program_output(
                    ("dpkg-deb", "--fsys-tarfile", str(deb.absolute())), str(deb), MOST_BYTES
                ):
                    file.write(piece)
        except decompression.DecompressionError as error:
            raise _not_a_kernel_package(deb, error) from error
        return unpack_tar(folder / "tar", tree, deb)


def _not_a_kernel_package(deb: Path, why: Exception) -> UsageError:
    return UsageError(f"{deb}: expected a Debian package with files of a kernel: {why}")


def unpack_tar(tar: Path, tree: Path, deb: Path) -> tuple[str, ...]:
    """Unpack the tar of a package as `unpack` does; `deb` is the package's name in messages.

    :raise UsageError: it is damaged, or has entries that no kernel package has. :raise OSError: as `unpack`.
    """
    try:
        return _unpack_entries(tar, tree)
    except (ValueError, OverflowError, RecursionError, tarfile.TarError, *_CLASHES) as error:
        raise _not_a_kernel_package(deb, error) from error


def _unpack_entries(tar: Path, tree: Path) -> tuple[str, ...]:
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
                    f"expected names of at most {_MOST_NAME_BYTES} bytes and {_MOST_DEPTH} folders, "
                    f"got {entry.name[:200]!r}"
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
    """Make a path free, and create its folder: removes what an earlier entry, or an earlier package, has put there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _file(name: PurePosixPath, links: dict[PurePosixPath, str], files: set[PurePosixPath]) -> PurePosixPath | None:
    """Return the file of a package that a link leads to, perhaps through others, or None. Absolute paths are in the
    package.
    """
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
