"""Builds from source to a name, with a source whose Makefile does in a moment what a kernel's does in minutes."""

import asyncio
import os
import shutil
import time
from pathlib import Path

import filelock
import pytest

from testbed.errors import BuildError, HostError, UsageError
from testbed.guest.factory import GuestFactory
from testbed.guest.session import open_session
from testbed.host import quota as room
from testbed.host.paths import Folders
from testbed.host.quota import Quota
from testbed.progress import Silent
from testbed.store import cache, gc
from testbed.store.image import Image
from testbed.store.kernels import build_names, builder, interrupted_build, kernel_files
from testbed.store.kernels.builder import Builder, BuildSpec
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels.make_args import MakeArg
from testbed.store.kernels.table import Series, shipped_table
from tests.support.fake_kernel_source import IMAGES, PATCH, build, compiled, git, tree_of_two_commits
from tests.support.kernel_images import TABLE
from tests.support.values import host


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(args: tuple[MakeArg, ...]) -> Compiler:
        return Compiler(version="gcc 12", through_ccache=False, args=args)

    monkeypatch.setattr(builder, "find_compiler", found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tree_of_two_commits(tmp_path / "linux")


def test_a_pair_of_one_tree_is_built_under_names_that_verbs_know(tmp_path: Path, tree: Path) -> None:
    root = tmp_path / "cache"
    (tmp_path / "series.patch").write_text(PATCH)
    base = build(root, BuildSpec(source=f"{tree}@main~1"), "mine")
    patched = build(root, BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "series.patch",)))
    assert (base.name, base.series, patched.series) == ("built-mine", Series.BEFORE, Series.AFTER)
    assert "with 1 patch (" in patched.origin and base.config is not None
    assert base.bzimage.read_bytes() != patched.bzimage.read_bytes() and compiled(root) == 2
    found = asyncio.run(kernel_files.fetch(TABLE.resolve("built-mine"), root, Silent()))
    assert found == base and found.release == "6.9.0-test"
    # What was built is not built again.
    assert build(root, BuildSpec(source=f"{tree}@main~1"), "again").folder == base.folder and compiled(root) == 2
    builder.remove_build("built-again", root)
    assert {one.spec for one in build_names.list_names(root)} == {"built-mine", patched.name}
    builder.remove_build("mine", root)
    assert not base.folder.exists()
    with pytest.raises(UsageError, match="built-mine: there is none"):
        builder.remove_build("mine", root)
    with pytest.raises(
        UsageError, match="built-mine: expected one that `testbed kernel build` made; there are: built-linux"
    ):
        asyncio.run(kernel_files.fetch(TABLE.resolve("built-mine"), root, Silent()))


def age(folder: Path) -> None:
    os.utime(folder / cache.META, (0, 0))


def test_a_built_kernel_and_its_source_are_of_use_whenever_they_are_used(tmp_path: Path, tree: Path) -> None:
    root, began = tmp_path / "cache", time.time() - 1
    kernel = build(root, BuildSpec(source=str(tree)), "mine")
    (source,) = root.glob("sources/git-*/")
    for folder in (kernel.folder, source):
        age(folder)
    asyncio.run(kernel_files.fetch(TABLE.resolve("built-mine"), root, Silent()))
    assert {piece.folder for piece in gc.list_entries(root) if piece.used > began} == {kernel.folder}
    age(kernel.folder)
    build(root, BuildSpec(source=str(tree)), "mine")
    assert {piece.folder for piece in gc.list_entries(root) if piece.used > began} == {kernel.folder, source}


async def test_a_lab_does_not_push_its_own_kernels_out_of_the_cache(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders(**{name: tmp_path / name for name in ("cache", "state", "runtime", "admission")})
    for folder in (folders.scratch, folders.runtime):
        folder.mkdir(parents=True)
    monkeypatch.setenv(room.CACHE_LIMIT, "1")
    makes = Builder(table=TABLE, root=folders.cache, shipped=IMAGES, progress=Silent())
    own = await makes.build(BuildSpec(source=str(tree)), "own")
    other = await makes.build(BuildSpec(source=f"{tree}@main~1"), "other")
    image = Image(name="bookworm", sha256="", folder=folders.cache / "images" / "own")
    image.folder.mkdir(parents=True)
    (image.folder / cache.META).write_text("{}")
    with open_session(folders) as session:
        quota = Quota(room.size_limit(room.RUN_LIMIT))
        factory = GuestFactory(
            folders=folders,
            session=session,
            host=host(),
            table=TABLE,
            image=image,
            progress=Silent(),
            cold=False,
            quota=quota,
        )
        assert await factory.kernel("built-own") == own
        # It has been at work for a day.
        for folder in (own.folder, other.folder, image.folder):
            age(folder)
        factory._collect_garbage()
    assert own.folder.exists() and image.folder.exists() and not other.folder.exists()


def test_the_same_key_gives_the_same_bytes_also_where_nothing_is_left(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "series.patch").write_text(PATCH)
    wanted = BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "series.patch",))
    build(tmp_path / "one", BuildSpec(source=str(tree)))
    first, second = build(tmp_path / "one", wanted), build(tmp_path / "two", wanted)
    assert first.folder.name == second.folder.name and first.bzimage.read_bytes() == second.bzimage.read_bytes()


