"""Git trees of strangers: no program that their configuration names is run, and exactly what is committed is built."""

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from testbed.errors import BuildError
from testbed.progress import Silent
from testbed.store.kernels import builder, git_repository, sources
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels.make_args import MakeArg
from testbed.store.kernels.table import Series
from tests.support.fake_kernel_source import LOOP_C, build, git, tree_of_two_commits
from tests.support.kernel_images import TABLE
from tests.unit.store.kernels.test_builder import Notes


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(args: tuple[MakeArg, ...] = ()) -> Compiler:
        return Compiler(version="gcc 12", through_ccache=False, args=args)

    monkeypatch.setattr(builder, "find_compiler", found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tree_of_two_commits(tmp_path / "linux")


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Create a program that writes to `tmp_path`/ran that it was run, and with which arguments."""
    program = tmp_path / "evil"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >>{tmp_path}/ran\ncat\n')
    program.chmod(0o755)
    return program


def strangers(tree: Path) -> None:
    """Give the tree to another user, if we are root."""
    if os.geteuid() == 0:
        for path in (tree, *tree.rglob("*")):
            os.chown(path, 12345, 12345, follow_symlinks=False)


def hostile(tree: Path, evil: Path) -> None:
    """Name programs wherever git takes them from (configuration, hooks, attributes); make an index entry stale."""
    (tree / ".gitattributes").write_text("* filter=evil diff=evil merge=evil text\n")
    (tree / "modified").write_text("as committed\n")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "attributes")
    for name, value in {
        "filter.evil.clean": str(evil),
        "filter.evil.smudge": str(evil),
        "filter.evil.process": str(evil),
        "filter.evil.required": "true",
        "diff.evil.command": str(evil),
        "diff.evil.textconv": str(evil),
        "merge.evil.driver": str(evil),
        "diff.external": str(evil),
        "core.fsmonitor": str(evil),
        "core.hooksPath": str(tree / "hooks"),
        "core.sshCommand": str(evil),
        "core.gitProxy": str(evil),
        "core.askPass": str(evil),
        "core.pager": str(evil),
        "core.editor": str(evil),
        "core.alternateRefsCommand": str(evil),
        "credential.helper": str(evil),
        "gpg.program": str(evil),
        "pager.rev-parse": str(evil),
        "alias.rev-parse": f"!{evil}",
        "alias.read-tree": f"!{evil}",
        "submodule.recurse": "true",
        "core.worktree": str(tree.parent),
    }.items():
        git(tree, "config", name, value)
    for folder in (tree / "hooks", tree / ".git/hooks"):
        folder.mkdir(exist_ok=True)
        for hook in (
            "post-checkout",
            "post-index-change",
            "reference-transaction",
            "pre-auto-gc",
            "fsmonitor-watchman",
        ):
            shutil.copy(evil, folder / hook)
    (tree / ".git/info").mkdir(exist_ok=True)
    (tree / ".git/info/attributes").write_text("* filter=evil\n")
    # With another time, git must compare the content to know whether the file is as committed.
    os.utime(tree / "modified", (1, 1))


def test_a_hostile_repository_runs_nothing(tmp_path: Path, tree: Path, evil: Path) -> None:
    hostile(tree, evil)
    strangers(tree)
    built = build(tmp_path / "cache", BuildSpec(source=str(tree)))
    assert built.series is Series.AFTER and not (tmp_path / "ran").exists()
    (there,) = tmp_path.glob("cache/sources/git-*/tree")
    assert (there / "modified").read_text() == "as committed\n"
    # Checks that the attack works at all.
    git(tree, "-c", "safe.directory=*", "-c", "core.worktree=.", "status", "--porcelain")
    assert "evil" in (tmp_path / "ran").read_text()


def test_what_a_partial_clone_lacks_is_not_fetched_by_any_program(tmp_path: Path, tree: Path, evil: Path) -> None:
    clone = tmp_path / "clone"
    git(tree, "config", "uploadpack.allowFilter", "true")
    git(tree, "clone", "-q", "--no-local", "--no-checkout", "--filter=blob:none", f"file://{tree}", str(clone))
    for name, value in {
        "remote.origin.uploadpack": str(evil),
        "protocol.allow": "always",
        "protocol.ext.allow": "always",
        "protocol.file.allow": "always",
        "core.sshCommand": str(evil),
    }.items():
        git(clone, "config", name, value)
    strangers(clone)
    for url in (f"file://{tree}", f"ext::{evil} %S", "ssh://host/x"):
        git(clone, "-c", "safe.directory=*", "config", "remote.origin.url", url)
        with pytest.raises(
            BuildError, match=r"expected all objects of the commit \w+: .*a partial clone lacks are not fetched"
        ):
            build(tmp_path / "cache", BuildSpec(source=str(clone)))
        with pytest.raises(BuildError, match="with the commit"):
            build(tmp_path / "cache", BuildSpec(source=f"{clone}@{'1' * 40}"))
        assert not (tmp_path / "ran").exists()


def test_the_environment_of_a_hook_has_git_run_nothing(
    tmp_path: Path, tree: Path, evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "GIT_EXTERNAL_DIFF",
        "GIT_SSH_COMMAND",
        "GIT_SSH",
        "GIT_PROXY_COMMAND",
        "GIT_ASKPASS",
        "GIT_PAGER",
        "GIT_EDITOR",
    ):
        monkeypatch.setenv(name, str(evil))
    monkeypatch.setenv("GIT_TRACE", str(tmp_path / "ran"))
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(tmp_path / "ran"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(evil))
    assert build(tmp_path / "cache", BuildSpec(source=str(tree))).series is Series.AFTER
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["--output=ran", "-h", "--exec-path=/nowhere"])
def test_a_commit_is_no_option(tmp_path: Path, tree: Path, name: str) -> None:
    with pytest.raises(BuildError, match="begins as an option does"):
        asyncio.run(git_repository.resolve_commit(tree, name))


def test_submodules_are_not_entered(tmp_path: Path, tree: Path, evil: Path) -> None:
    inner = tree_of_two_commits(tmp_path / "inner")
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "inner")
    git(tree, "commit", "-qm", "submodule")
    git(tree / "inner", "config", "core.fsmonitor", str(evil))
    git(tree / "inner", "config", "filter.evil.clean", str(evil))
    (tree / "inner/.gitattributes").write_text("* filter=evil\n")
    (tree / "inner/head").touch()
    (tmp_path / "ran").unlink(missing_ok=True)
    strangers(tree)
    build(tmp_path / "cache", BuildSpec(source=str(tree)))
    assert not (tmp_path / "ran").exists()


def test_worktrees_borrowed_objects_and_sha256_are_read(tmp_path: Path, tree: Path) -> None:
    git(tree, "worktree", "add", "-q", str(tmp_path / "second"), "main~1")
    git(tree, "clone", "-q", "--shared", str(tree), str(tmp_path / "borrowed"))
    git(tree, "clone", "-q", "--bare", str(tree), str(tmp_path / "bare"))
    assert build(tmp_path / "cache", BuildSpec(source=str(tmp_path / "second"))).series is Series.BEFORE
    assert build(tmp_path / "cache", BuildSpec(source=str(tmp_path / "borrowed"))).series is Series.AFTER
    assert build(tmp_path / "cache", BuildSpec(source=str(tmp_path / "bare"))).series is Series.AFTER
    assert build(tmp_path / "cache", BuildSpec(source=str(tree / "drivers"))).series is Series.AFTER
    other = tmp_path / "sha256"
    shutil.copytree(tree, other, ignore=shutil.ignore_patterns(".git"))
    subprocess.run(["git", "init", "-q", "--object-format=sha256", other], check=True)
    git(other, "add", ".")
    git(other, "commit", "-qm", "one")
    assert build(tmp_path / "cache", BuildSpec(source=str(other))).series is Series.AFTER


def notes_of(root: Path, tree: Path) -> str:
    notes = Notes()
    asyncio.run(sources.prepare(str(tree), TABLE, root, notes))
    return "\n".join(notes.said)


def test_what_is_not_committed_is_counted_and_where_that_is_not_known_it_is_said(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert notes_of(tmp_path / "cache", tree) == "" == notes_of(tmp_path / "cache", Path("linux"))
    os.utime(tree / "Makefile", (1, 1))
    assert notes_of(tmp_path / "cache", tree) == ""
    (tree / "drivers/block/loop.c").write_text(LOOP_C + "more\n")
    (tree / "Kconfig").unlink()
    assert "2 changed files are left out" in notes_of(tmp_path / "cache", tree)
    (tree / ".git/index").unlink()
    os.mkfifo(tree / ".git/index")
    assert "whether there are any is not known" in notes_of(tmp_path / "cache", tree)


def test_a_checkout_that_was_broken_off_leaves_nothing_of_its_commit(tmp_path: Path, tree: Path) -> None:
    build(tmp_path / "cache", BuildSpec(source=f"{tree}@main~1"))
    (source,) = tmp_path.glob("cache/sources/git-*/")
    # What a killed checkout leaves: some files are of another commit, the index is unchanged.
    (source / "commit").unlink()
    (source / "tree/drivers/block/loop.c").write_text("of another commit\n")
    (source / "tree/of-another-commit.c").write_text("of another commit\n")
    (source / "tree/folder/of").mkdir(parents=True)
    (source / "tree/folder/of/another").write_text("of another commit\n")
    (source / "index.lock").touch()
    assert asyncio.run(planned(tmp_path / "cache", tree, "main~1")) is Series.BEFORE
    assert (source / "tree/drivers/block/loop.c").read_text() == LOOP_C
    assert not (source / "tree/of-another-commit.c").exists() and not (source / "tree/folder").exists()
    assert (source / "commit").read_text() == git(tree, "rev-parse", "main~1").strip()


async def planned(root: Path, tree: Path, commit: str) -> Series:
    kernel_builder = builder.Builder(table=TABLE, root=root, shipped=Path("images"), progress=Silent())
    async with kernel_builder._planned(BuildSpec(source=f"{tree}@{commit}")) as plan:
        return builder._series(plan.source.tree)


def test_a_tarball_with_a_device_or_a_pipe_is_refused_and_its_modes_are_not_kept(tmp_path: Path, tree: Path) -> None:
    (tree / "head").chmod(0o6755)
    (tree / "Kconfig").chmod(0o600)
    words = ["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "linux.tar"), "--exclude=.git", "linux"]
    subprocess.run(words, check=True)
    built = build(tmp_path / "cache", BuildSpec(source=str(tmp_path / "linux.tar")))
    (there,) = tmp_path.glob("cache/sources/tarball-*/tree")
    assert built.series is Series.AFTER and (there / "head").stat().st_mode & 0o7022 == 0
    os.mkfifo(tree / "pipe")
    subprocess.run(words, check=True)
    with pytest.raises(BuildError, match=r"linux\.tar: pipe: expected a file, a folder or a link"):
        build(tmp_path / "cache", BuildSpec(source=str(tmp_path / "linux.tar")))


def packed(tmp_path: Path) -> Path:
    path = tmp_path / "linux.tar.gz"
    subprocess.run(["tar", "-C", str(tmp_path), "-Szcf", str(path), "--exclude=.git", "linux"], check=True)
    return path


def test_links_of_a_tarball_that_lead_out_of_it_are_left_out_and_named(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "secret").write_text("of this machine\n")
    inside = {
        "again": "head",
        "include-prefixes": "drivers",
        "nothing-yet": "include/generated",
        "over": "drivers/../head",
    }
    outside = {
        "shadow": str(tmp_path / "secret"),
        "up": "../" * 30 + "etc",
        "by-another": "up/passwd",
        "self": "self",
        "root": "/",
    }
    for name, to in {**inside, **outside}.items():
        (tree / name).symlink_to(to)
    for again in range(2):  # the second time it is in the cache
        notes = Notes()
        build(tmp_path / "cache", BuildSpec(source=str(packed(tmp_path))), progress=notes)
        (there,) = tmp_path.glob("cache/sources/tarball-*/tree")
        assert {path.name for path in there.rglob("*") if path.is_symlink()} == set(inside), again
        (said,) = (one for one in notes.said if "left out" in one)
        assert said.startswith("source linux.tar.gz: left out: links that lead out of it: ")
        assert all(name in said for name in outside), said


def test_links_and_folders_without_end_hold_nothing_up(tmp_path: Path, tree: Path) -> None:
    """A link of 4,000 characters passes 1,300 folders; in a chain of links, each link passes all folders after it."""
    before = time.process_time()
    for number in range(300):
        (tree / f"l{number}").symlink_to("drivers/../" * 350 + f"l{number + 1}")
    (tree / "l300").symlink_to("head")
    with pytest.raises(
        BuildError, match=r"linux\.tar\.gz: l\d+: expected links that lead over at most 100000 folders in all, got more"
    ):
        build(tmp_path / "cache", BuildSpec(source=str(packed(tmp_path))))
    for number in range(301):
        (tree / f"l{number}").unlink()
    (tree / "/".join("d" * 70)).mkdir(parents=True)
    with pytest.raises(
        BuildError,
        match=r"linux\.tar\.gz: expected a kernel's source, names of at most 1000 bytes, below 64 folders, got",
    ):
        build(tmp_path / "cache", BuildSpec(source=str(packed(tmp_path))))
    assert time.process_time() - before < 30
    assert not [*tmp_path.glob("cache/sources/tarball-*/tree"), *tmp_path.glob("cache/sources/.unfinished-*")]


def test_a_tarball_that_unpacks_to_far_more_than_a_source_is_refused(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str) -> None:
        with pytest.raises(BuildError, match=match):
            build(tmp_path / "cache", BuildSpec(source=str(packed(tmp_path))))
        assert not [*tmp_path.glob("cache/sources/tarball-*/tree"), *tmp_path.glob("cache/sources/.unfinished-*")]

    with (tree / "hole").open("wb") as file:
        file.truncate(1 << 40)
    refused(r"linux\.tar\.gz: expected a kernel's source, at most 500000 files of 8G in all, got more")
    (tree / "hole").write_bytes(bytes(4 << 20))
    monkeypatch.setattr(sources, "_MOST_BYTES", 2 << 20)
    refused(r"linux\.tar\.gz: cannot be unpacked: .*expected at most 2M when it is unpacked")
    (tree / "hole").unlink()
    monkeypatch.setattr(sources, "_MOST_FILES", 5)
    refused(r"at most 5 files")
