"""Builds from source to a name, with a source whose Makefile does in a moment what a kernel's does in minutes."""

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest

from testbed import room
from testbed.errors import BuildError, UsageError
from testbed.kbuild.recipe import Compiler
from testbed.kernels import Series, load_table
from testbed.lab import Lab
from testbed.paths import Folders
from testbed.progress import Silent
from testbed.room import Quota
from testbed.session import open_session
from testbed.store import built_names, cache, kernel_builds, kernel_files, waste
from testbed.store.image import Image
from testbed.store.kernel_builds import Builder, BuildOrder
from testbed.store.kernel_files import KernelFiles
from tests.unit.test_kernels import TABLE, bzimage
from tests.unit.values import host

IMAGES = Path(__file__).parents[2] / "images"
# Counts what it compiles; the kernel's bytes are those of a head that is given, and of the source.
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 9
EXTRAVERSION =
all: bzImage
allnoconfig:
	sed '/CONFIG_LOSES_THIS/d' $(KCONFIG_ALLCONFIG) >$(O)/.config
olddefconfig:
	sed -i '/CONFIG_LOSES_THIS/d; /CONFIG_OUTGROWN/d' $(O)/.config
bzImage: $(O)/loop.o
	mkdir -p $(O)/arch/x86/boot
	(cat head; echo $(LOCALVERSION); cat $(O)/loop.o) >$(O)/arch/x86/boot/bzImage
	echo map >$(O)/System.map
	echo kernel/drivers/block/loop.ko >$(O)/modules.builtin
	printf 'loop.file=drivers/block/loop\\0' >$(O)/modules.builtin.modinfo
$(O)/loop.o: drivers/block/loop.c
	@echo '  CC      drivers/block/loop.o'
	! grep -Hn 'error:' $< >&2
	cp $< $@
	echo compiled >>$(O)/compiled
"""
LOOP_C = "one\ntwo\nthree\n"
PATCH = "--- a/drivers/block/loop.c\n+++ b/drivers/block/loop.c\n@@ -1,3 +1,3 @@\n one\n-two\n+cmd->memcg_css\n three\n"


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found() -> Compiler:
        return Compiler(version="gcc 12", through_ccache=False)

    monkeypatch.setattr(kernel_builds, "find_compiler", found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A git tree with a kernel of two commits; only the second has the series."""
    folder = tmp_path / "linux"
    (folder / "drivers/block").mkdir(parents=True)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "Kconfig").write_text('config LOSES_THIS\n\tbool "x"\n\tdepends on WHAT_IS_OFF\n')
    (folder / "head").write_bytes(bzimage())
    (folder / "drivers/block/loop.c").write_text(LOOP_C)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "before")
    (folder / "drivers/block/loop.c").write_text(LOOP_C.replace("two", "cmd->memcg_css"))
    git(folder, "commit", "-qam", "after")
    return folder


def git(folder: Path, *words: str) -> str:
    who = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_DATE": "1970-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "1970-01-01T00:00:00Z"}
    argv = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, **who}).stdout


def build(root: Path, wanted: BuildOrder, name: str | None = None) -> KernelFiles:
    return asyncio.run(Builder(table=TABLE, root=root, shipped=IMAGES, progress=Silent()).build(wanted, name))


def compiled(root: Path) -> int:
    return sum(path.read_text().count("compiled") for path in root.glob("sources/*/out-*/compiled"))


def test_a_pair_of_one_tree_is_built_under_names_that_verbs_know(tmp_path: Path, tree: Path) -> None:
    root = tmp_path / "cache"
    (tmp_path / "series.patch").write_text(PATCH)
    base = build(root, BuildOrder(source=f"{tree}@main~1"), "mine")
    patched = build(root, BuildOrder(source=f"{tree}@main~1", series=(tmp_path / "series.patch",)))
    assert (base.name, base.series, patched.series) == ("built-mine", Series.BEFORE, Series.AFTER)
    assert "with 1 patch (" in patched.origin and base.config is not None
    assert base.bzimage.read_bytes() != patched.bzimage.read_bytes() and compiled(root) == 2
    found = asyncio.run(kernel_files.fetch(TABLE.resolve("built-mine"), root, Silent()))
    assert found == base and found.release == "6.9.0-test"
    # What was built is not built again.
    assert build(root, BuildOrder(source=f"{tree}@main~1"), "again").folder == base.folder and compiled(root) == 2
    kernel_builds.remove("built-again", root)
    assert {one.spec for one in built_names.every(root)} == {"built-mine", patched.name}
    kernel_builds.remove("mine", root)
    assert not base.folder.exists()
    with pytest.raises(UsageError, match="built-mine: there is none"):
        kernel_builds.remove("mine", root)
    with pytest.raises(UsageError, match="built-mine: expected one that `testbed kernel build` made; there are: built-linux"):
        asyncio.run(kernel_files.fetch(TABLE.resolve("built-mine"), root, Silent()))


