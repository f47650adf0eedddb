"""The compiler of a kernel build, and the content keys of builds and of their output folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.hashing import content_key
from testbed.store.kernels import make_args
from testbed.store.kernels.make_args import MakeArg

# Change it when a build of the same source and configuration gives another result.
_LAYOUT = 1
# The same key must give the same bytes: scripts/mkcompile_h and others take these instead of the time and the machine
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
    """The compiler of a build. `version`: as it prints itself; `args`: the user's arguments for make.

    `through_ccache`: objects are cached; this changes no byte of the result.
    """

    version: str
    through_ccache: bool
    args: tuple[MakeArg, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """The arguments for make that choose the compiler."""
        given, program = {arg.name for arg in self.args}, make_args.build_tools(self.args)
        cached = (
            [f"{name}=ccache {program[name]}" for name in ("CC", "HOSTCC") if name not in given]
            if self.through_ccache
            else []
        )
        return (*cached, *map(str, self.args))


def build_key(source: str, changes: Mapping[str, str], request: str, compiler: Compiler) -> str:
    """Return the key of a kernel: its source, the hashes of changed files, the requested configuration, the compiler
    and the user's arguments for make.
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
    """Return the key of an output folder; builds of one source and configuration share it, and compile what differs."""
    return content_key(_LAYOUT, request, compiler.version, compiler.variables)
