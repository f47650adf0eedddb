"""What is built, and under which key; what make is told, and what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.hashing import content_key
from testbed.store.kernels import make_args
from testbed.store.kernels.make_args import MakeArg

# Changes when what is made of the same source and configuration changes.
_LAYOUT = 1
# The same key must give the same bytes: scripts/mkcompile_h and friends take these in place of the moment and the machine
# (Documentation/kbuild/reproducible-builds.rst).
ENVIRONMENT = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "testbed",
    "KBUILD_BUILD_HOST": "testbed",
    "KBUILD_BUILD_VERSION": "1",
    "ARCH": "x86_64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """What compiles. `version`: as it says itself; `args`: what the user tells make.

    `through_ccache`: what was compiled before is not compiled again; it changes no byte.
    """

    version: str
    through_ccache: bool
    args: tuple[MakeArg, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What make is told of it."""
        given, program = {arg.name for arg in self.args}, make_args.tools(self.args)
        cached = (
            [f"{name}=ccache {program[name]}" for name in ("CC", "HOSTCC") if name not in given]
            if self.through_ccache
            else []
        )
        return (*cached, *map(str, self.args))


def build_key(source: str, changes: Mapping[str, str], request: str, compiler: Compiler) -> str:
    """The key of a kernel: its source, the changed files with their hashes, the configuration as asked for, the compiler and what the user
    tells make.
    """
    return content_key(
        _LAYOUT,
        source,
        dict(changes),
        request,
        compiler.version,
        *([list(map(str, compiler.args))] if compiler.args else []),
    )


def output_key(request: str, compiler: Compiler) -> str:
    """The key of an output folder: builds of one source with one configuration share it, so that make compiles what differs."""
    return content_key(_LAYOUT, request, compiler.version, compiler.words)


# "  CC      drivers/block/loop.o", also with [M].
_COMPILED = re.compile(r"^  (?:CC|AS)(?: \[M\])?\s+(?P<object>\S+\.o)$")


def compiled_object(line: str) -> str | None:
    """The object that a line of make's says to be compiled, or None."""
    match = _COMPILED.match(line)
    return match["object"] if match else None


# Objects after which the time of the others can be told.
_TELLING = 20


def progress(before: int, done: int, usual: int, elapsed_s: float) -> tuple[float | None, str]:
    """What is done, 0 to 1, and in words, with the time that is left.

    `before`: objects that were there already; `done`: that were made since, in `elapsed_s`; `usual`: how many such a build has.
    """
    there = before + done
    if usual <= there:
        return None, f"{done} objects"
    left_s = elapsed_s * (usual - there) / done if done >= _TELLING else None
    left = (
        ""
        if left_s is None
        else f", about {left_s / 60:.0f} min left"
        if left_s >= 90
        else f", about {left_s:.0f} s left"
    )
    return there / usual, f"{there} of about {usual} objects{left}"


_ERROR = re.compile(r"(?:\berror: |\bfatal error: |undefined reference to|No rule to make target|: error$|\*\*\* )")
_AFTER_ERROR = 4
# What compilers, linkers and make say where this machine is at fault (errno(3); gcc's driver); not what they quote of a source.
_MACHINE = (
    "No space left on device",
    "Disk quota exceeded",
    "Killed signal terminated program",
    "Cannot allocate memory",
    "virtual memory exhausted",
    "out of memory allocating",
)
_QUOTED = re.compile(r"[ \t]*[0-9]* \|")


def machine_error(said: str) -> str | None:
    """The line that says that this machine is at fault, and not what is built, or None."""
    lines = (line for line in said.splitlines() if any(words in line for words in _MACHINE))
    return next((line.strip() for line in lines if not _QUOTED.match(line)), None)


def first_error(said: str) -> str:
    """The first error of a compiler, linker or make in what they said, with the lines that show where."""
    lines = said.splitlines()
    at = next((number for number, line in enumerate(lines) if _ERROR.search(line)), None)
    if at is None:
        return "\n    ".join(lines[-_AFTER_ERROR:]) or "make gave no reason"
    return "\n    ".join(lines[at : at + 1 + _AFTER_ERROR])


# The series' own mark: a command carries the memory cgroup of who issued it. v5 as posted calls it mem_css.
_SERIES = re.compile(r"->(?:memcg_css|mem_css)\b")


def has_series(loop_c: str) -> bool:
    """Whether drivers/block/loop.c charges the issuer."""
    return _SERIES.search(loop_c) is not None