def age(folder: Path) -> None:
    os.utime(folder / cache.META, (0, 0))


def test_a_built_kernel_and_its_source_are_of_use_whenever_they_are_used(tmp_path: Path, tree: Path) -> None:
    root, began = tmp_path / "cache", time.time() - 1
    kernel = build(root, BuildOrder(source=str(tree)), "mine")
    (source,) = root.glob("sources/git-*/")
    for folder in (kernel.folder, source):
        age(folder)
    asyncio.run(kernel_files.fetch(TABLE.resolve("built-mine"), root, Silent()))
    assert {piece.folder for piece in waste.every(root) if piece.used > began} == {kernel.folder}
    age(kernel.folder)
    build(root, BuildOrder(source=str(tree)), "mine")
    assert {piece.folder for piece in waste.every(root) if piece.used > began} == {kernel.folder, source}


async def test_a_lab_does_not_push_its_own_kernels_out_of_the_cache(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Folders(**{name: tmp_path / name for name in ("cache", "state", "runtime", "admission")})
    for folder in (folders.scratch, folders.runtime):
        folder.mkdir(parents=True)
    monkeypatch.setenv(room.CACHE_LIMIT, "1")
    makes = Builder(table=TABLE, root=folders.cache, shipped=IMAGES, progress=Silent())
    own = await makes.build(BuildOrder(source=str(tree)), "own")
    other = await makes.build(BuildOrder(source=f"{tree}@main~1"), "other")
    image = Image(name="bookworm", sha256="", folder=folders.cache / "images" / "own")
    image.folder.mkdir(parents=True)
    (image.folder / cache.META).write_text("{}")
    with open_session(folders) as session:
        quota = Quota(room.limit(room.RUN_LIMIT))
        lab = Lab(folders=folders, session=session, host=host(), table=TABLE, image=image, progress=Silent(), cold=False, quota=quota)
        assert await lab.kernel("built-own") == own
        # It has been at work for a day.
        for folder in (own.folder, other.folder, image.folder):
            age(folder)
        lab._keep_within()
    assert own.folder.exists() and image.folder.exists() and not other.folder.exists()


def test_the_same_key_gives_the_same_bytes_also_where_nothing_is_left(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "series.patch").write_text(PATCH)
    wanted = BuildOrder(source=f"{tree}@main~1", series=(tmp_path / "series.patch",))
    build(tmp_path / "one", BuildOrder(source=str(tree)))
    first, second = build(tmp_path / "one", wanted), build(tmp_path / "two", wanted)
    assert first.folder.name == second.folder.name and first.bzimage.read_bytes() == second.bzimage.read_bytes()


def test_the_same_kernel_made_by_another_order_has_its_own_origin(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "series.patch").write_text(PATCH)
    patched = build(tmp_path / "cache", BuildOrder(source=f"{tree}@main~1", series=(tmp_path / "series.patch",)))
    (tmp_path / "renamed.patch").write_text(PATCH)
    again = build(tmp_path / "cache", BuildOrder(source=f"{tree}@main~1", series=(tmp_path / "renamed.patch",)), "again")
    assert again.folder == patched.folder and compiled(tmp_path / "cache") == 1
    assert "renamed.patch" in again.origin and "series.patch" in patched.origin


def test_the_users_tree_is_only_read_and_what_is_not_committed_is_left_out(tmp_path: Path, tree: Path) -> None:
    (tree / "drivers/block/loop.c").write_text("error: not committed\n")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tree.rglob("*") if path.is_file()}
    built = build(tmp_path / "cache", BuildOrder(source=str(tree)))
    assert built.series is Series.AFTER
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tree.rglob("*") if path.is_file()} == before


