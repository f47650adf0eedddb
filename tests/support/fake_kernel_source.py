"""A stand-in for a kernel's source whose Makefile takes a moment, and builds of it."""

import asyncio
import os
import subprocess
from pathlib import Path

from testbed.progress import Progress, Silent
from testbed.store.kernels.builder import Builder, BuildSpec
from testbed.store.kernels.kernel_files import KernelFiles
from tests.support.kernel_images import TABLE, bzimage

IMAGES = Path(__file__).parents[2] / "images"
# Counts what it compiles; the kernel's bytes are those of the file `head` and of the source. `second.c`, if a tree has
# it, is compiled after something was written to the pipe whose path is in `held-at`, if the build may read that pipe
# (TESTBED_BUILD_PATHS).
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 9
EXTRAVERSION =
all: bzImage
allnoconfig:
	sed '/CONFIG_LOSES_THIS/d' $(KCONFIG_ALLCONFIG) >$(O)/.config
olddefconfig:
	sed -i '/CONFIG_LOSES_THIS/d; /CONFIG_OUTGROWN/d; /CONFIG_CC_HAS/d' $(O)/.config
bzImage: $(O)/loop.o $(patsubst %.c,$(O)/%.o,$(wildcard second.c))
	env >$(O)/environment
	echo '$(CC), $(HOSTCC)' >$(O)/cc
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
$(O)/second.o: second.c $(O)/loop.o
	held=$$(cat held-at 2>/dev/null); test ! -p "$$held" || cat "$$held"
	@echo '  CC      second.o'
	cp $< $@
	echo compiled >>$(O)/compiled
"""
LOOP_C = "one\ntwo\nthree\n"
PATCH = "--- a/drivers/block/loop.c\n+++ b/drivers/block/loop.c\n@@ -1,3 +1,3 @@\n one\n-two\n+cmd->memcg_css\n three\n"


def tree_of_two_commits(folder: Path) -> Path:
    """Make a git tree of a kernel with two commits; only the second has the series."""
    (folder / "drivers/block").mkdir(parents=True)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "Kconfig").write_text(
        'config LOSES_THIS\n\tbool "x"\n\tdepends on WHAT_IS_OFF\nconfig CC_HAS_THIS\n\tdef_bool n\n'
    )
    (folder / "head").write_bytes(bzimage())
    (folder / "drivers/block/loop.c").write_text(LOOP_C)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "before")
    (folder / "drivers/block/loop.c").write_text(LOOP_C.replace("two", "cmd->memcg_css"))
    git(folder, "commit", "-qam", "after")
    return folder


def git(folder: Path, *words: str) -> str:
    who = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_DATE": "1970-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "1970-01-01T00:00:00Z",
    }
    argv = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, **who}).stdout


def build(root: Path, wanted: BuildSpec, name: str | None = None, progress: Progress | None = None) -> KernelFiles:
    return asyncio.run(
        Builder(table=TABLE, root=root, shipped=IMAGES, progress=progress or Silent()).build(wanted, name)
    )


def compiled(root: Path) -> int:
    return sum(path.read_text().count("compiled") for path in root.glob("sources/*/out-*/compiled"))
