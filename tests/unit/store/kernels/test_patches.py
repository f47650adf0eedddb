"""Patch series: their files and order, their application to a tree, and the error if a patch does not apply."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from testbed.errors import BuildError
from testbed.store.kernels import mailbox
from testbed.store.kernels.ablations import Ablation, Edit
from testbed.store.kernels.patch_files import read_patches
from testbed.store.kernels.patches import Patch
from testbed.store.kernels.source_tree import Content, Tree, content_hashes

LOOP = "".join(f"line {number}\n" for number in range(1, 31))


def diff(old: str, new: str, path: str = "drivers/loop.c", line: int = 10) -> str:
    return (
        f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"
        f"@@ -{line},3 +{line},3 @@\n line {line}\n-{old}\n+{new}\n line {line + 2}\n"
    )


def mail(subject: str, body: str) -> str:
    return (
        "From mboxrd@z Thu Jan  1 00:00:00 1970\nFrom: A <a@example.org>\n"
        f"Subject: {subject}\nContent-Type: text/plain; charset=utf-8\n\n{body}\n\n"
    )


COVER = mail("[PATCH v5 0/2] Charge loop", "A cover letter.\n")
FIRST = mail("[PATCH v5 1/2] loop: first", "Why.\n---\n loop.c | 2 +-\n\n" + diff("line 11", "eleven") + "-- \n2.26\n")
SECOND = mail("[PATCH v5 2/2] loop: second", diff("line 21", "twenty-one", line=20))
ANSWER = mail("Re: [PATCH v5 1/2] loop: first", "> " + "\n> ".join(diff("line 11", "eleven").splitlines()))


def of_file(data: bytes, name: str) -> tuple[Patch, ...]:
    return mailbox.select_series(mailbox.parse_messages(data, name), name)


def tree_of(folder: Path, **more: str) -> Tree:
    (folder / "tree/drivers").mkdir(parents=True)
    (folder / "tree/drivers/loop.c").write_text(LOOP)
    for name, text in more.items():
        (folder / "tree" / name).write_text(text)
    return Tree(folder)


def planned(
    tree: Tree, series: tuple[Patch, ...] = (), reverts: tuple[Patch, ...] = (), ablations: tuple[Ablation, ...] = ()
) -> dict[str, Content | None]:
    return asyncio.run(tree.plan_changes(series, reverts, ablations))


def test_a_mailbox_gives_its_patches_in_order_without_cover_letter_and_answers() -> None:
    found = of_file((COVER + SECOND + ANSWER + FIRST).encode(), "v5.mbx")
    assert [patch.subject for patch in found] == ["loop: first", "loop: second"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COVER + SECOND, "patches 1-2, each once; patch 1 is missing; where only these are meant: --series-patches 2"),
        (
            FIRST + SECOND + FIRST.replace("v5", "v4"),
            r"one version.*v4 \(1 patch\), v5 \(2 patches\); choose one.* --series-version v5",
        ),
        (FIRST + SECOND + FIRST.replace("eleven", "11"), "expected patch 1 once, found it 2 times"),
        (COVER, "1 messages without a diff"),
        ("no patch at all\n", "found no diff"),
    ],
)
def test_a_series_with_a_hole_is_refused(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        of_file(text.encode(), "v5.mbx")


def test_a_mail_is_decoded() -> None:
    text = "From: a\nSubject: [PATCH] x\nContent-Transfer-Encoding: quoted-printable\n\n" + diff("line 11", "a=3Db")
    (patch,) = of_file(text.encode(), "x.eml")
    assert "+a=b\n" in patch.text


def test_quilt_and_plain_folders_are_read_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.patch").write_text(diff("line 11", "eleven"))
    (tmp_path / "a.patch").write_text(
        diff("line 21", "twenty-one", line=20).replace("a/drivers", "drivers").replace("b/drivers", "drivers")
    )
    assert [Path(patch.name).name for patch in read_patches(tmp_path)] == ["a.patch", "b.patch"]
    (tmp_path / "series").write_text("# mine\nb.patch\na.patch -p0\n")
    assert [(Path(patch.name).name, patch.strip) for patch in read_patches(tmp_path)] == [
        ("b.patch", 1),
        ("a.patch", 0),
    ]
    assert planned(tree_of(tmp_path / "source"), read_patches(tmp_path)).keys() == {"drivers/loop.c"}
    (tmp_path / "series").write_text("b.patch -R\n")
    with pytest.raises(BuildError, match=r"series:1: expected a file name, perhaps with -pN"):
        read_patches(tmp_path)
    with pytest.raises(BuildError, match="nowhere"):
        read_patches(tmp_path / "nowhere")


def test_a_series_is_planned_put_and_taken_back_and_other_files_keep_their_times(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, other="untouched\n")
    loop, other = tmp_path / "tree/drivers/loop.c", tmp_path / "tree/other"
    before = other.stat().st_mtime_ns
    new = "diff --git a/new.h b/new.h\nnew file mode 100644\n--- /dev/null\n+++ b/new.h\n@@ -0,0 +1 @@\n+new\n"
    series = (*of_file((FIRST + SECOND).encode(), "v5.mbx"), *of_file(new.encode(), "new.patch"))
    plan = planned(tree, series)
    assert loop.read_text() == LOOP
    tree.apply_changes(plan)
    assert (
        "eleven\n" in loop.read_text()
        and "twenty-one\n" in loop.read_text()
        and (tmp_path / "tree/new.h").read_text() == "new\n"
    )
    put_at = loop.stat().st_mtime_ns
    # Applying the series again changes nothing, and the plan is made from the original source.
    assert planned(tree, series) == plan and content_hashes(plan).keys() == {"drivers/loop.c", "new.h"}
    tree.apply_changes(plan)
    assert loop.stat().st_mtime_ns == put_at
    tree.apply_changes({})
    assert loop.read_text() == LOOP and not (tmp_path / "tree/new.h").exists()
    assert loop.stat().st_mtime_ns > put_at and other.stat().st_mtime_ns == before


def test_a_tree_that_was_left_half_way_is_put_right(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    plan = planned(tree, of_file(FIRST.replace("1/2", "1/1").encode(), "one.mbx"))
    tree.apply_changes(plan)
    (tmp_path / "tree/drivers/loop.c").write_text("torn")
    assert planned(tree, of_file(FIRST.replace("1/2", "1/1").encode(), "one.mbx")) == plan
    tree.apply_changes(plan)
    assert "eleven\n" in (tmp_path / "tree/drivers/loop.c").read_text()


def test_a_revert_undoes_what_is_in_the_source(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    (tmp_path / "tree/drivers/loop.c").write_text(LOOP.replace("line 11\n", "eleven\n"))
    plan = planned(tree, reverts=(Patch(name="p", subject="p", text=diff("line 11", "eleven")),))
    assert plan == {"drivers/loop.c": Content(data=LOOP.encode())}


def test_a_refused_patch_names_file_and_hunk_and_what_is_there(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    with pytest.raises(BuildError) as refused:
        planned(tree, of_file((FIRST + SECOND.replace("-line 21", "-line XXI")).encode(), "v5.mbx"))
    assert "[PATCH v5 2/2] loop: second: cannot be applied: drivers/loop.c: hunk 1, at line 20" in str(refused.value)
    assert "expected: line XXI\n    found in line 21: line 21" in str(refused.value)
    assert (tmp_path / "tree/drivers/loop.c").read_text() == LOOP


def test_a_place_that_moved_is_shown_where_it_is_now(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    moved = "new\n" * 5 + LOOP.replace("line 11\n", "other 11\n")
    (tmp_path / "tree/drivers/loop.c").write_text(moved)
    with pytest.raises(BuildError, match="expected: line 11\n    found in line 16: other 11"):
        planned(tree, (Patch(name="p", subject="p", text=diff("line 11", "eleven")),))


def test_a_patch_that_is_there_already_is_told_so(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    patch = Patch(name="p", subject="p", text=diff("line 11", "eleven"))
    with pytest.raises(BuildError, match="it is not in this source"):
        planned(tree, reverts=(patch,))
    (tmp_path / "tree/drivers/loop.c").write_text(LOOP.replace("line 11\n", "eleven\n"))
    with pytest.raises(BuildError, match="it is in this source already: --revert"):
        planned(tree, (patch,))


@pytest.mark.parametrize("path", ["../outside.c", "../../etc/passwd"])
def test_a_patch_stays_inside_the_tree(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside.c").write_text(LOOP)
    with pytest.raises(BuildError):
        planned(tree_of(tmp_path), (Patch(name="p", subject="p", text=diff("line 11", "eleven", path)),))
    assert (tmp_path / "outside.c").read_text() == LOOP


def test_patches_apply_inside_somebody_elses_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert planned(tree_of(tmp_path), (Patch(name="p", subject="p", text=diff("line 11", "eleven")),))


def test_an_ablation_stands_on_the_series(tmp_path: Path) -> None:
    ablation = Ablation(
        name="a", patches=(1,), what="w", ways=((Edit(file="drivers/loop.c", find="eleven\n", put="gone\n"),),)
    )
    tree = tree_of(tmp_path)
    plan = planned(tree, (Patch(name="p", subject="p", text=diff("line 11", "eleven")),), ablations=(ablation,))
    assert plan == {"drivers/loop.c": Content(data=LOOP.replace("line 11\n", "gone\n").encode())}
    with pytest.raises(
        BuildError, match=r"ablation a: its place has moved.*\n.*drivers/loop.c: expected once.*`eleven`, found 0 times"
    ):
        planned(tree, ablations=(ablation,))


def of(text: str) -> tuple[Patch, ...]:
    return of_file(text.encode(), "p.patch")


@pytest.mark.parametrize(
    "more", ["+lost\n", " line 13\n-line 14\n", "@ -20,2 +20,2 @@\n line 20\n-line 21\n+twenty-one\n"]
)
def test_changes_that_no_hunk_counts_are_refused_and_not_left_out(tmp_path: Path, more: str) -> None:
    counted = "--- a/drivers/loop.c\n+++ b/drivers/loop.c\n@@ -10,3 +10,3 @@\n line 10\n-line 11\n+eleven\n line 12\n"
    tree = tree_of(tmp_path)
    assert planned(tree, of(f"{counted}-- \n2.30\n- a list\n"))
    with pytest.raises(
        BuildError, match=r"p\.patch: line \d+ .*: expected no change that the hunk above does not count"
    ):
        planned(tree, of(counted + more))


@pytest.mark.parametrize(
    "hunk", ["@@ -11,0 +12 @@\n+new\n", "@@ -11 +11 @@\n-line 11\n+eleven\n", "@@ -30 +29,0 @@\n-line 30\n"]
)
def test_a_hunk_without_context_is_refused_and_not_put_at_the_end(tmp_path: Path, hunk: str) -> None:
    with pytest.raises(BuildError, match=r"p\.patch: drivers/loop\.c: hunk 1, at line \d+: expected lines of context"):
        planned(tree_of(tmp_path), of("--- a/drivers/loop.c\n+++ b/drivers/loop.c\n" + hunk))


def test_a_hunk_of_a_whole_file_needs_no_context(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, one="1\n", nothing="")
    whole = "--- a/one\n+++ b/one\n@@ -1 +1 @@\n-1\n+2\n--- a/nothing\n+++ b/nothing\n@@ -0,0 +1 @@\n+something\n"
    assert planned(tree, of(whole)) == {"one": Content(data=b"2\n"), "nothing": Content(data=b"something\n")}
    (tmp_path / "tree/one").write_text("1\nmore\n")
    with pytest.raises(
        BuildError, match="one: hunk 1, at line 1\n    expected: the end of the file\n    found in line 2: more"
    ):
        planned(tree, of(whole))


def test_links_and_binaries_are_refused_by_name(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    (tmp_path / "tree/link").symlink_to("drivers")
    link = (
        "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n"
        "+target\n\\ No newline at end of file\n"
    )
    with pytest.raises(BuildError, match=r"p\.patch: l: expected a regular file, got mode 120000"):
        planned(tree, of(link))
    binary = (
        "diff --git a/logo b/logo\nnew file mode 100644\nindex 0000000..1111111\n"
        "Binary files /dev/null and b/logo differ\n"
    )
    with pytest.raises(BuildError, match=r"p\.patch: logo: expected a change of text, got a binary one"):
        planned(tree, of(binary))
    with pytest.raises(BuildError, match=r"link/loop\.c: expected a regular file of the source, got a link"):
        planned(tree, of(diff("line 11", "eleven", "link/loop.c")))


def test_empty_files_and_modes_are_what_a_patch_says(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, script="#!/bin/sh\n")
    empty = "diff --git a/empty b/empty\nnew file mode 100644\nindex 0000000..e69de29\n"
    program = "diff --git a/x b/x\nnew file mode 100755\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+#!/bin/sh\n"
    mode = "diff --git a/script b/script\nold mode 100644\nnew mode 100755\n"
    plan = planned(tree, of(empty + program + mode))
    assert plan == {
        "empty": Content(data=b""),
        "x": Content(data=b"#!/bin/sh\n", executable=True),
        "script": Content(data=b"#!/bin/sh\n", executable=True),
    }
    tree.apply_changes(plan)
    assert [os.access(tmp_path / "tree" / name, os.X_OK) for name in ("empty", "x", "script")] == [False, True, True]
    assert planned(tree, of(empty + program + mode)) == plan
    assert content_hashes(plan)["script"] != content_hashes({"script": Content(data=b"#!/bin/sh\n")})["script"]
    tree.apply_changes({})
    assert not (tmp_path / "tree/empty").exists() and not os.access(tmp_path / "tree/script", os.X_OK)


def test_a_renamed_file_leaves_its_place_and_comes_back(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    move = (
        "diff --git a/drivers/loop.c b/my loop.c\nsimilarity index 100%\n"
        "rename from drivers/loop.c\nrename to my loop.c\n"
    )
    plan = planned(tree, of(move))
    assert plan == {"drivers/loop.c": None, "my loop.c": Content(data=LOOP.encode())}
    tree.apply_changes(plan)
    tree.apply_changes({})
    assert (tmp_path / "tree/drivers/loop.c").read_text() == LOOP and not (tmp_path / "tree/my loop.c").exists()


def test_a_path_in_a_message_is_no_file_of_the_patch(tmp_path: Path) -> None:
    text = mail("[PATCH] loop: first", "It was\n--- ../../x\nonce.\n---\n" + diff("line 11", "eleven"))
    assert planned(tree_of(tmp_path), of_file(text.encode(), "one.mbx")).keys() == {"drivers/loop.c"}
    cover = COVER.replace("A cover letter.", "--- ../../x\n")
    assert len(of_file((cover + FIRST + SECOND).encode(), "v5.mbx")) == 2


def test_what_a_user_has_git_do_with_blanks_is_not_done_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gitconfig").write_text("[apply]\n\twhitespace = fix\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    plan = planned(tree_of(tmp_path), of(diff("line 11", "eleven  ")))
    assert plan == {"drivers/loop.c": Content(data=LOOP.replace("line 11\n", "eleven  \n").encode())}


def test_a_mailbox_with_the_line_ends_of_windows_is_read(tmp_path: Path) -> None:
    found = of_file((COVER + SECOND + FIRST).replace("\n", "\r\n").encode(), "v5.mbx")
    assert [patch.subject for patch in found] == ["loop: first", "loop: second"]
    assert planned(tree_of(tmp_path), found).keys() == {"drivers/loop.c"}


def test_a_quilt_list_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "series").write_bytes(b"\xff\xfe.patch\n")
    with pytest.raises(BuildError, match=r"series: expected UTF-8"):
        read_patches(tmp_path)
