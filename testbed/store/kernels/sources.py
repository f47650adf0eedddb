"""Prepares kernel sources in the cache: Debian's packages, tarballs, and commits of a user's git tree, which is
only read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.errors import BuildError, HostError
from testbed.hashing import content_key, file_sha256
from testbed.host import process, untrusted_files
from testbed.progress import Progress, Task
from testbed.store import cache, decompression
from testbed.store.apt import PrivateApt
from testbed.store.kernels import git_repository
from testbed.store.kernels.git_repository import Commit
from testbed.store.kernels.table import DebianKernel, KernelTable
from testbed.store.mirror import find_mirror
from testbed.units import MIB, format_size

# Change it when the content of a source's folder changes.
_LAYOUT = 1
_UNPACK_S = 1800
_MOST_TEXT_BYTES = 64 * MIB
# Linux 6.12 unpacks to 1.5 GiB in 90,000 files. `_TARBALLS`: change it when other parts of a tarball are unpacked.
_MOST_BYTES, _MOST_FILES, _TARBALLS = 8 << 30, 500_000, 1
# Linux 6.12 has names of 130 bytes, below 12 folders; its 80 links lead over 10 folders each. In Linux, a path may
# lead through 40 links.
_MOST_NAME_BYTES, _MOST_DEPTH, _MOST_HOPS, _MOST_STEPS = 1000, 64, 40, 100_000
_MOST_NAMED = 5
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source. `folder`: of its tree in the cache; `key`: of its content; `origin`: where it came from, in words.

    `commit`: of the user's repository, for a tree that is not checked out yet; `signed`: Debian's signature covers it.
    """

    name: str
    key: str
    origin: str
    folder: Path
    commit: Commit | None = None
    signed: bool = False

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def readable_mark(self) -> Path:
        """A file that exists once every user may read the tree."""
        return self.folder / "shown"


async def prepare(spec: str, table: KernelTable, root: Path, progress: Progress) -> Source:
    """Prepare the source that a command line names: a row of the kernel table, a git tree (FOLDER[@COMMIT]), a tarball.

    :raise BuildError: it is none of these. :raise HostError: it cannot be fetched or unpacked.
    """
    row = table.rows.get(spec)
    if row is not None:
        return await _debian(row, root, progress)
    path, _, revision = (spec, "", "") if Path(spec).expanduser().exists() else spec.rpartition("@")
    place = Path(path or spec).expanduser()
    if place.is_dir():
        return await _git(place, revision or "HEAD", root, progress)
    if place.is_file() and not revision:
        return await _tarball(place, root, progress)
    names = ", ".join(name for name, one in table.rows.items() if one.source)
    raise BuildError(
        f"source {spec!r}: expected one of {names}, or a git tree FOLDER[@COMMIT], or a tarball; there is no such file"
    )


async def _debian(row: DebianKernel, root: Path, progress: Progress) -> Source:
    if not row.source:
        raise BuildError(
            f"source {row.name}: the kernel table names no package with its source; give a git tree or a tarball"
        )

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task(f"source of {row.name}") as task:
            work = unfinished / "work"
            apt = PrivateApt(work / "apt", await find_mirror(), row.suites)
            await apt.update(task)
            package = await apt.show(row.source)
            (work / "debs").mkdir()
            (deb,) = await apt.download((package,), work / "debs", task)
            task.update(fraction=0.3, detail=f"unpacking {package.name} {package.version}")
            await process.run(["dpkg-deb", "-x", deb, work / "package"], timeout_s=_UNPACK_S)
            (tarball,) = (work / "package/usr/src").glob("linux-source-*.tar.xz")
            await _unpack(tarball, unfinished / "tree", task)  # Debian's tarball has no links that lead out of it
            await asyncio.to_thread(shutil.rmtree, work)
            return {"origin": f"{package.name} {package.version} from {', '.join(row.suites)}", "key": package.sha256}

    folder = root / cache.SOURCES / f"{row.name}-{content_key(_LAYOUT, row.suites, row.source)}"
    return replace(await _make_once(row.name, folder, make, progress), signed=True)


