"""Repairs the output folder of a build that was killed: removes the files that may be half-written, and keeps the
others.

While make works in a folder, a mark stands beside it, in a folder that no build can write to. If the next build finds
the mark, its time tells which files the killed build wrote, and that build's log which of them were finished:

- A file that is older than the mark is from a build that ended, or from one that was repaired as described here.
- make prints the line of a target when its whole recipe has ended (`-Otarget`), including kbuild's own record of it
  (`.NAME.cmd`), and we log each line as we read it. A file of that target is complete. A line that was printed but not
  yet read leaves its target counted as unfinished.
- Some recipes are exempt from that order, those that run make themselves (`+` in kbuild): vmlinux, its parts in the
  folder itself, and modules. No line of theirs counts, nor do the last lines of the log, since a recipe's error may be
  missing after them.
- Nor does a line of tools/ count, whose make gets no options but -j (Makefile of 5.10 to 6.7): all of tools/ is
  complete once an object of the kernel itself is, since such an object waits for it (`prepare`). And a new objtool
  would have every object compiled again.
- Kconfig writes a file under another name, and renames it.

Everything else that is newer than the mark is removed, and make makes it again. After a reboot nothing that was written
is certain, and the whole folder is removed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import re2

from testbed.host import untrusted_files

MARK, LOG = "testbed-compiling", "testbed-make.log"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# "  CC      drivers/block/loop.o", also with [M]; only of rules that do not run make, and that other targets depend on.
_FINISHED = re2.compile(r"  (?:CC|AS|HOSTCC|HOSTLD|UPD|WRAP|SYSHDR|SYSTBL|LDS|GEN)(?: \[M\])?\s+(\w\S*/\S+)\n")
_OF_KERNEL = re.compile(r"(?:init|kernel|mm|fs|block|drivers|net)/\S+\.o")
_FAILED = re2.compile(r"\*\*\* \[(?:.*: )?(\S+)\]")
# An error follows the output of its recipe.
_UNCERTAIN_LINES = 20
# Our own files, which each build writes anew; and those of Kconfig.
_RENAMED = re.compile(r"testbed[.-].*|\.config(\.old)?|include/config/.*|include/generated/(autoconf\.h|rustc_cfg)")


def records_folder(output: Path) -> Path:
    """Return the folder of the mark, the log and other records: beside the output folder, which builds can write to."""
    return output.with_name(f"records-{output.name}")


def set_mark(output: Path) -> None:
    """Mark a folder, whose files are complete, as one that make works in."""
    records_folder(output).mkdir(exist_ok=True)
    (records_folder(output) / LOG).unlink(missing_ok=True)
    (records_folder(output) / MARK).write_text(_boot_id(), encoding="utf-8")


def remove_mark(output: Path) -> None:
    """Remove the mark: make has ended by itself or by a signal, and has removed its half-written files."""
    (records_folder(output) / MARK).unlink(missing_ok=True)


def repair(output: Path) -> int | None:
    """Remove what a killed build may have left half-written; returns the number of files, None if none was killed.
    Blocks.
    """
    try:
        boot_id = (records_folder(output) / MARK).read_text(encoding="utf-8")
    except FileNotFoundError:
        # Older versions of the testbed had the mark in the output folder.
        if not (output / MARK).is_file():
            return None
        boot_id = ""
    if boot_id == _boot_id():
        removed = tuple(suspect_objects(output))
        for path in removed:
            path.unlink(missing_ok=True)
    else:
        removed = tuple(_files(output))
        untrusted_files.remove_folder(output)
        output.mkdir()
    remove_mark(output)
    return len(removed)


def suspect_objects(output: Path) -> Iterator[Path]:
    """Yield the files that were written since the mark and may be half-written."""
    since_ns = (records_folder(output) / MARK).stat().st_mtime_ns
    targets: frozenset[str] = frozenset()
    with contextlib.suppress(FileNotFoundError):
        targets = finished_targets(
            (records_folder(output) / LOG).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        )
    prepared = any(_OF_KERNEL.fullmatch(name) for name in targets)

    def whole(name: str) -> bool:
        return prepared if name.startswith("tools/") else name in targets or _target(name) in targets

    for path in _files(output):
        name = str(path.relative_to(output))
        # ctime: the time of the last change of any kind, which no program can set.
        if path.lstat().st_ctime_ns >= since_ns and not _RENAMED.fullmatch(name) and not whole(name):
            yield path


def finished_targets(log: Iterable[str]) -> frozenset[str]:
    """Return the targets that a log of make shows as finished, by their paths in the output folder."""
    lines = list(log)
    # make could not keep the order of lines, for example without disk space for it (output.c of GNU make).
    if any("output-sync" in line for line in lines):
        return frozenset()
    lines = lines[:-_UNCERTAIN_LINES]
    named = {match[1] for line in lines if (match := _FINISHED.fullmatch(line)) and not match[1].startswith("tools/")}
    failed = {match[1] for line in lines if (match := _FAILED.search(line))}
    return frozenset(named - failed)


def _target(name: str) -> str:
    """Return the target that a file of kbuild's is the record of: `drivers/block/.loop.o.cmd` is that of `loop.o`."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file[1:-4]}" if file.startswith(".") and file.endswith(".cmd") else ""


def _files(output: Path) -> Iterator[Path]:
    return (path for path in untrusted_files.walk(output) if not path.is_symlink() and not path.is_dir())


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="utf-8")
