"""Patch series in files: made with `git format-patch` in each of its ways, read, and applied to their base."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import lzma
import os
import re
import subprocess
from pathlib import Path

import pytest

from testbed.errors import BuildError
from testbed.store.kernels import mailbox
from testbed.store.kernels.mailbox import Selection
from testbed.store.kernels.patch_files import read_patches
from testbed.store.kernels.source_tree import Tree
from tests.support.fake_kernel_source import git
from tests.support.kernel_images import through
from tests.unit.store.kernels.test_patches import diff

LOOP = "".join(f"line {number}\n" for number in range(1, 41))
SUBJECTS = ("loop: change 5", "loop: [media] change 15", "loop: a new file, and one that moves")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three commits over `base`, and `v1`, which is another try of the first two."""
    folder = tmp_path_factory.mktemp("series") / "linux"
    (folder / "drivers/block").mkdir(parents=True)
    loop = folder / "drivers/block/loop.c"
    loop.write_text(LOOP)
    (folder / "old.h").write_text(LOOP)
    git(folder, "init", "-q", "-b", "main")
    for name in ("user.name", "user.email"):
        git(folder, "config", name, "a@example.org")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    git(folder, "tag", "base")
    loop.write_text(LOOP.replace("line 5\n", "first try of 5\n"))
    git(folder, "commit", "-qam", SUBJECTS[0])
    git(folder, "tag", "v1")
    git(folder, "reset", "-q", "--hard", "base")
    loop.write_text(LOOP.replace("line 5\n", "changed 5\n"))
    git(folder, "commit", "-qam", SUBJECTS[0], "-m", "From the beginning:\nFrom here on.")
    loop.write_text(loop.read_text().replace("line 15\n", "changed 15\n"))
    git(folder, "commit", "-qam", SUBJECTS[1])
    (folder / "new.h").write_text("new\n")
    git(folder, "mv", "old.h", "moved.h")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", SUBJECTS[2])
    return folder


def made(repository: Path, folder: Path, *options: str, config: str = "", of: str = "base..main") -> Path:
    """What `git format-patch` writes into a folder."""
    words = ["-c", config] if config else []
    git(repository, *words, "format-patch", "-q", "-o", str(folder), *options, of)
    return folder


def mailed(repository: Path, file: Path, *options: str, of: str = "base..main") -> Path:
    file.write_text(git(repository, "format-patch", "--stdout", *options, of))
    return file


