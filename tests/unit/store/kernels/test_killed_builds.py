"""Builds that SIGKILL ends at any moment with all of their processes: the next build makes the same files as one that
was not disturbed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.store import cache
from testbed.store.kernels import build_jail, builder, interrupted_build
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.compiler import Compiler
from tests.support.fake_kernel_source import build, git, tree_of_two_commits
from tests.unit.store.kernels.test_builder import Notes

ROOT = Path(__file__).parents[4]
_OBJECTS = 60
# Builds as kbuild does: prints the line of a target, writes the target in two halves, then records its command; make
# compares times alone. The recipe of the link runs make, so that its line is printed at once. The file testbed-compiled
# counts compiled objects and is no target.
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 9
EXTRAVERSION =
objects = $(patsubst %.c,$(O)/%.o,$(wildcard drivers/many/*.c)) $(O)/drivers/block/loop.o
all: bzImage
allnoconfig:
	cp $(KCONFIG_ALLCONFIG) $(O)/.config
bzImage: $(O)/vmlinux
	mkdir -p $(O)/arch/x86/boot
	(cat head; echo $(LOCALVERSION); cat $(O)/vmlinux) >$(O)/arch/x86/boot/bzImage
	echo map >$(O)/System.map
	echo kernel/drivers/block/loop.ko >$(O)/modules.builtin
	printf 'loop.file=drivers/block/loop\\\\0' >$(O)/modules.builtin.modinfo
$(O)/vmlinux: $(objects)
	+@echo '  LD      vmlinux'; cat $(wordlist 1,30,$^) >$@; $(MAKE) --version >/dev/null; cat $(wordlist 31,99,$^) >>$@
$(objects): $(O)/%.o: %.c
	@echo '  CC      $*.o'
	@mkdir -p $(@D)
	@head -c 4 $< >$@; held=$$(cat held-at 2>/dev/null); \\
	test $* != drivers/many/m30 -o ! -p "$$held" || cat "$$held"; tail -c +5 $< >>$@
	@echo "cmd := head" >$(@D)/.$(@F).cmd
	@echo compiled >>$(O)/testbed-compiled
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tree_of_two_commits(tmp_path / "linux")
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "drivers/many").mkdir()
    for number in range(_OBJECTS):
        (tree / f"drivers/many/m{number}.c").write_text(f"object {number}\n" * 20)
    (tree / "held-at").write_text(str(tmp_path / "held"))
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "many")
    return tree


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(args: object = ()) -> Compiler:
        return Compiler(version="gcc 12", through_ccache=False)

    monkeypatch.setattr(builder, "find_compiler", found)


_BUILD = """\
import sys
from pathlib import Path
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels import builder
from tests.support.fake_kernel_source import build

async def found(args=()):
    return Compiler(version="gcc 12", through_ccache=False)

