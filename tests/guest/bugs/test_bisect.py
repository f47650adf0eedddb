"""`git bisect run` with kernels that the testbed builds: the worked example of docs/kernels.md."""

import json
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.host import paths
from testbed.progress import Silent
from testbed.store import cache
from testbed.store.kernels import build_names, builder, sources
from testbed.store.kernels.source_tree import Tree
from testbed.store.kernels.table import shipped_table
from tests.guest.bugs.test_museum import MUSEUM, testbed
from tests.support import eight_commits
from tests.support.eight_commits import Repository

pytestmark = pytest.mark.kernels


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    """Create a repository of eight commits; remove everything built from it from the cache afterwards."""
    table, root = shipped_table(), paths.folders().cache
    source = await sources.prepare("debian-6.1", table, root, Silent())
    async with cache.locked(cache.build_lock(source.folder), Silent(), "source"):
        Tree(source.folder).apply_changes({})
        made = await eight_commits.make(tmp_path / "linux", source.tree)
    yield made
    for kernel in build_names.list_names(root):
        if kernel.name.startswith("linux-") and kernel.name.split("-")[1] in {commit[:12] for commit in made.commits}:
            builder.remove_build(kernel.name, root)
    for folder in (root / cache.SOURCES).glob("git-*"):
        if (folder / cache.META).is_file() and cache.read_meta(folder)["origin"] == str(made.path):
            shutil.rmtree(folder)
            cache.build_lock(folder).unlink(missing_ok=True)


@pytest.mark.timeout(7200)
async def test_git_bisect_run_finds_the_commit_that_loses_a_charge_and_compare_sees_what_mends_it(
    repository: Repository, tmp_path: Path
) -> None:
    await repository.git("bisect", "start", repository.commits[-1], repository.commits[0])
    words = [sys.executable, "-m", "testbed", "bisect", str(MUSEUM / "bypass.yaml"), "--tree", ".", "--quiet"]
    said = await repository.git("bisect", "run", *words)
    assert f"{repository.loss} is the first bad commit" in said
    root = paths.folders().cache
    built = [
        build_names.find_name(root, kernel)
        for kernel in build_names.list_names(root)
        if kernel.name.startswith("linux-")
    ]
    compiled = sorted(
        int(cache.read_meta(one.folder)["compiled"]) for one in built if one and str(repository.path) in one.origin
    )
    # Up to three steps for seven commits. The first one compiles everything, each later one only what differs.
    assert 2 <= len(compiled) <= 3 and compiled[-1] > 1000 and compiled[-2] < 100
    assert re.search(r"^# first bad commit", await repository.git("bisect", "log"), re.MULTILINE)

    # What the author of a series has: a tree, and a mailbox to apply to it.
    mend = await repository.git(
        "commit-tree", f"{repository.loss}^^{{tree}}", "-p", repository.loss, "-m", "loop: charge memory"
    )
    (tmp_path / "mend.mbx").write_text(await repository.git("format-patch", "--stdout", "-1", mend) + "\n")
    out, _, _ = await testbed(
        tmp_path,
        "compare",
        "oom-tmpfs",
        "--tree",
        f"{repository.path}@main",
        "--series",
        str(tmp_path / "mend.mbx"),
        "--json",
        "--quiet",
    )
    run = json.loads(out)
    assert run["verdict"] == "PASS" and "with 1 patch (loop: charge memory)" in run["kernels"]["patched"]["origin"]
    assert (
        await repository.git("status", "--porcelain") == ""
        and await repository.git("rev-parse", "main") == repository.commits[-1]
    )