async def _tarball(path: Path, root: Path, progress: Progress) -> Source:
    sha256 = await asyncio.to_thread(file_sha256, path)

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task(f"source {path.name}") as task:
            task.update(detail=f"unpacking {path.name}")
            left_out = await _unpack(path, unfinished / "tree", task)
        return {"origin": path.name, "key": sha256, "left_out": list(left_out)}

    folder = root / cache.SOURCES / f"tarball-{content_key(_LAYOUT, _TARBALLS, sha256)}"
    source = await _make_once(path.name.split(".tar")[0], folder, make, progress)
    if gone := cache.read_meta(folder).get("left_out"):
        more = f" and {len(gone) - _MOST_NAMED} more" if len(gone) > _MOST_NAMED else ""
        progress.note(
            f"source {path.name}: left out: links that lead out of it: {', '.join(map(str, gone[:_MOST_NAMED]))}{more}"
        )
    return source


async def _make_once(name: str, folder: Path, make: Any, progress: Progress) -> Source:
    await cache.make_once(folder, make, progress, f"source of {name}", many_files=True)
    meta = cache.read_meta(folder)
    return Source(name=name, key=str(meta["key"]), origin=str(meta["origin"]), folder=folder)


async def _unpack(tarball: Path, tree: Path, task: Task) -> tuple[str, ...]:
    """Unpack the tree in an archive; returns the links that lead out of it, which are left out.

    :raise BuildError: it has no kernel source, entries other than files, folders and links, or far too many of them.
    """
    tree.mkdir()
    plain = tree.with_name("tar")
    words = (
        "tar",
        "-C",
        str(tree),
        "--strip-components=1",
        "--no-same-owner",
        "--no-same-permissions",
        "-xf",
        str(plain),
    )
    try:
        await asyncio.to_thread(decompression.write_decompressed, tarball, plain, _MOST_BYTES)
        await process.run(("sh", "-c", 'umask 022; exec "$@"', "tar", *words), timeout_s=_UNPACK_S)
    except (HostError, decompression.DecompressionError) as error:
        raise BuildError(f"{tarball}: cannot be unpacked: {error}") from error
    finally:
        plain.unlink(missing_ok=True)
    left_out = await asyncio.to_thread(_only_files, tarball, tree)
    read_version(tree)
    task.update(fraction=0.9)
    return left_out


def _only_files(tarball: Path, tree: Path) -> tuple[str, ...]:
    """Remove the links of a tree that lead out of it; returns them.

    :raise BuildError: the tree has a device (which root unpacks), a pipe or a socket, or is larger than a kernel's
    source.
    """
    links, count, size_bytes = _Links(tree), 0, 0
    left_out: list[Path] = []
    for path in untrusted_files.walk(tree):
        name = str(path)[len(str(tree)) + 1 :]
        if len(os.fsencode(name)) > _MOST_NAME_BYTES or name.count("/") > _MOST_DEPTH:
            most = f"names of at most {_MOST_NAME_BYTES} bytes, below {_MOST_DEPTH} folders"
            raise BuildError(f"{tarball}: expected a kernel's source, {most}, got {name[:100]}...")
        status = path.lstat()
        count, size_bytes = count + 1, size_bytes + status.st_size
        if count > _MOST_FILES or size_bytes > _MOST_BYTES:
            most = f"at most {_MOST_FILES} files of {format_size(_MOST_BYTES)} in all"
            raise BuildError(f"{tarball}: expected a kernel's source, {most}, got more")
        if stat.S_ISLNK(status.st_mode):
            try:
                stays = links.stays_inside(path)
            except OSError as error:
                raise BuildError(f"{tarball}: {name}: {error.strerror}") from error
            if not stays:
                left_out.append(path)
        elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise BuildError(f"{tarball}: {name}: expected a file, a folder or a link, got something else")
    for path in left_out:  # only now: another link may lead out through this one
        path.unlink()
    return tuple(str(path.relative_to(tree)) for path in left_out)


