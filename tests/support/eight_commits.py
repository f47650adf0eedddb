"""Makes a git repository of Debian's 6.1 source: its first commit is the source, seven more change a file each, and one
of them loses a charge.

The same source gives the same commits. Only its Makefile is checked out: builds read the repository.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.host import process
from testbed.store.kernels.ablations import ABLATIONS, apply_ablation

# For each commit after the first the file that it changes; LOSS stands for the edit of an ablation.
LOSS, ABLATION = "", "no-memory-charge"
_CHANGES = (
    "fs/ext4/super.c",
    "block/blk-core.c",
    "mm/filemap.c",
    "kernel/cgroup/rstat.c",
    LOSS,
    "drivers/nvme/host/core.c",
    "fs/xfs/xfs_super.c",
)
_WHO = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Example"), ("EMAIL", "example@localhost"), ("DATE", "2026-01-01T00:00:00Z"))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """`commits`: from the first to the last; `loss`: the one that a bisection must find."""

    path: Path
    commits: tuple[str, ...]
    loss: str

    async def git(self, *words: str, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
        """Run git in it; return its output."""
        return await _git(self.path, *words, env=env, stdin=stdin)


async def _git(path: Path, *words: str, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    done = await process.run(["git", "-C", path, *words], env=_WHO | dict(env or {}), stdin=stdin, timeout_s=7200)
    return done.stdout.strip()


async def make(path: Path, tree: Path) -> Repository:
    """Make it at `path` from the source in `tree`, which is only read."""
    path.mkdir()
    index = {"GIT_INDEX_FILE": os.fspath(path / ".git" / "index-of-source")}
    await _git(path, "init", "--quiet", "--initial-branch=main")
    for name, value in (("core.looseCompression", "0"), ("core.fsync", "none"), ("gc.auto", "0")):
        await _git(path, "config", name, value)
    await _git(path, f"--work-tree={tree}", "add", "--all", "--force", ".", env=index)

    async def commit(said: str) -> str:
        written = await _git(path, "write-tree", env=index)
        parent = ("-p", commits[-1]) if commits else ()
        return await _git(path, "commit-tree", written, *parent, "-m", said)

    commits: list[str] = []
    commits.append(await commit("Debian's source"))
    for file in _CHANGES:
        changed = (
            apply_ablation(ABLATIONS[ABLATION], lambda name: (tree / name).read_text())
            if file == LOSS
            else {file: (tree / file).read_text() + f"/* changed after {len(commits)} commits */\n"}
        )
        for name, text in changed.items():
            blob = await _git(path, "hash-object", "-w", "--stdin", stdin=text)
            await _git(path, "update-index", "--cacheinfo", f"100644,{blob},{name}", env=index)
        commits.append(await commit(f"{', '.join(changed)}: an edit"))
    await _git(path, "update-ref", "refs/heads/main", commits[-1])
    await _git(path, "sparse-checkout", "set", "--no-cone", "/Makefile")
    await _git(path, "checkout", "--quiet", "main")
    return Repository(path=path, commits=tuple(commits), loss=commits[1 + _CHANGES.index(LOSS)])
