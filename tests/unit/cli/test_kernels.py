"""Commands on kernels from source, without guests: kernel build and rm, bisect, sensitivity; the arguments of make."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from testbed.cli import exit_code, load
from testbed.cli.app import ERROR, app
from testbed.errors import TestbedError, UsageError
from testbed.host import quota
from testbed.progress import Silent
from testbed.report import results
from testbed.store import cache
from testbed.store.kernels import build_jail
from testbed.store.kernels import builder as kernel_builds
from testbed.store.kernels.builder import Builder, BuildSpec
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels.make_args import MakeArg
from tests.support import run_results as outcomes
from tests.support.fake_kernel_source import IMAGES, LOOP_C, PATCH, build, compiled, git, tree_of_two_commits
from tests.support.kernel_images import TABLE
from tests.unit.store.kernels.test_patches import mail

BUG = Path(__file__).parents[3] / "topologies/bugs/bypass.yaml"


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fake_compiler(args: tuple[MakeArg, ...]) -> Compiler:
        return Compiler(version="gcc 12", through_ccache=False, args=args)

    monkeypatch.setattr(kernel_builds, "find_compiler", fake_compiler)
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tree_of_two_commits(tmp_path / "linux")


def run_command(*words: str | Path) -> int:
    """Run a command and return the exit status that `testbed` would have."""
    load()
    arguments = [str(word) for word in words]
    try:
        app(arguments, standalone_mode=False)
    except SystemExit as ended:
        return exit_code(ended.code, arguments)
    except TestbedError as error:
        sys.stderr.write(str(error))
        return exit_code(ERROR, arguments)
    return 0


def read_build_file(root: Path, name: str) -> str:
    """Read a file that a build wrote into its output folder."""
    (file,) = root.glob(f"sources/*/out-*/{name}")
    return file.read_text()


def test_a_kernel_is_built_listed_and_removed_by_its_name(
    tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("kernel", "build", "mine", "--source", f"{tree}@main~1", "--json", "-q") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["name"], row["series"], row["compiled"]) == ("built-mine", "before", 1)
    assert run_command("kernel", "list", "--json") == 0
    assert "built-mine" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert run_command("kernel", "rm", "built-mine") == 0 and not Path(row["folder"]).exists()
    assert run_command("kernel", "rm", "mine") == ERROR
    # The objects of the build are still there.
    assert run_command("kernel", "build", "mine", "--source", f"{tree}@main~1", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["compiled"] == 0


def test_a_new_kernel_evicts_others_from_a_full_cache(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def built(name: str, source: str) -> Path:
        assert run_command("kernel", "build", name, "--source", source, "--json", "-q") == 0
        return Path(json.loads(capsys.readouterr().out)["folder"])

    old = built("old", f"{tree}@main~1")
    os.utime(old / cache.META, (0, 0))
    monkeypatch.setenv(quota.CACHE_LIMIT, "1")
    assert built("new", str(tree)).exists() and not old.exists()
    monkeypatch.setenv(quota.CACHE_LIMIT, "much")
    for verb in ("build", "fetch"):
        assert (
            run_command("kernel", verb, "-q") == ERROR
            and "TESTBED_CACHE_LIMIT=much: expected a size" in capsys.readouterr().err
        )


def test_make_does_not_get_the_callers_environment(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "KCFLAGS": "-O0",
        "LLVM": "1",
        "MAKEFLAGS": "n",
        "KBUILD_EXTMOD": "x",
        "KCONFIG_CONFIG": "elsewhere",
        "KBUILD_BUILD_USER": "me",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNRELATED", "a password, perhaps")
    build(tmp_path / "cache", BuildSpec(source=str(tree)))
    environment = dict(
        line.split("=", 1) for line in read_build_file(tmp_path / "cache", "environment").splitlines() if "=" in line
    )
    assert not {"KCFLAGS", "LLVM", "KBUILD_EXTMOD", "KCONFIG_CONFIG", "UNRELATED"} & environment.keys()
    assert (environment["KBUILD_BUILD_USER"], environment["ARCH"]) == ("testbed", "x86_64")


def test_a_build_with_ccache_records_it_as_its_compiler(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fake_compiler(args: tuple[MakeArg, ...]) -> Compiler:
        return Compiler(version="gcc 12", through_ccache=True, args=args)

    monkeypatch.setattr(kernel_builds, "find_compiler", fake_compiler)
    build(tmp_path / "cache", BuildSpec(source=str(tree)))
    assert read_build_file(tmp_path / "cache", "cc") == "ccache gcc, ccache gcc\n"


def test_make_arguments_reach_make_and_give_another_kernel(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("kernel", "build", "usual", "--source", tree, "--json", "-q") == 0
    usual = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("CC", "of the environment")
    words = ("--make-arg", "HOSTCC=gcc-11", "--make-arg", "CC=clang")
    assert run_command("kernel", "build", "mine", "--source", tree, *words, "--json") == 0
    captured = capsys.readouterr()
    mine = json.loads(captured.out)
    assert (
        "of the environment CC=of the environment does not count in builds; --make-arg NAME=VALUE does" in captured.err
    )
    assert mine["folder"] != usual["folder"] and (mine["make_args"], usual["make_args"]) == (
        ["CC=clang", "HOSTCC=gcc-11"],
        [],
    )
    assert mine["origin"].endswith("; make CC=clang HOSTCC=gcc-11")
    assert {path.read_text() for path in (tmp_path / "cache").glob("sources/*/out-*/cc")} == {
        "cc, \n",
        "clang, gcc-11\n",
    }
    assert run_command("kernel", "build", "--source", tree, "--make-arg", "O=/tmp/elsewhere") == ERROR
    assert "O cannot be given: the testbed decides where a build is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [("run", "read"), ("compare", "read"), ("bisect", BUG, "--run", "debian-6.1")], ids=lambda verb: verb[0]
)
@pytest.mark.parametrize(
    "option", [("--make-arg", "LLVM=1"), ("--series-version", "2"), ("--series-patches", "1-2")], ids=lambda o: o[0]
)
def test_options_of_a_build_are_refused_without_a_tree(
    verb: tuple[str | Path, ...], option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(*verb, *option) != 0
    assert "--make-arg: expected --tree beside them" in capsys.readouterr().err


def test_a_version_and_patches_of_a_mail_thread_are_built(
    tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.mbx").write_text(
        mail("[PATCH 1/1] loop: first", PATCH.replace("two", "2"))
        + mail("[PATCH v2 1/2] loop: charge", PATCH)
        + mail("[PATCH v2 2/2] x", "x")
    )
    spec = ("kernel", "build", "mine", "--source", f"{tree}@main~1", "--series", tmp_path / "t.mbx", "--json", "-q")
    assert run_command(*spec) == ERROR
    assert "choose one, such as --series-version v2" in capsys.readouterr().err
    assert run_command(*spec, "--series-version", "2") == ERROR
    assert "patch 2 has no diff that can be read" in capsys.readouterr().err
    assert run_command(*spec, "--series-version", "2", "--series-patches", "1") == 0
    assert json.loads(capsys.readouterr().out)["origin"].endswith("with 1 patch (1/2 loop: charge)")


def test_an_interrupted_build_continues_with_its_object_files(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    (tree / "second.c").write_text("second\n")
    (tree / "held-at").write_text(str(tmp_path / "held"))
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "two objects")
    os.mkfifo(tmp_path / "held")

    async def interrupted() -> None:
        builder = Builder(table=TABLE, root=root, shipped=IMAGES, progress=Silent())
        going_on = asyncio.create_task(builder.build(BuildSpec(source=str(tree)), "mine"))
        held = await asyncio.to_thread(
            os.open, tmp_path / "held", os.O_WRONLY
        )  # returns when the second object is being compiled
        going_on.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going_on
        os.close(held)

    with monkeypatch.context() as patched:
        patched.setenv(build_jail.MORE_PATHS, str(tmp_path / "held"))
        asyncio.run(interrupted())
    assert compiled(root) == 1 and not list(root.glob("kernels/built-*/meta.json"))
    built = build(root, BuildSpec(source=str(tree)), "mine")
    assert cache.read_meta(built.folder)["compiled"] == 1 and compiled(root) == 2


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("error: unknown type name", 125),
        ("error: No space left on device", 255),
        ("error: Killed signal terminated program cc1", 255),
        ("error: Cannot allocate memory", 255),
    ],
)
def test_bisect_skips_commits_that_do_not_compile_and_stops_on_host_errors(
    tree: Path, capsys: pytest.CaptureFixture[str], line: str, status: int
) -> None:
    (tree / "drivers/block/loop.c").write_text(LOOP_C.replace("two", line))
    git(tree, "commit", "-qam", "broken")
    assert run_command("bisect", BUG, "--tree", tree, "-q") == status
    assert line in capsys.readouterr().err


def test_mistakes_that_would_skip_every_commit_end_a_bisection(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("bisect", BUG, "--tree", tree, "--flavour", "kasna", "-q") == 255
    assert "--flavour kasna: expected one of" in capsys.readouterr().err
    assert run_command("bisect", BUG, "--tree", tree, "--fragment", tmp_path / "nowhere", "-q") == 255
    assert run_command("bisect", BUG, "--tree", tree, "--series", tmp_path / "nowhere", "-q") == 255


def test_a_commit_is_bisected_in_the_given_configuration(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.config").write_text("CONFIG_LOSES_THIS=y\n")
    assert run_command("bisect", BUG, "--tree", tree, "--fragment", tmp_path / "mine.config", "-q") == 125
    assert "CONFIG_LOSES_THIS: expected y, got n" in capsys.readouterr().err
    load()
    for words in (("--run", "built-x"), ("--good", "debian-5.10", "--bad", "debian-6.1")):
        with pytest.raises(UsageError, match="expected --tree beside them"):
            app(["bisect", str(BUG), *words, "--flavour", "kasan"], standalone_mode=False)


def test_a_sensitivity_table_of_a_run_of_another_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(results.text(outcomes.document(tmp_path, outcomes.passed(tmp_path))))
    load()
    with pytest.raises(
        UsageError,
        match=r"--of .*: expected a run of `testbed sensitivity`, of unchanged and ablations, got one of base, patched",
    ):
        app(["sensitivity", "--of", str(tmp_path)], standalone_mode=False)