def test_the_same_kernel_made_by_another_order_has_its_own_origin(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "series.patch").write_text(PATCH)
    patched = build(tmp_path / "cache", BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "series.patch",)))
    (tmp_path / "renamed.patch").write_text(PATCH)
    again = build(tmp_path / "cache", BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "renamed.patch",)), "again")
    assert again.folder == patched.folder and compiled(tmp_path / "cache") == 1
    assert "renamed.patch" in again.origin and "series.patch" in patched.origin


def test_the_users_tree_is_only_read_and_what_is_not_committed_is_left_out(tmp_path: Path, tree: Path) -> None:
    (tree / "drivers/block/loop.c").write_text("error: not committed\n")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tree.rglob("*") if path.is_file()}
    built = build(tmp_path / "cache", BuildSpec(source=str(tree)))
    assert built.series is Series.AFTER
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tree.rglob("*") if path.is_file()} == before


def test_what_a_hook_says_of_its_own_repository_is_not_said_of_this_one(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert build(tmp_path / "cache", BuildSpec(source=str(tree))).series is Series.AFTER


def test_a_tree_that_its_user_has_in_parts_is_checked_out_whole(tmp_path: Path, tree: Path) -> None:
    git(tree, "sparse-checkout", "set", "--no-cone", "/*", "!/drivers")
    assert not (tree / "drivers").exists()
    assert build(tmp_path / "cache", BuildSpec(source=str(tree))).series is Series.AFTER
    assert not (tree / "drivers").exists()


def test_the_first_error_of_the_compiler_ends_a_build_and_the_next_one_goes_on(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "broken.patch").write_text(PATCH.replace("cmd->memcg_css", "error: broken"))
    wanted = BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "broken.patch",))
    with pytest.raises(BuildError, match=r"loop.c:2:error: broken\n(.*\n)*.*all that make said: .*testbed-make.log"):
        build(tmp_path / "cache", wanted)
    assert build(tmp_path / "cache", BuildSpec(source=f"{tree}@main~1")).series is Series.BEFORE


def test_after_a_reboot_nothing_of_a_build_that_was_killed_is_trusted(tmp_path: Path, tree: Path) -> None:
    root, said = tmp_path / "cache", Notes()
    build(root, BuildSpec(source=f"{tree}@main~1"))
    (output,) = root.glob("sources/*/out-*")
    mark = interrupted_build.records_folder(output) / interrupted_build.MARK
    mark.write_text("another boot\n")
    (output / "loop.o").write_text("half of it")
    (kernel,) = root.glob("kernels/*/bzImage")
    whole = kernel.read_bytes()
    shutil.rmtree(kernel.parent)
    build(root, BuildSpec(source=f"{tree}@main~1"), progress=said)
    assert kernel.read_bytes() == whole and [one for one in said.said if "its last build was broken off" in one]
    assert not mark.exists()


def test_an_option_that_does_not_survive_is_an_error_with_what_blocks_it(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "mine.config").write_text("CONFIG_LOSES_THIS=y\n")
    with pytest.raises(
        BuildError, match=r"mine.config:1: CONFIG_LOSES_THIS: expected y, got n: it depends on WHAT_IS_OFF, which is n"
    ):
        build(tmp_path / "cache", BuildSpec(source=str(tree), fragments=(tmp_path / "mine.config",)))
    assert compiled(tmp_path / "cache") == 0


def test_a_configuration_that_no_guest_boots_with_is_refused_before_the_build(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "config").write_text("CONFIG_64BIT=y\n")
    with pytest.raises(BuildError, match=r"CONFIG_VIRTIO_BLK=y or m: its root is ext4 on virtio-blk"):
        build(tmp_path / "cache", BuildSpec(source=str(tree), config=tmp_path / "config"))
    assert compiled(tmp_path / "cache") == 0


