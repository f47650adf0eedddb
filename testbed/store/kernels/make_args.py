"""Checks the make variables that a user may set: compiler, tools and flags (Documentation/kbuild/{kbuild,llvm}.rst)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from testbed.errors import UsageError

# The tools of a build, by the names of GNU's and of LLVM's programs (Makefile of Linux 5.10 to 7.2: `ifneq
# ($(LLVM),)`).
_GNU = {
    "CC": "gcc",
    "LD": "ld",
    "AR": "ar",
    "NM": "nm",
    "OBJCOPY": "objcopy",
    "OBJDUMP": "objdump",
    "READELF": "readelf",
    "STRIP": "strip",
}
_LLVM = {"CC": "clang", "LD": "ld.lld"} | {
    name: f"llvm-{tool}" for name, tool in _GNU.items() if name not in ("CC", "LD")
}
_HOST = {
    "HOSTCC": ("gcc", "clang"),
    "HOSTCXX": ("g++", "clang++"),
    "HOSTLD": ("ld", "ld.lld"),
    "HOSTAR": ("ar", "llvm-ar"),
}
_OTHERS = ("PAHOLE", "RUSTC", "BINDGEN", "HOSTRUSTC", "HOSTPKG_CONFIG")
TOOLS = (*_GNU, *_HOST, *_OTHERS)
_FLAGS = re.compile(
    r"K(?:C|A|CPP|RUST)FLAGS|HOST(?:C|CXX|LD|RUST)FLAGS|HOSTLDLIBS|USER(?:C|LD)FLAGS"
    r"|(?:C|A|LD|RUST)FLAGS_(?:KERNEL|MODULE|vmlinux)|W"
)
_REFUSED: tuple[tuple[str, str], ...] = (
    (r"O|MO?|KBUILD_(?:OUTPUT|EXTMOD\w*|SRC)|srctree|objtree|VPATH", "the testbed decides where a build is"),
    (r"INSTALL_\w+|DEPMOD|INSTALL", "the testbed decides where what was built goes"),
    (r"ARCH|SUBARCH|UTS_MACHINE", "guests are x86_64"),
    (r"KCONFIG_\w+|CONFIG_\w+", "--config, --fragment and --flavour say what the configuration is"),
    (
        r"(?:GNU)?MAKEFLAGS|MAKE\w*|MFLAGS|SHELL",
        "make itself is the testbed's; --jobs says how many compilers run at once",
    ),
    (
        r"KBUILD_\w+|LOCALVERSION|\w*VERSION|\w*PATCHLEVEL|KERNELRELEASE|SOURCE_DATE_EPOCH",
        "the same key must give the same bytes and name",
    ),
)
# A program and its options, without characters that mean something to make or a shell. Flags may also hold quotes.
_PROGRAM = re.compile(r"[A-Za-z0-9_./+=,:@%-]+(?: [A-Za-z0-9_./+=,:@%-]+)*")
_TEXT = re.compile(r"[ -~]*")
_EXPANDED = re.compile(r"[$`;|&<>\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeArg:
    """A variable on make's command line."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def parse(words: Iterable[str]) -> tuple[MakeArg, ...]:
    """Parse the variables that a command line gives for make, sorted by name.

    :raise UsageError: a variable may not be set, or its value would be expanded; the message says why.
    """
    found: dict[str, MakeArg] = {}
    for word in words:
        name, equals, value = word.partition("=")
        where = f"--make-arg {word}"
        if not equals:
            raise UsageError(f"{where}: expected NAME=VALUE, such as CC=clang")
        if name in found:
            raise UsageError(f"{where}: expected {name} once, got it twice")
        _check(where, name, value)
        found[name] = MakeArg(name=name, value=value)
    return tuple(found[name] for name in sorted(found))