builder.find_compiler = found
build(Path(sys.argv[1]), builder.BuildSpec(source=sys.argv[2], jobs=4), "mine")
"""


def started(root: Path, tree: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, root, tree],
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )


def process_tree(pid: int) -> set[int]:
    """Return the ids of a process and of all its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    pids = {pid}
    while more := {child for child, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return pids


def kill_all(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants as if at once: all are stopped before the first one is killed."""
    stopped: set[int] = set()
    while more := process_tree(child.pid) - stopped:
        for pid in more:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= more
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def count(root: Path) -> int:
    return sum(path.read_text().count("compiled") for path in root.glob("sources/*/out-*/testbed-compiled"))


def undisturbed(tmp_path: Path, tree: Path) -> bytes:
    return build(tmp_path / "undisturbed", BuildSpec(source=str(tree))).bzimage.read_bytes()


@pytest.mark.slow
def test_the_object_that_was_being_written_is_made_again_and_the_finished_ones_stay(tmp_path: Path, tree: Path) -> None:
    root, held = tmp_path / "cache", tmp_path / "held"
    os.mkfifo(held)
    child = started(root, tree, **{build_jail.MORE_PATHS: str(held)})
    writer = os.open(held, os.O_WRONLY)  # returns when half of the object is written
    (half,) = root.glob("sources/*/out-*/drivers/many/m30.o")
    while count(root) < _OBJECTS:  # all others; then no recipe runs but the one that is held
        assert child.poll() is None
        os.sched_yield()
    kill_all(child)
    os.close(writer)
    assert half.read_text() == "obje" and not list(root.glob("kernels/built-*/meta.json"))
    notes = Notes()
    built = build(root, BuildSpec(source=str(tree)), "mine", progress=notes)
    assert built.bzimage.read_bytes() == undisturbed(tmp_path, tree)
    assert [note for note in notes.said if "its last build was broken off" in note]
    again = cache.read_meta(built.folder)["compiled"]
    assert 1 <= again <= _OBJECTS // 2, again
    assert not list(root.glob(f"sources/*/records-*/{interrupted_build.MARK}"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_builds_that_are_killed_at_random_moments_end_as_an_undisturbed_one(
    tmp_path: Path, tree: Path, seed: int
) -> None:
    root, chance = tmp_path / "cache", random.Random(seed)
    for _ in range(4):
        child, before = started(root, tree), count(root)
        stop = before + chance.randrange(1, 20)
        while child.poll() is None and count(root) < stop:
            os.sched_yield()
        time.sleep(chance.random() / 50)
        kill_all(child)
    built = build(root, BuildSpec(source=str(tree)), "mine")
    assert built.bzimage.read_bytes() == undisturbed(tmp_path, tree)


# Output of make for Linux 6.1, in this order, and files of the build. `+`: a file that make was writing when killed.
_SAID = """\
  HOSTCC  arch/x86/tools/relocs_64.o
  UPD     include/generated/bounds.h
  CC      OUTPUT/tools/objtool/check.o
  LINK    OUTPUT/tools/objtool/objtool
  AR      kernel/built-in.a
  CC [M]  drivers/block/loop.o
  LD      vmlinux
  LD [M]  drivers/block/loop.ko
  AS      .tmp_vmlinux.kallsyms1.o
  CC      kernel/bad.o
make[2]: *** [scripts/Makefile.build:250: kernel/bad.o] Error 1
"""
_WHOLE = {
    "arch/x86/tools/relocs_64.o",
    "include/generated/bounds.h",
    "drivers/block/loop.o",
    "drivers/block/.loop.o.cmd",
}
_TOOLS = {"tools/objtool/check.o", "tools/objtool/objtool", "tools/objtool/fixdep"}
_NOT = {
    "kernel/built-in.a",
    "vmlinux",
    "drivers/block/loop.ko",
    ".tmp_vmlinux.kallsyms1.o",
    "kernel/bad.o",
    "kernel/half.o",
    "kernel/.half.o.cmd",
}
_OURS = {".config", "include/config/auto.conf", "include/generated/autoconf.h", "testbed.config"}


@pytest.mark.parametrize("prepared", [True, False])
def test_only_what_a_recipe_has_ended_for_is_whole(tmp_path: Path, prepared: bool) -> None:
    output, records = tmp_path / "out", interrupted_build.records_folder(tmp_path / "out")
    output.mkdir()
    (output / "old.o").write_text("of a build before")
    while True:  # until the clock of files has gone on
        interrupted_build.set_mark(output)
        if (records / interrupted_build.MARK).stat().st_mtime_ns > (output / "old.o").stat().st_ctime_ns:
            break
    printed = _SAID.replace("OUTPUT", str(output))
    printed = (
        printed if prepared else "".join(line for line in printed.splitlines(keepends=True) if "loop.o\n" not in line)
    )
    (records / interrupted_build.LOG).write_text(
        printed + "  CALL    scripts/checksyscalls.sh\n" * 20 + "  CC      kernel/half"
    )
    for name in _WHOLE | _TOOLS | _NOT | _OURS:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("x")
    suspects = {str(path.relative_to(output)) for path in interrupted_build.suspect_objects(output)}
    loop = {"drivers/block/loop.o", "drivers/block/.loop.o.cmd"}
    assert suspects == _NOT | (set() if prepared else _TOOLS | loop)
    # If make could not delay a line until its recipe had ended, no line counts.
    with (records / interrupted_build.LOG).open("a") as log:
        log.write("\nmake[1]: warning: cannot open output-sync lock file, suppressing output-sync.\n")
    assert {
        str(path.relative_to(output)) for path in interrupted_build.suspect_objects(output)
    } == _NOT | _TOOLS | _WHOLE