def applied(repository: Path, series: Path, selection: Selection = mailbox.ALL_PATCHES) -> dict[str, str | None]:
    """The files that a series changes, with what they become."""
    source = series.parent / f"source-{os.urandom(4).hex()}"
    (source / "tree").mkdir(parents=True)
    archive = subprocess.run(["git", "-C", repository, "archive", "base"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-C", source / "tree", "-x"], input=archive, check=True)
    found = asyncio.run(Tree(source).plan_changes(read_patches(series, selection), (), ()))
    return {path: content.data.decode() if content else None for path, content in found.items()}


CHANGED = LOOP.replace("line 5\n", "changed 5\n").replace("line 15\n", "changed 15\n")
WHOLE = {"drivers/block/loop.c": CHANGED, "new.h": "new\n", "moved.h": LOOP, "old.h": None}


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ((), ""),
        (("-v2", "--cover-letter"), ""),
        (("--no-numbered",), ""),
        (("-N", "-v3", "--cover-letter"), ""),
        (("--rfc", "--cover-letter"), ""),
        (("--subject-prefix=PATCH RESEND net-next",), ""),
        (("--subject-prefix=PATCH 6.1",), ""),
        (("--keep-subject",), ""),
        (("--no-signature", "--zero-commit", "--no-stat"), ""),
        (("--suffix=.txt",), ""),
        (("--numbered-files",), ""),
        (("--attach",), ""),
        (("--inline", "--thread=deep", "--signoff"), ""),
        (("--cover-letter", "--range-diff=base..v1", "--creation-factor=99"), ""),
        (("--no-renames", "--full-index"), ""),
        ((), "diff.noprefix=true"),
        (("--no-prefix", "--cover-letter"), ""),
        ((), "diff.mnemonicPrefix=true"),
        (("--src-prefix=old/", "--dst-prefix=new/"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_folder_of_format_patch_applies_however_it_was_made(
    repository: Path, tmp_path: Path, options: tuple[str, ...], config: str
) -> None:
    folder = made(repository, tmp_path / "series", *options, config=config)
    assert [patch.subject for patch in read_patches(folder)] == list(SUBJECTS)
    assert applied(repository, folder) == WHOLE


@pytest.mark.parametrize(
    "options", [(), ("-v2", "--cover-letter"), ("--no-signature",), ("-N",), ("--no-prefix", "-N")], ids=" ".join
)
def test_a_mailbox_of_format_patch_applies(repository: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert applied(repository, mailed(repository, tmp_path / "series.mbx", *options)) == WHOLE


def test_one_patch_with_a_cover_letter_is_a_series(repository: Path, tmp_path: Path) -> None:
    folder = made(repository, tmp_path / "series", "--cover-letter", "--numbered", of="base..main~2")
    assert {re.search(r"\[.*\]", path.read_text())[0] for path in folder.iterdir()} == {"[PATCH 0/1]", "[PATCH 1/1]"}  # type: ignore[index]  # each has one
    assert [patch.subject for patch in read_patches(folder)] == [SUBJECTS[0]]


@pytest.mark.parametrize(
    "compress", [gzip.compress, lzma.compress, bz2.compress, through("zstd", "-q")], ids=["gz", "xz", "bz2", "zst"]
)
def test_what_is_compressed_is_read(repository: Path, tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    mails = mailed(repository, tmp_path / "t.mbox", "-v2", "--cover-letter").read_bytes()
    (tmp_path / "t.mbox.gz").write_bytes(compress(mails))
    assert applied(repository, tmp_path / "t.mbox.gz") == WHOLE
    folder = made(repository, tmp_path / "series")
    for path in tuple(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(compress(path.read_bytes()))
        path.unlink()
    assert applied(repository, folder) == WHOLE


def test_a_mailbox_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.mbox.gz").write_bytes(gzip.compress(bytes(80 << 20)))
    with pytest.raises(
        BuildError, match=r"bomb\.mbox\.gz: expected at most 64M when it is unpacked, got more; a series"
    ):
        read_patches(tmp_path / "bomb.mbox.gz")


def test_a_thread_of_two_versions_asks_which(repository: Path, tmp_path: Path) -> None:
    thread = tmp_path / "thread.mbx"
    first = mailed(repository, tmp_path / "v1.mbx", "--numbered", "--cover-letter", of="base..v1").read_text()
    thread.write_text(first + mailed(repository, tmp_path / "v2.mbx", "-v2", "--cover-letter").read_text())
    with pytest.raises(BuildError, match=r"v1 \(1 patch\), v2 \(3 patches\); choose one, such as --series-version v2"):
        read_patches(thread)
    assert applied(repository, thread, Selection(version="v2")) == WHOLE
    assert applied(repository, thread, Selection(version="v1")) == {
        "drivers/block/loop.c": LOOP.replace("line 5\n", "first try of 5\n")
    }
    with pytest.raises(BuildError, match="expected version v3 of a series, found v1"):
        read_patches(thread, Selection(version="v3"))
    # In one folder, without numbers as well.
    folder = made(repository, tmp_path / "series", "-N", of="base..v1")
    made(repository, folder, "-N", "-v2")
    with pytest.raises(BuildError, match="expected one version of a series"):
        read_patches(folder)
    assert applied(repository, folder, Selection(version="v2")) == WHOLE


def test_a_part_of_a_series_is_read_where_it_is_asked_for(repository: Path, tmp_path: Path) -> None:
    folder = made(repository, tmp_path / "series", "-v2", "--cover-letter")
    (folder / "v2-0003-loop-a-new-file-and-one-that-moves.patch").unlink()
    with pytest.raises(
        BuildError,
        match=r"expected patches 1-3, each once; patch 3 is missing; where only these.* --series-patches 1-2",
    ):
        read_patches(folder)
    assert applied(repository, folder, Selection(numbers=(1, 2))) == {"drivers/block/loop.c": CHANGED}
    assert [patch.subject for patch in read_patches(folder, Selection(numbers=(2,)))] == [f"2/3 {SUBJECTS[1]}"]
    with pytest.raises(BuildError, match=r"expected patches 2-3, each once; patch 3 is missing$"):
        read_patches(folder, Selection(numbers=(2, 3)))
    # A file of one patch was chosen by its user.
    (one,) = read_patches(next(folder.glob("*-0002-*")))
    assert one.subject == f"2/3 {SUBJECTS[1]}"
    for path in folder.iterdir():
        if "-0002-" not in path.name:
            path.unlink()
    with pytest.raises(BuildError, match="patch 1 is missing; where only these are meant: --series-patches 2"):
        read_patches(folder)
    folder = made(repository, tmp_path / "unnumbered", "-N")
    with pytest.raises(BuildError, match="expected patches with numbers, as --series-patches names some"):
        read_patches(folder, Selection(numbers=(1,)))


def test_names_are_in_the_order_of_their_numbers_and_leftovers_of_editors_are_none(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        (tmp_path / f"{number}-x.patch").write_text(diff(f"line {number + 1}", "x", line=number))
    for leftover in ("1-x.patch~", "1-x.patch.orig", ".1-x.patch.swp", "README"):
        (tmp_path / leftover).write_text("diff --git a/x b/x\n" if leftover != "README" else "Patches.\n")
    assert [Path(patch.name).name for patch in read_patches(tmp_path)] == ["1-x.patch", "9-x.patch", "10-x.patch"]
    (tmp_path / "11-x.patch").touch()  # of a disk that was full
    with pytest.raises(BuildError, match=r"11-x\.patch: expected a patch, .*found no diff in it"):
        read_patches(tmp_path)


def test_a_folder_of_one_mail_each_is_read_where_b4_makes_a_maildir(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "series.maildir"
    for name in ("cur", "new", "tmp"):
        (folder / name).mkdir(parents=True)
    for path in made(repository, tmp_path / "made", "-v2").iterdir():
        (folder / "new" / path.name.replace(".patch", ".eml")).write_text(path.read_text())
    assert applied(repository, folder) == WHOLE


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        BuildError, match=r"pipe: expected a file of patches, got something else; write it into a file first"
    ):
        read_patches(tmp_path / "pipe")


def test_a_quilt_list_says_itself_what_is_meant(repository: Path, tmp_path: Path) -> None:
    folder = made(repository, tmp_path / "series", "--no-prefix", "-v2")
    names = sorted(path.name for path in folder.iterdir())
    (folder / "series").write_text("\n".join(names))
    assert applied(repository, folder) == WHOLE
    with pytest.raises(BuildError, match="its file `series` already selects patches"):
        read_patches(folder, Selection(version="v2"))
    (folder / "series").write_text("# nothing\n")
    with pytest.raises(BuildError, match="series: expected names of files, found none"):
        read_patches(folder)


def test_what_leads_out_of_a_strangers_folder_is_not_read_and_nothing_of_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:secret:1\n")
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "1.patch").symlink_to(tmp_path / "secret")
    with pytest.raises(BuildError, match=r"1\.patch: expected a file of .*/patches, got one that lies elsewhere"):
        read_patches(folder)
    (folder / "series").symlink_to(tmp_path / "secret")
    with pytest.raises(
        BuildError, match=r"series: expected a file of .*/patches, got one that lies elsewhere"
    ) as found:
        read_patches(folder)
    assert "secret:" not in str(found.value)
    (folder / "series").unlink()
    for name in ("../secret", str(tmp_path / "secret"), "1.patch", "a\0b", "x" * 300, "loop"):
        (folder / "loop").unlink(missing_ok=True)
        (folder / "loop").symlink_to("loop")
        (folder / "series").write_text(f"{name}\n")
        with pytest.raises(BuildError, match=r"lies elsewhere|expected a file of patches|cannot be read as a patch"):
            read_patches(folder)
