"""Sources of kernels in the cache: Debian's packages, tarballs, and commits of a git tree of the user's, which is only read."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import process
from testbed.errors import BuildError, HostError
from testbed.kernels import DebianKernel, KernelTable
from testbed.keys import content_key
from testbed.progress import Progress, Task
from testbed.store import cache
from testbed.store.apt import PrivateApt
from testbed.store.mirror import find_mirror

# Changes when what a source's folder holds changes.
_LAYOUT = 1
_UNPACK_S = 1800
# The user's tree has settings of its own, which may name programs; and it may belong to somebody else than who builds.
_GIT = ("git", "--no-optional-locks", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
# What a hook or an alias of the user's, from which we may run, says of a repository is not said of this one.
_ASK_GIT = ("env", "-u", "GIT_DIR", "-u", "GIT_WORK_TREE", "-u", "GIT_INDEX_FILE", *_GIT)
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source. `folder`: where its tree is in the cache; `key`: of what it holds; `origin`: where it came from, in words.

    `git`: the repository of the user, and the commit, for one whose tree is yet to be brought to it.
    """

    name: str
    key: str
    origin: str
    folder: Path
    git: tuple[Path, str] | None = None

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


async def prepare(spec: str, table: KernelTable, root: Path, progress: Progress) -> Source:
    """The source that a command line names: a row of the kernel table, a folder with a git tree (perhaps @COMMIT), or a tarball.

    :raise BuildError: it is none of them. :raise HostError: it cannot be fetched or unpacked.
    """
    row = table.rows.get(spec)
    if row is not None:
        return await _debian(row, root, progress)
    path, _, commit = (spec, "", "") if Path(spec).expanduser().exists() else spec.rpartition("@")
    found = Path(path or spec).expanduser()
    if found.is_dir():
        return await _git(found, commit or "HEAD", root, progress)
    if found.is_file() and not commit:
        return await _tarball(found, root, progress)
    names = ", ".join(name for name, one in table.rows.items() if one.source)
    raise BuildError(f"source {spec!r}: expected one of {names}, or a git tree FOLDER[@COMMIT], or a tarball; there is no such file")


async def _debian(row: DebianKernel, root: Path, progress: Progress) -> Source:
    if not row.source:
        raise BuildError(f"source {row.name}: the kernel table names no package with its source; give a git tree or a tarball")

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
            await _unpack(tarball, unfinished / "tree", task)
            await asyncio.to_thread(shutil.rmtree, work)
            return {"origin": f"{package.name} {package.version} from {', '.join(row.suites)}", "key": package.sha256}

    folder = root / cache.SOURCES / f"{row.name}-{content_key(_LAYOUT, row.suites, row.source)}"
    return await _kept(row.name, folder, make, progress)


async def _tarball(path: Path, root: Path, progress: Progress) -> Source:
    sha256 = await asyncio.to_thread(cache.file_sha256, path)

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task(f"source {path.name}") as task:
            task.update(detail=f"unpacking {path.name}")
            await _unpack(path, unfinished / "tree", task)
        return {"origin": path.name, "key": sha256}

    return await _kept(path.name.split(".tar")[0], root / cache.SOURCES / f"tarball-{content_key(_LAYOUT, sha256)}", make, progress)


async def _kept(name: str, folder: Path, make: Any, progress: Progress) -> Source:
    await cache.once(folder, make, progress, f"source of {name}", many_files=True)
    meta = cache.read_meta(folder)
    return Source(name=name, key=str(meta["key"]), origin=str(meta["origin"]), folder=folder)


async def _unpack(tarball: Path, tree: Path, task: Task) -> None:
    """:raise BuildError: there is no kernel in it."""
    tree.mkdir()
    try:
        await process.run(["tar", "-C", tree, "--strip-components=1", "--no-same-owner", "-xf", tarball], timeout_s=_UNPACK_S)
    except HostError as error:
        raise BuildError(f"{tarball}: cannot be unpacked: {error}") from error
    version(tree)
    task.update(fraction=0.9)


async def _git(path: Path, commit: str, root: Path, progress: Progress) -> Source:
    """Only names the commit: `checkout` brings the tree in the cache to it."""
    asked = await process.run([*_ASK_GIT, "-C", path, "rev-parse", "--absolute-git-dir", f"{commit}^{{commit}}"], check=False)
    lines = asked.stdout.split("\n")
    if asked.status != 0 or len(lines) < 2:
        said = asked.stderr.strip().splitlines()
        raise BuildError(f"source {path}: expected a git tree with the commit {commit}: {said[-1] if said else 'git gave no reason'}")
    repository, found = Path(lines[0]), lines[1]
    changed = (await process.run([*_ASK_GIT, "-C", path, "status", "--porcelain", "-uno"], timeout_s=300, check=False)).stdout.splitlines()
    if changed and commit == "HEAD":
        progress.note(f"source {path}: {len(changed)} changed files are left out; it is built as it was committed, {found[:12]}")
    path = path.resolve()
    folder = root / cache.SOURCES / f"git-{content_key(_LAYOUT, str(repository))}"
    (folder / "tree").mkdir(parents=True, exist_ok=True)
    (folder / cache.META).write_text(json.dumps({"origin": str(path)}) + "\n", encoding="utf-8")
    return Source(name=f"{path.name}-{found[:12]}", key=found, origin=f"{path} at {found[:12]}", folder=folder, git=(repository, found))


async def checkout(source: Source) -> None:
    """Bring the tree of a git source to its commit; files that are the same keep their times. The repository is only read, and what
    it says of a sparse checkout is not said of this one.

    :raise HostError: git fails.
    """
    assert source.git is not None
    repository, commit = source.git
    environment = {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(source.tree), "GIT_INDEX_FILE": str(source.folder / "index")}
    await process.run(
        [*_GIT, "read-tree", "--no-sparse-checkout", "--reset", "-u", commit], env=environment, folder=source.tree, timeout_s=_UNPACK_S
    )


def version(tree: Path) -> str:
    """The version in a source's Makefile.

    :raise BuildError: it is no kernel's.
    """
    makefile = tree / "Makefile"
    found = dict(_VERSION.findall(makefile.read_text(encoding="utf-8", errors="replace")[:2000])) if makefile.is_file() else {}
    if not {"VERSION", "PATCHLEVEL", "SUBLEVEL"} <= found.keys() or not (tree / "Kconfig").is_file():
        raise BuildError(f"source: expected a kernel's Makefile with VERSION and PATCHLEVEL, and a Kconfig, in {tree}")
    return f"{found['VERSION']}.{found['PATCHLEVEL']}.{found['SUBLEVEL']}{found.get('EXTRAVERSION', '')}"