def test_what_a_hook_says_of_its_own_repository_is_not_said_of_this_one(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert build(tmp_path / "cache", BuildOrder(source=str(tree))).series is Series.AFTER


def test_the_first_error_of_the_compiler_ends_a_build_and_the_next_one_goes_on(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "broken.patch").write_text(PATCH.replace("cmd->memcg_css", "error: broken"))
    wanted = BuildOrder(source=f"{tree}@main~1", series=(tmp_path / "broken.patch",))
    with pytest.raises(BuildError, match=r"loop.c:2:error: broken\n(.*\n)*.*all that make said: .*testbed-make.log"):
        build(tmp_path / "cache", wanted)
    assert build(tmp_path / "cache", BuildOrder(source=f"{tree}@main~1")).series is Series.BEFORE


def test_an_option_that_does_not_survive_is_an_error_with_what_blocks_it(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "mine.config").write_text("CONFIG_LOSES_THIS=y\n")
    with pytest.raises(BuildError, match=r"mine.config:1: CONFIG_LOSES_THIS: expected y, got n: it depends on WHAT_IS_OFF, which is n"):
        build(tmp_path / "cache", BuildOrder(source=str(tree), fragments=(tmp_path / "mine.config",)))
    assert compiled(tmp_path / "cache") == 0


def test_a_configuration_that_no_guest_boots_with_is_refused_before_the_build(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "config").write_text("CONFIG_64BIT=y\n")
    with pytest.raises(BuildError, match=r"CONFIG_VIRTIO_BLK=y or m: its root is ext4 on virtio-blk"):
        build(tmp_path / "cache", BuildOrder(source=str(tree), config=tmp_path / "config"))
    assert compiled(tmp_path / "cache") == 0


def test_of_a_users_own_configuration_only_what_comes_on_top_must_survive(tmp_path: Path, tree: Path) -> None:
    config, more = tmp_path / "config", tmp_path / "mine.config"
    config.write_text((IMAGES / "kconfig/base.config").read_text() + "CONFIG_OUTGROWN=y\n")
    built = build(tmp_path / "cache", BuildOrder(source=str(tree), config=config))
    assert cache.read_meta(built.folder)["config_name"] == "config"
    more.write_text("CONFIG_LOSES_THIS=y\n")
    with pytest.raises(BuildError, match=r"mine\.config:1: CONFIG_LOSES_THIS"):
        build(tmp_path / "cache", BuildOrder(source=str(tree), config=config, fragments=(more,)))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (BuildOrder(source="nowhere"), "expected one of debian-5.10, debian-6.1, debian-6.12, or a git tree"),
        (BuildOrder(source="debian-6.1", ablations=("none",)), "--ablation none: expected one of root-worker"),
        (BuildOrder(source="debian-6.1", flavours=("none",)), "--flavour none: expected one of faults, iolatency"),
    ],
)
def test_what_does_not_exist_is_named_with_what_there_is(tmp_path: Path, wanted: BuildOrder, message: str) -> None:
    with pytest.raises((BuildError, UsageError), match=message):
        build(tmp_path / "cache", wanted)


def test_a_tree_without_a_kernel_and_a_commit_that_is_none_are_refused(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(BuildError, match="with the commit v9"):
        build(tmp_path / "cache", BuildOrder(source=f"{tree}@v9"))
    git(tree, "rm", "-q", "Kconfig")
    git(tree, "commit", "-qm", "no kernel")
    with pytest.raises(BuildError, match="expected a kernel's Makefile"):
        build(tmp_path / "cache", BuildOrder(source=str(tree)))


def test_an_order_is_checked_before_anything_is_built(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "series.patch").write_text(PATCH)
    makes = Builder(table=TABLE, root=tmp_path / "cache", shipped=IMAGES, progress=Silent())
    asyncio.run(makes.check(BuildOrder(source=f"{tree}@main~1", series=(tmp_path / "series.patch",))))
    with pytest.raises(BuildError, match=r"loop\.c: hunk 1"):
        asyncio.run(makes.check(BuildOrder(source=str(tree), series=(tmp_path / "series.patch",))))
    assert compiled(tmp_path / "cache") == 0


def test_a_tarball_is_a_source(tmp_path: Path, tree: Path) -> None:
    git(tree, "archive", "--prefix=linux/", "-o", str(tmp_path / "linux.tar.gz"), "HEAD")
    built = build(tmp_path / "cache", BuildOrder(source=str(tmp_path / "linux.tar.gz")))
    assert built.origin == "linux.tar.gz" and built.series is Series.AFTER
    assert cache.read_meta(built.folder)["config_name"] == "base"


@pytest.mark.parametrize("name", ["../x", "", "a b", "built/x"])
def test_a_name_is_a_word(name: str) -> None:
    with pytest.raises(UsageError, match="expected a name"):
        load_table(IMAGES / "kernels.yaml").resolve(f"built-{name}")