class _Links:
    """Follows the links of a tree, with a limit on the steps of all together that no kernel's source reaches."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._steps = 0

    def stays_inside(self, link: Path) -> bool:
        """Whether a link leads to a path in the tree, which need not exist, perhaps through other links.

        :raise OSError: all links together take too many steps, or one cannot be read.
        """
        at, hops = list(link.parent.relative_to(self._tree).parts), 0
        ahead = [link.name]  # the next step last
        while ahead:
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise OSError(
                    errno.ELOOP, f"expected links that lead over at most {_MOST_STEPS} folders in all, got more"
                )
            step = ahead.pop()
            if step == "..":
                if not at:
                    return False
                at.pop()
                continue
            path = self._tree.joinpath(*at, step)
            if len(at) > 2 * _MOST_DEPTH or len(os.fsencode(step)) > _MOST_NAME_BYTES:
                return False
            if not os.path.islink(path):  # noqa: PTH114 - pathlib raises an error for a name that no file can have
                at.append(step)
                continue
            to, hops = os.readlink(path), hops + 1  # noqa: PTH115 - a string is needed
            if to.startswith("/") or hops > _MOST_HOPS:
                return False
            ahead += [one for one in reversed(to.split("/")) if one not in ("", ".")]
        return True


async def _git(path: Path, revision: str, root: Path, progress: Progress) -> Source:
    """Find the commit; `check_out` later brings the tree in the cache to it."""
    commit = await git_repository.resolve_commit(path, revision)
    changed = await git_repository.count_changed_files(commit) if revision == "HEAD" else 0
    if changed is None:
        progress.note(f"source {path}: uncommitted changes are left out; whether there are any is not known")
    elif changed:
        progress.note(
            f"source {path}: {changed} changed files are left out; the committed state is built, {commit.name[:12]}"
        )
    path = path.resolve()
    folder = root / cache.SOURCES / f"git-{content_key(_LAYOUT, str(commit.git_folder))}"
    (folder / "tree").mkdir(parents=True, exist_ok=True)
    (folder / cache.META).write_text(json.dumps({"origin": str(path)}) + "\n", encoding="utf-8")
    return Source(
        name=f"{path.name}-{commit.name[:12]}",
        key=commit.name,
        origin=f"{path} at {commit.name[:12]}",
        folder=folder,
        commit=commit,
    )


async def check_out(source: Source, commit: Commit, *, clean: bool) -> None:
    """Bring the tree of a git source to a commit; unchanged files keep their times.

    `clean`: also remove files that are in no commit.

    :raise BuildError: objects of the commit are missing. :raise HostError: this machine's disk or memory ran out.
    """
    await git_repository.check_out(commit, source.folder / "git", source.folder / "index", source.tree, clean=clean)


def read_version(tree: Path) -> str:
    """Return the version in a source's Makefile.

    :raise BuildError: it is not a kernel's source.
    """
    fields: dict[str, str] = {}
    with contextlib.suppress(BuildError):
        fields = dict(_VERSION.findall(untrusted_files.text_of_regular(tree, "Makefile", _MOST_TEXT_BYTES)[:2000]))
    if not {"VERSION", "PATCHLEVEL", "SUBLEVEL"} <= fields.keys() or not (tree / "Kconfig").is_file():
        raise BuildError(f"source: expected a kernel's Makefile with VERSION and PATCHLEVEL, and a Kconfig, in {tree}")
    if (tree / "mAKEFILE").exists():
        what = "expected a file system that distinguishes xt_DSCP.h from xt_dscp.h, for a kernel's source has both"
        raise HostError(f"source: {what}, got one that does not: {tree}; set TESTBED_CACHE to a folder on another")
    return f"{fields['VERSION']}.{fields['PATCHLEVEL']}.{fields['SUBLEVEL']}{fields.get('EXTRAVERSION', '')}"
