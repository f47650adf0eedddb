"""The compiler of a kernel build, and the content keys of builds and of their output folders."""

from __future__ import annotations

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
