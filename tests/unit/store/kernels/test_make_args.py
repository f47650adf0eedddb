"""Arguments of make that a user gives: which ones are accepted, the programs that they name, and the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testbed.errors import HostError, UsageError
from testbed.host import process
from testbed.store.kernels import make, make_args
from testbed.store.kernels.compiler import Compiler


def program(folder: Path, name: str, version: str) -> str:
    """Write a program that only prints its version."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "word",
    [
        "CC=clang",
        "CC=ccache gcc-11",
        "HOSTCC=/usr/bin/gcc -m64",
        "LLVM=1",
        "LLVM=-15",
        "LLVM=/opt/llvm/bin/",
        "LLVM_IAS=0",
        "CROSS_COMPILE=x86_64-linux-gnu-",
        "KCFLAGS=-O1 -DNAME='\"a b\"' -ffile-prefix-map=/a=/b",
        "KCFLAGS=",
        "LDFLAGS_vmlinux=--strip-debug",
        "W=1",
    ],
)
def test_compilers_tools_and_flags_may_be_said(word: str) -> None:
    assert [str(arg) for arg in make_args.parse([word])] == [word]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("O=/tmp/x", "O cannot be given: the testbed decides where a build is"),
        ("M=drivers/block", "M cannot be given: the testbed decides where a build is"),
        ("KBUILD_OUTPUT=/", "where a build is"),
        ("INSTALL_MOD_PATH=/", "INSTALL_MOD_PATH cannot be given: the testbed decides where what was built goes"),
        ("ARCH=arm64", "guests are x86_64"),
        ("KCONFIG_CONFIG=/x", "--config, --fragment and --flavour say"),
        ("CONFIG_KASAN=y", "--config, --fragment and --flavour say"),
        ("MAKEFLAGS=-k", "--jobs says how many"),
        ("KBUILD_BUILD_USER=me", "the same key must give the same bytes"),
        ("LOCALVERSION=-mine", "the same key must give the same bytes"),
        ("CC", "expected NAME=VALUE, such as CC=clang"),
        ("=1", "expected one of CC, LD, .*, got no name"),
        ("cc=clang", "expected one of CC, LD, .*, got cc"),
        ("LLVM=0", "expected LLVM=1, LLVM=-15"),
        ("LLVM=", "expected LLVM=1, LLVM=-15"),
        ("LLVM_IAS=yes", "expected LLVM_IAS=0 or 1"),
        ("CC=", "expected a program"),
        ("CC=gcc; rm x", "expected a program"),
        ("CC=$(shell id)", "expected a program"),
        ("CC=./gcc", "an absolute path"),
        ("CROSS_COMPILE=../bin/x-", "an absolute path"),
        ("KCFLAGS=$(HOME)", "expected flags without what make or a shell expands"),
        ("KCFLAGS=`id`", "expected flags without"),
        ("KCFLAGS=-O1\nall:", "expected flags without"),
    ],
)
def test_what_may_not_be_said_is_refused_with_the_reason(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--make-arg {re.escape(word)}: .*{message}"):
        make_args.parse([word])


def test_a_variable_is_said_once() -> None:
    with pytest.raises(UsageError, match="expected CC once, got it twice"):
        make_args.parse(["CC=gcc", "CC=clang"])


def test_the_programs_are_gnus_or_llvms() -> None:
    def of(*words: str) -> list[str]:
        tools = make_args.build_tools(make_args.parse(words))
        return [tools[name] for name in ("CC", "LD", "AR", "HOSTCC")]

    assert of() == ["gcc", "ld", "ar", "gcc"]
    assert of("LLVM=1") == ["clang", "ld.lld", "llvm-ar", "clang"]
    assert of("LLVM=-15", "HOSTCC=gcc") == ["clang-15", "ld.lld-15", "llvm-ar-15", "gcc"]
    assert of("LLVM=/opt/bin/") == ["/opt/bin/clang", "/opt/bin/ld.lld", "/opt/bin/llvm-ar", "/opt/bin/clang"]
    assert of("CC=clang") == ["clang", "ld", "ar", "gcc"]
    assert of("CROSS_COMPILE=x-") == ["x-gcc", "x-ld", "x-ar", "gcc"]
    names = ("gcc", "ld", "clang", "clang-15", "/opt/ld.lld-15", "llvm-nm", "gcc-11", "x86_64-linux-gnu-gcc")
    assert [make_args.debian_package(name) for name in names] == [
        *("gcc", "binutils", "clang", "clang-15", "lld-15", "llvm", "gcc-11", "x86_64-linux-gnu-gcc")
    ]


async def test_a_compiler_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    where = process.find_path
    monkeypatch.setattr(process, "find_path", lambda tool: None if "llvm" in tool or "lld" in tool else where(tool))
    args = make_args.parse(["LLVM=1", "CC=gcc", "HOSTCC=gcc"])
    with pytest.raises(HostError, match=r"install them with: apt-get install .*lld llvm$"):
        await make.find_compiler(args)


async def test_a_path_to_no_program_is_no_package() -> None:
    with pytest.raises(UsageError, match="/nowhere/gcc: expected a program, there is none"):
        await make.find_compiler(make_args.parse(["CC=/nowhere/gcc"]))


async def test_the_version_of_each_program_that_is_chosen_is_the_compilers(tmp_path: Path) -> None:
    own = program(tmp_path, "cc", "own cc 1")
    usual = await make.find_compiler()
    args = make_args.parse([f"CC={own}", f"STRIP={program(tmp_path, 'strip', 'own strip 3')}"])
    chosen = await make.find_compiler(args)
    assert chosen.args == args and chosen.variables[-2:] == tuple(map(str, args))
    assert chosen.version.startswith("own cc 1, GNU ld") and chosen.version.endswith("own strip 3")
    assert usual.version.split(", ")[0] in chosen.version  # it compiles what runs here
    program(tmp_path, "cc", "own cc 2")
    assert (await make.find_compiler(args)).version != chosen.version
    (tmp_path / "cc").write_text("#!/bin/sh\n")
    with pytest.raises(HostError, match="cc --version: expected a line with its version"):
        await make.find_compiler(args)


def test_make_is_told_what_was_said_and_ccache_where_nothing_was() -> None:
    def words(*args: str) -> tuple[str, ...]:
        return Compiler(version="", through_ccache=True, args=make_args.parse(args)).variables

    assert words() == ("CC=ccache gcc", "HOSTCC=ccache gcc")
    assert words("LLVM=1") == ("CC=ccache clang", "HOSTCC=ccache clang", "LLVM=1")
    assert words("CC=gcc-11", "KCFLAGS=-O1") == ("HOSTCC=ccache gcc", "CC=gcc-11", "KCFLAGS=-O1")


def test_what_the_environment_says_is_kept_from_make_and_named() -> None:
    environment = {
        "CC": "clang",
        "LLVM": "1",
        "KCFLAGS": "",
        "ARCH": "arm64",
        "CFLAGS": "-O3",
        "HOSTCC": "x" * 100,
        "KBUILD_BUILD_USER": "me",
    }
    assert make_args.environment_ignored(environment | {"PATH": "/bin", "HOME": "/root", "CCACHE_DIR": "/x"}) == (
        "ARCH=arm64",
        "CC=clang",
        "CFLAGS=-O3",
        f"HOSTCC={'x' * 60}",
        "KBUILD_BUILD_USER=me",
        "LLVM=1",
    )
    assert make_args.environment_ignored({"ARCH": "x86", "MAKEFLAGS": "-j4"}) == ("MAKEFLAGS=-j4",)
    # Below another make, these variables are not the user's.
    assert (
        make_args.environment_ignored({"MAKELEVEL": "1", "MAKEFLAGS": " -j --jobserver-auth=3,4", "MFLAGS": "-j"}) == ()
    )
