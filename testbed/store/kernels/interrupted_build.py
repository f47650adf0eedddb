"""What a build that was killed has left in its output folder: keeps the files that are whole, and removes those that may be half-written.

A mark stands beside the folder while make works there, in one that no build writes to. Where the next build finds it, its time tells which
files the killed one wrote, and the log of that build which of them were finished:

- A file that is older than the mark is of a build that ended, or of one whose remains were put right as here.
- make prints the line of a target when its whole recipe has ended (`-Otarget`), kbuild's own record of it (`.NAME.cmd`) included, and we
  write it down as we read it. A file of that target is whole. What was printed and not read yet counts as unfinished.
- Some recipes are exempt from that order, those that run make themselves (`+` in kbuild): vmlinux, its parts in the folder itself, and
  modules. No line of theirs counts, nor do the last lines of the log, of which a recipe's error may be missing.
- Nor does a line of tools/, whose make gets no options but -j (Makefile of 5.10 to 6.7): all of it is whole once an object of the kernel
  itself is, which waits for it (`prepare`), and which objtool's time would make be compiled again.
- What Kconfig writes it writes beside the file, and renames.

Everything else that is newer than the mark goes, and make makes it again. After a reboot nothing that was written is certain, and all goes.
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
# "  CC      drivers/block/loop.o", also with [M]; of rules that run no make, whose targets others depend on.
_FINISHED = re2.compile(r"  (?:CC|AS|HOSTCC|HOSTLD|UPD|WRAP|SYSHDR|SYSTBL|LDS|GEN)(?: \[M\])?\s+(\w\S*/\S+)\n")
_OF_KERNEL = re.compile(r"(?:init|kernel|mm|fs|block|drivers|net)/\S+\.o")
_FAILED = re2.compile(r"\*\*\* \[(?:.*: )?(\S+)\]")
# An error comes at the end of what its recipe has said.
_UNCERTAIN_LINES = 20
# Ours, which each build writes anew; and Kconfig's.
_RENAMED = re.compile(r"testbed[.-].*|\.config(\.old)?|include/config/.*|include/generated/(autoconf\.h|rustc_cfg)")


def records(output: Path) -> Path:
    """Where the mark, the log and other records of the builds in an output folder are: beside it, for builds may write into it anything."""
    return output.with_name(f"records-{output.name}")


def begin(output: Path) -> None:
    """Mark a folder whose files are whole as one in which make works."""
    records(output).mkdir(exist_ok=True)
    (records(output) / LOG).unlink(missing_ok=True)
    (records(output) / MARK).write_text(_boot_id(), encoding="utf-8")


def end(output: Path) -> None:
    """Take the mark away: make has ended by itself or by a signal, and removed what it had made by half."""
    (records(output) / MARK).unlink(missing_ok=True)


def repair(output: Path) -> int | None:
    """Remove what a killed build may have left half-written; returns how many files, or None where none was killed. Blocks."""
    try:
        boot_id = (records(output) / MARK).read_text(encoding="utf-8")
    except FileNotFoundError:
        # An older testbed had its mark in the folder.
        if not (output / MARK).is_file():
            return None
        boot_id = ""
    if boot_id == _boot_id():
        gone = tuple(suspect_objects(output))
        for path in gone:
            path.unlink(missing_ok=True)
    else:
        gone = tuple(_files(output))
        untrusted_files.remove_folder(output)
        output.mkdir()
    end(output)
    return len(gone)


def suspect_objects(output: Path) -> Iterator[Path]:
    """The files that were written since the mark and may be half-written."""
    since_ns = (records(output) / MARK).stat().st_mtime_ns
    targets: frozenset[str] = frozenset()
    with contextlib.suppress(FileNotFoundError):
        targets = finished(
            (records(output) / LOG).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        )
    prepared = any(_OF_KERNEL.fullmatch(name) for name in targets)

    def whole(name: str) -> bool:
        return prepared if name.startswith("tools/") else name in targets or _target(name) in targets

    for path in _files(output):
        name = str(path.relative_to(output))
        # The time of its last change of any kind, which no program sets.
        if path.lstat().st_ctime_ns >= since_ns and not _RENAMED.fullmatch(name) and not whole(name):
            yield path


def finished(log: Iterable[str]) -> frozenset[str]:
    """The targets that a log of make says to be made, by their paths in the output folder."""
    said = list(log)
    if any(
        "output-sync" in line for line in said
    ):  # make could not keep the order, as where there was no room for it (output.c of GNU make)
        return frozenset()
    lines = said[:-_UNCERTAIN_LINES]
    named = {match[1] for line in lines if (match := _FINISHED.fullmatch(line)) and not match[1].startswith("tools/")}
    failed = {match[1] for line in lines if (match := _FAILED.search(line))}
    return frozenset(named - failed)


def _target(name: str) -> str:
    """The target of which kbuild has a record in this file, `drivers/block/.loop.o.cmd`."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file[1:-4]}" if file.startswith(".") and file.endswith(".cmd") else ""


def _files(output: Path) -> Iterator[Path]:
    return (path for path in untrusted_files.walk(output) if not path.is_symlink() and not path.is_dir())


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="utf-8")
