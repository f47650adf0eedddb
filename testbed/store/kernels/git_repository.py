"""Reads git repositories that may be hostile: runs no program that one of them names, and writes nothing to it.

A repository's configuration may name programs (filters, hooks, fsmonitor, fetch helpers), which git runs for everyone
who uses it. Only one command here, rev-parse, reads that configuration, to resolve a commit; it needs no such program.
Everything else uses a repository of our own, with its own configuration, that reads the objects of theirs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import BuildError, HostError
from testbed.host import process, tempdirs, untrusted_files
from testbed.store.kernels import make_output
from testbed.units import MIB

_ASK_S, _COMPARE_S, _CHECK_OUT_S = 60, 300, 1800
# safe.directory: these commands run no program, also in a repository that belongs to another user.
_GIT = (
    *("git", "--no-optional-locks", "--no-replace-objects", "-c", "safe.directory=*"),
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=never"),
)
# No settings of the user or of this machine; and missing objects are never fetched (`protocol.NAME.allow` in a
# repository overrides `protocol.allow`, and GIT_ALLOW_PROTOCOL overrides both; git(1), git-config(1)).
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    # For git before 2.32, which does not know GIT_CONFIG_GLOBAL.
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
}
_CONFIG = """\
[core]
	repositoryformatversion = {version}
	bare = false
	autocrlf = false
	attributesFile = /dev/null
	excludesFile = /dev/null
	fsmonitor = false
	hooksPath = /dev/null
[extensions]
	{extension}
"""
# A kernel's index has 10 MiB.
_MOST_INDEX_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit of a user's repository. `name`: its hash; `folder`: of the tree as the user named it; `git_folder`: its
    `.git`; `objects`: the folder of its objects.
    """

    folder: Path
    git_folder: Path
    objects: Path
    name: str


async def resolve_commit(folder: Path, name: str) -> Commit:
    """Resolve a commit in the repository that contains a folder.

    :raise BuildError: there is no such commit.
    """
    reason, lines = f"{name!r} begins as an option does", []
    if not name.startswith("-"):
        words = ("rev-parse", "--absolute-git-dir", "--git-path", "objects", f"{name}^{{commit}}")
        done = await process.run([*_GIT, "-C", folder, *words], env=git_environment(), timeout_s=_ASK_S, check=False)
        lines = done.stdout.split("\n")[:-1] if done.status == 0 else []
        reason = (done.stderr.strip().splitlines() or ["git gave no reason"])[-1]
    if len(lines) != 3:
        raise BuildError(f"source {folder}: expected a git tree with the commit {name}: {reason}")
    return Commit(folder=folder, git_folder=Path(lines[0]), objects=(folder / lines[1]).resolve(), name=lines[2])


async def count_changed_files(commit: Commit) -> int | None:
    """Count the files of the working tree that differ from the commit; None if that cannot be determined.

    A file that a filter of the repository made counts as changed, unless git's index shows that it is the same.
    """
    folder = commit.folder.absolute()  # git runs in another folder
    top = next((one for one in (folder, *folder.parents) if os.path.lexists(one / ".git")), None)
    if top is None:
        return 0  # a bare repository has no working tree
    try:
        with tempdirs.temporary() as scratch:
            # Copied with its time, by which git knows which files may have changed since.
            untrusted_files.copy_file(commit.git_folder, "index", scratch / "index", _MOST_INDEX_BYTES)
            shutil.copystat(commit.git_folder / "index", scratch / "index")
            where = _own(scratch / "git", commit) | {
                "GIT_WORK_TREE": str(top),
                "GIT_INDEX_FILE": str(scratch / "index"),
            }
            refresh = (*_GIT, "update-index", "-q", "--refresh", "--ignore-submodules")
            await process.run(refresh, env=where, folder=top, timeout_s=_COMPARE_S, check=False)
            words = (
                *_GIT,
                "diff-index",
                "--name-only",
                "-z",
                "--no-renames",
                "--ignore-submodules=all",
                commit.name,
                "--",
            )
            return (await process.run(words, env=where, folder=top, timeout_s=_COMPARE_S)).stdout.count("\0")
    except (BuildError, HostError):
        return None


async def check_out(commit: Commit, own: Path, index: Path, tree: Path, *, clean: bool) -> None:
    """Bring `tree` to a commit; unchanged files keep their times.

    `own`: the folder of our repository for it; `index`: git's index of `tree`; `clean`: remove files that are in no
    commit.

    :raise BuildError: objects of the commit are missing or damaged.
    :raise HostError: this machine's disk or memory ran out.
    """
    where = _own(own, commit) | {"GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(index)}
    for words in (
        ("read-tree", "--no-sparse-checkout", "--reset", "-u", commit.name),
        *([("clean", "-ffdxq")] if clean else []),
    ):
        # Files become readable for every user, since another account builds them.
        argv = ("sh", "-c", 'umask 022; exec "$@"', "git", *_GIT, *words)
        done = await process.run(argv, env=where, folder=tree, timeout_s=_CHECK_OUT_S, check=False)
        if done.status != 0:
            if (line := make_output.machine_error(done.stderr)) is not None:
                raise HostError(f"source {commit.folder}: its commit cannot be checked out: {line}")
            reason = (done.stderr.strip().splitlines() or ["git gave no reason"])[-1]
            raise BuildError(
                f"source {commit.folder}: expected all objects of the commit {commit.name[:12]}: {reason}; "
                "those that a partial clone lacks are not fetched: have git check it out there first"
            )


def _own(folder: Path, commit: Commit) -> dict[str, str | None]:
    """Make our repository in `folder` anew; returns git's environment for it, with the objects of the commit's."""
    for name in ("refs", "objects"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sha256 = len(commit.name) > 40
    extension = "objectFormat = sha256" if sha256 else ""
    (folder / "config").write_text(_CONFIG.format(version=int(sha256), extension=extension), encoding="utf-8")
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
    return git_environment() | {"GIT_DIR": str(folder), "GIT_OBJECT_DIRECTORY": str(commit.objects)}


def git_environment() -> dict[str, str | None]:
    """Return changes of the environment for git on untrusted input: no settings, no GIT_ variables, which a hook that
    runs us may have set, and no fetching.
    """
    none: Mapping[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("GIT_"))
    return {**none, **_ENVIRONMENT}
