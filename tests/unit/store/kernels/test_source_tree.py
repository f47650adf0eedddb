"""Patches applied to a source tree: impossible changes are refused before anything is written, and after a run that was
killed at any moment the next run completes the tree.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import BuildError
from testbed.store.kernels import source_tree
from testbed.store.kernels.patches import Patch
from testbed.store.kernels.source_tree import Content, Tree
from tests.unit.store.kernels.test_patches import LOOP, diff, planned, tree_of


def new(path: str, text: str = "new", mode: str = "100644") -> str:
    return f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{text}\n"


def deletion(path: str, text: str) -> str:
    return (
        f"diff --git a/{path} b/{path}\ndeleted file mode 100644\n--- a/{path}\n+++ /dev/null\n@@ -1 +0,0 @@\n-{text}\n"
    )


def of(*texts: str) -> tuple[Patch, ...]:
    return tuple(Patch(name=f"{number}.patch", subject="p", text=text) for number, text in enumerate(texts, 1))


def read_tree(folder: Path) -> dict[str, str | None]:
    """Return the content of a tree by path: the text of a file, None for a folder."""
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def tree_with(folder: Path) -> Tree:
    """Make `tree_of` with a folder `lone` that has one file, and a file `file`."""
    tree = tree_of(folder, file="1\n")
    (folder / "tree/lone/below").mkdir(parents=True)
    (folder / "tree/lone/below/one").write_text("1\n")
    return tree


def test_a_patch_of_many_files_takes_time_that_grows_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_with(tmp_path)
    many = of("".join(new(f"new/{number}") for number in range(5000)), new("new/last"))
    before = time.process_time()
    assert len(planned(tree, many)) == 5001
    assert time.process_time() - before < 5
    monkeypatch.setattr(source_tree, "_MOST_FILES", 5000)
    with pytest.raises(BuildError, match=r"2\.patch: expected a series that changes at most 5000 files, got more"):
        planned(tree, many)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            (new("drivers"),),
            r"1\.patch: cannot be applied: drivers: expected no folder of that name, got that of drivers/loop\.c",
        ),
        (
            (new("file/below"),),
            r"1\.patch: cannot be applied: file/below: expected a folder file, which is a file of the source",
        ),
        ((new("file/a/b/c"),), r"file/a/b/c: expected a folder file"),
        ((new("new.c"), new("new.c/below")), r"2\.patch: .*new\.c"),
        ((new("new/below"), new("new")), r"2\.patch: .*new"),
        ((new("lone"), deletion("lone/below/one", "1")), r"1\.patch: cannot be applied: lone: expected no folder"),
        ((new("../outside"),), "outside"),
        ((new("/etc/outside"),), "outside"),
        ((new("a/../../outside"),), "outside"),
        ((new(".git/config"),), "config"),
        ((new("drivers/.GIT/config"),), "config"),
        ((new("n" * 256),), "expected a name in UTF-8 of at most 255 bytes"),
        ((new("/".join(["d" * 200] * 25)),), "expected a name in UTF-8 of at most 255 bytes"),
        ((new("d/" * 40 + "x"),), "and 32 folders"),
        ((new("x").replace("a/x", '"a/\\377"').replace("b/x", '"b/\\377"'),), "expected a name in UTF-8"),
        ((new("link/below"),), "expected a regular file of the source, got a link"),
        ((new("link"),), "got a link|already exists"),
        ((new("folder-link/new"),), "got a link"),
        ((new("device", mode="060000"),), "device"),
        ((new("program", mode="104755"),), r"expected a regular file, got mode 104755|program"),
        ((new("sub", mode="160000"),), "mode 160000"),
        ((deletion("nowhere", "1"),), "nowhere"),
        ((deletion("file", "2"),), "file"),
        (("diff --git a/nowhere b/new\nsimilarity index 100%\nrename from nowhere\nrename to new\n",), "nowhere"),
        (
            ("diff --git a/file b/drivers\nsimilarity index 100%\nrename from file\nrename to drivers\n",),
            "expected no folder of that name",
        ),
        (
            (
                "diff --git a/file b/lone/below/one/x\nsimilarity index 100%\n"
                "rename from file\nrename to lone/below/one/x\n",
            ),
            "lone/below/one",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_the_source_stays_as_it_is_and_can_be_built(
    tmp_path: Path, texts: tuple[str, ...], message: str
) -> None:
    tree = tree_with(tmp_path)
    (tmp_path / "tree/link").symlink_to("nowhere")
    (tmp_path / "tree/folder-link").symlink_to("drivers")
    before = read_tree(tmp_path)
    with pytest.raises(BuildError, match=message):
        planned(tree, of(*texts))
    assert read_tree(tmp_path) == before
    good = planned(tree, of(diff("line 11", "eleven")))
    tree.apply_changes(good)
    tree.apply_changes({})
    assert read_tree(tmp_path / "tree") == read_tree(tmp_path / "tree") | {"drivers/loop.c": LOOP, "file": "1\n"}


@pytest.mark.parametrize("path", ["drivers", "file/below", "file/a/b"])
def test_a_plan_that_does_not_fit_its_tree_writes_nothing(tmp_path: Path, path: str) -> None:
    tree = tree_with(tmp_path)
    before = read_tree(tmp_path)
    with pytest.raises(BuildError):
        tree.apply_changes({"new": Content(data=b"new"), path: Content(data=b"x")})
    assert read_tree(tmp_path) == before


def test_a_file_takes_the_place_of_a_folder_whose_files_go_and_the_other_way_round(tmp_path: Path) -> None:
    tree = tree_with(tmp_path)
    before = read_tree(tmp_path / "tree")
    there = planned(
        tree,
        of(deletion("lone/below/one", "1"), new("lone", "a file"), deletion("file", "1"), new("file/a/b", "a folder")),
    )
    tree.apply_changes(there)
    assert read_tree(tmp_path / "tree") == {
        "drivers": None,
        "drivers/loop.c": LOOP,
        "file": None,
        "file/a": None,
        "file/a/b": "a folder\n",
        "lone": "a file\n",
    }
    assert (
        planned(
            tree,
            of(
                deletion("lone/below/one", "1"),
                new("lone", "a file"),
                deletion("file", "1"),
                new("file/a/b", "a folder"),
            ),
        )
        == there
    )
    tree.apply_changes(there)
    tree.apply_changes({})
    assert read_tree(tmp_path / "tree") == before


@pytest.mark.parametrize("path", ["drivers", "drivers/loop.c/below"])
def test_a_source_that_an_older_testbed_could_not_build_any_more_is_whole_again(tmp_path: Path, path: str) -> None:
    tree = tree_with(tmp_path)
    before = read_tree(tmp_path / "tree")
    (tmp_path / "changed.json").write_text(json.dumps({path: False}))
    plan = planned(tree, of(diff("line 11", "eleven")))
    tree.apply_changes(plan)
    assert "eleven\n" in (tmp_path / "tree/drivers/loop.c").read_text()
    tree.apply_changes({})
    assert read_tree(tmp_path / "tree") == before


class Killed(BaseException):
    """Stands in for SIGKILL: nothing after it is done."""


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int, run: Callable[[], None]) -> bool:
    """Return whether `run` was killed before its `step`th change of a file, counted from 0. No later change is made."""
    left = step

    def changing(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            if left <= 0:
                raise Killed
            left -= 1
            return real(*arguments, **keywords)

        return change

    real_open = Path.open

    def open_file(path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if "w" not in mode:
            return real_open(path, mode, *arguments, **keywords)
        file = changing(real_open)(path, mode, *arguments, **keywords)
        if left <= 0:  # killed in the middle of writing
            file.write(b"ha" if "b" in mode else "ha")
            file.close()
            raise Killed
        return file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_file)
        for name in ("unlink", "rmdir", "mkdir", "replace", "chmod"):
            patched.setattr(Path, name, changing(getattr(Path, name)))
        patched.setattr(os, "fsync", changing(os.fsync))
        try:
            run()
        except Killed:
            return True
    return False


SERIES = {
    "nothing": (),
    "changes": (diff("line 11", "eleven"), new("drivers/new/deep/er.c"), deletion("file", "1")),
    "swaps": (
        deletion("lone/below/one", "1"),
        new("lone", "a file"),
        deletion("file", "1"),
        new("file/a/b", "a folder"),
        diff("line 21", "21", line=20),
    ),
    "others": (diff("line 11", "other"), new("drivers/new/deep", "a file"), new("lone/below/two", "2")),
}


@pytest.mark.parametrize("second", ["nothing", "changes", "swaps"])
@pytest.mark.parametrize("first", ["nothing", "changes", "swaps"])
def test_a_series_that_was_killed_at_any_step_leaves_a_source_of_which_any_other_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    fresh = tree_with(tmp_path / "fresh")
    before = read_tree(tmp_path / "fresh/tree")
    plans = {name: planned(fresh, of(*texts)) for name, texts in SERIES.items()}
    wanted: dict[str, dict[str, str]] = {}
    for name, plan in plans.items():
        fresh.apply_changes(plan)
        wanted[name] = files(read_tree(tmp_path / "fresh/tree"))
    killed, step = True, 0
    while killed:
        folder, last = tmp_path / str(step), tuple(SERIES)[step % len(SERIES)]
        tree = tree_with(folder)
        tree.apply_changes(plans[first])
        killed = killed_at(monkeypatch, step, partial(tree.apply_changes, plans[second]))
        tree = Tree(folder)
        for path, text in files(before).items():
            assert tree._pristine(path, tree._changed()).read_text() == text, step
        if not killed:
            assert planned(tree, of(*SERIES[last])) == plans[last]
        for name in (last, "nothing"):
            tree.apply_changes(plans[name])
            assert files(read_tree(folder / "tree")) == wanted[name], step
        step += 1
    assert read_tree(folder / "tree") == before and (step > 10 or first == second)


def files(content: dict[str, str | None]) -> dict[str, str]:
    """Leave out the folders: a run that was killed may leave empty ones."""
    return {path: text for path, text in content.items() if text is not None}


def test_a_series_that_brings_a_repository_along_has_git_run_nothing(tmp_path: Path) -> None:
    """Without this, git would apply a second patch in the repository that the first patch created."""
    evil = f"sh -c 'echo ran >>{tmp_path}/ran; cat'"
    repository = ("no-repository", "tree/no-repository", "repository", "git")
    first = new(".gitattributes", "* filter=evil")
    for folder in repository:
        config = f'[filter "evil"] clean = "{evil}"\n+[filter "evil"] smudge = "{evil}"\n+[core] fsmonitor = "{evil}"'
        first += new(f"{folder}/config", config).replace("+1 @@", "+1,3 @@")
        first += new(f"{folder}/HEAD", "ref: refs/heads/main") + new(f"{folder}/objects/x") + new(f"{folder}/refs/x")
    assert planned(tree_of(tmp_path), of(first, diff("line 11", "eleven"))).keys() > {
        "drivers/loop.c",
        ".gitattributes",
    }
    assert not (tmp_path / "ran").exists()