class Notes(Silent):
    """Keeps what is said beside the progress."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_what_a_user_chose_in_a_configuration_must_survive(tmp_path: Path, tree: Path) -> None:
    config, more = tmp_path / "config", tmp_path / "mine.config"
    config.write_text((IMAGES / "kconfig/base.config").read_text() + "CONFIG_LOSES_THIS=y\n")
    with pytest.raises(
        BuildError,
        match=r"config:\d+: CONFIG_LOSES_THIS: expected y, got n: it depends on WHAT_IS_OFF(.*\n)*.*--fragment",
    ):
        build(tmp_path / "cache", BuildSpec(source=str(tree), config=config))
    more.write_text("# CONFIG_LOSES_THIS is not set\n")
    assert build(tmp_path / "cache", BuildSpec(source=str(tree), config=config, fragments=(more,))).release


def test_of_a_users_configuration_what_nobody_chose_may_go_and_what_no_source_has_is_one_note(
    tmp_path: Path, tree: Path
) -> None:
    config = tmp_path / "config"
    old = "".join(f"CONFIG_OUTGROWN_{number}=y\n" for number in range(9))
    config.write_text((IMAGES / "kconfig/base.config").read_text() + f"CONFIG_CC_HAS_THIS=y\n{old}")
    notes = Notes()
    built = build(tmp_path / "cache", BuildSpec(source=str(tree), config=config), progress=notes)
    assert cache.read_meta(built.folder)["config_name"] == "config"
    (said,) = [note for note in notes.said if "OUTGROWN" in note]
    assert said.startswith(
        "9 options of the configuration are not in this source: CONFIG_OUTGROWN_0, "
    ) and said.endswith(", ...")
    assert not any("CC_HAS_THIS" in note for note in notes.said)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (BuildSpec(source="nowhere"), "expected one of debian-5.10, debian-6.1, debian-6.12, or a git tree"),
        (BuildSpec(source="debian-6.1", ablations=("none",)), "--ablation none: expected one of root-worker"),
        (BuildSpec(source="debian-6.1", flavours=("none",)), "--flavour none: expected one of faults, iolatency"),
    ],
)
def test_what_does_not_exist_is_named_with_what_there_is(tmp_path: Path, wanted: BuildSpec, message: str) -> None:
    with pytest.raises((BuildError, UsageError), match=message):
        build(tmp_path / "cache", wanted)


def test_a_tree_without_a_kernel_and_a_commit_that_is_none_are_refused(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(BuildError, match="with the commit v9"):
        build(tmp_path / "cache", BuildSpec(source=f"{tree}@v9"))
    git(tree, "rm", "-q", "Kconfig")
    git(tree, "commit", "-qm", "no kernel")
    with pytest.raises(BuildError, match="expected a kernel's Makefile"):
        build(tmp_path / "cache", BuildSpec(source=str(tree)))
    assert not list(tmp_path.glob("cache/sources/git-*/commit"))  # is not taken for one that is there


def test_an_order_is_checked_before_anything_is_built(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "series.patch").write_text(PATCH)
    makes = Builder(table=TABLE, root=tmp_path / "cache", shipped=IMAGES, progress=Silent())
    asyncio.run(makes.check(BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "series.patch",))))
    with pytest.raises(BuildError, match=r"loop\.c: hunk 1"):
        asyncio.run(makes.check(BuildSpec(source=str(tree), series=(tmp_path / "series.patch",))))
    assert compiled(tmp_path / "cache") == 0


def test_a_tarball_is_a_source(tmp_path: Path, tree: Path) -> None:
    git(tree, "archive", "--prefix=linux/", "-o", str(tmp_path / "linux.tar.gz"), "HEAD")
    built = build(tmp_path / "cache", BuildSpec(source=str(tmp_path / "linux.tar.gz")))
    assert built.origin == "linux.tar.gz" and built.series is Series.AFTER
    assert cache.read_meta(built.folder)["config_name"] == "base"


@pytest.mark.parametrize("name", ["../x", "", "a b", "built/x"])
def test_a_name_is_a_word(name: str) -> None:
    with pytest.raises(UsageError, match="expected a name"):
        shipped_table().resolve(f"built-{name}")


@pytest.mark.parametrize("folder", ["my linux", "_x", "a+b", "ü", "-", "l" * 90])
def test_a_pair_has_two_names_whatever_its_folder_is_called(tmp_path: Path, folder: str) -> None:
    tree = tree_of_two_commits(tmp_path / folder)
    (tmp_path / "series.patch").write_text(PATCH)
    base = build(tmp_path / "cache", BuildSpec(source=f"{tree}@main~1"))
    patched = build(tmp_path / "cache", BuildSpec(source=f"{tree}@main~1", series=(tmp_path / "series.patch",)))
    assert base.name != patched.name and (base.series, patched.series) == (Series.BEFORE, Series.AFTER)
    for made in (base, patched):
        assert asyncio.run(kernel_files.fetch(TABLE.resolve(made.name), tmp_path / "cache", Silent())) == made


def test_a_kernel_that_was_removed_half_way_is_built_again(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tmp_path / "cache", BuildSpec(source=str(tree)), "mine")

    def interrupted(folder: Path, *, ignore_errors: bool) -> None:
        (folder / "bzImage").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            builder.remove_build("mine", tmp_path / "cache")
    again = build(tmp_path / "cache", BuildSpec(source=str(tree)), "mine")
    assert again == built and again.bzimage.is_file()


def test_a_kernel_that_is_just_being_made_is_not_removed(tmp_path: Path, tree: Path) -> None:
    built = build(tmp_path / "cache", BuildSpec(source=str(tree)), "mine")
    with filelock.FileLock(f"{built.folder}.lock"), pytest.raises(HostError, match="while another run uses them"):
        builder.remove_build("mine", tmp_path / "cache")
    assert built.bzimage.is_file()