def _check(where: str, name: str, value: str) -> None:
    for pattern, why in _REFUSED:
        if re.fullmatch(pattern, name):
            raise UsageError(f"{where}: {name} cannot be given: {why}")
    if name == "LLVM" and not re.fullmatch(r"1|-\d{1,3}|/[A-Za-z0-9_./+-]*/", value):
        raise UsageError(
            f"{where}: expected LLVM=1, LLVM=-15 (clang-15 and its like), or LLVM=/FOLDER/ with an end of /"
        )
    elif name == "LLVM_IAS" and value not in ("0", "1"):
        raise UsageError(f"{where}: expected LLVM_IAS=0 or 1")
    elif name == "CROSS_COMPILE" and not re.fullmatch(r"[A-Za-z0-9_./+-]+", value):
        raise UsageError(f"{where}: expected the prefix of its tools' names, such as x86_64-linux-gnu-")
    elif name in TOOLS and not _PROGRAM.fullmatch(value):
        raise UsageError(f"{where}: expected a program, perhaps with options")
    elif _FLAGS.fullmatch(name) and (not _TEXT.fullmatch(value) or _EXPANDED.search(value)):
        raise UsageError(
            f"{where}: expected flags without what make or a shell expands ($ ` ; | & < > and a backslash)"
        )
    elif name not in ("LLVM", "LLVM_IAS", "CROSS_COMPILE", *TOOLS) and not _FLAGS.fullmatch(name):
        some = "CC, LD, HOSTCC and other tools, LLVM, LLVM_IAS, CROSS_COMPILE, KCFLAGS and other flags, W"
        raise UsageError(f"{where}: expected one of {some}, got {name or 'no name'}")
    # make works in another folder than the user.
    if (name in TOOLS or name == "CROSS_COMPILE") and any(
        "/" in one and not one.startswith("/") for one in value.split()[:1]
    ):
        raise UsageError(f"{where}: expected a name, or an absolute path: make works in a folder of its own")


def build_tools(args: Iterable[MakeArg]) -> dict[str, str]:
    """Return each tool of a build with its options, by make's names: the user's, else GNU's, or LLVM's with LLVM=."""
    given = {arg.name: arg.value for arg in args}
    llvm = given.get("LLVM")
    if llvm is None:
        usual = {name: given.get("CROSS_COMPILE", "") + program for name, program in _GNU.items()} | {
            "HOSTCC": _HOST["HOSTCC"][0]
        }
    else:
        before, after = (llvm, "") if llvm.endswith("/") else ("", "" if llvm == "1" else llvm)
        usual = {
            name: f"{before}{program}{after}" for name, program in (*_LLVM.items(), ("HOSTCC", _HOST["HOSTCC"][1]))
        }
    return usual | {name: value for name, value in given.items() if name in TOOLS}


def debian_package(program: str) -> str:
    """Return the Debian package of a tool: `package-15` for `tool-15`, and the program's own name if it is unknown."""
    name, dash, version = program.rsplit("/", 1)[-1].rpartition("-")
    if not dash or not version.isdigit():
        name, dash, version = program.rsplit("/", 1)[-1], "", ""
    if name in ("clang", "clang++"):
        return f"clang{dash}{version}"
    if name == "ld.lld":
        return f"lld{dash}{version}"
    if name.startswith("llvm-"):
        return f"llvm{dash}{version}"
    return "binutils" if name in _GNU.values() and name != "gcc" else f"{name}{dash}{version}"


# Variables that make, the kernel's Makefiles or those of its tools (tools/scripts/Makefile.include) would take from the
# caller's environment, and that would change bytes under the same key, or the place of the configuration. To some an
# empty value means something.
_TAKEN = re.compile(
    _FLAGS.pattern
    + "|"
    + "|".join(TOOLS)
    + r"|CXX|LLVM|LLVM_IAS|CROSS_COMPILE|SUBARCH|LOCALVERSION|(?:EXTRA_)?(?:C|CXX|CPP|LD)FLAGS|SOURCE_DATE_EPOCH"
    r"|(?:GNU)?MAKEFLAGS|MAKEFILES|MAKELEVEL|MFLAGS|(?:KBUILD|KCONFIG|INSTALL)_\w+"
)
# What make sets for the programs that it runs, for example when a Makefile runs `git bisect`: no user has set it.
_OF_MAKE = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS")


def environment_taken(names: Iterable[str]) -> tuple[str, ...]:
    """List the variables of an environment that a build must not see."""
    return tuple(name for name in names if _TAKEN.fullmatch(name))


def environment_ignored(environment: Mapping[str, str]) -> tuple[str, ...]:
    """List the variables of an environment that are meant for make but that a build does not see, as NAME=VALUE."""
    ours = {"ARCH": ("x86_64", "x86"), "SUBARCH": ("x86_64", "x86")}
    found = [
        name
        for name in (*environment_taken(environment), *(["ARCH"] if "ARCH" in environment else []))
        if environment[name]
    ]
    if "MAKELEVEL" in environment:
        found = [name for name in found if name not in _OF_MAKE]
    return tuple(
        f"{name}={environment[name][:60]}" for name in sorted(found) if environment[name] not in ours.get(name, ())
    )
