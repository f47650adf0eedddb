"""The command line as a person meets it: wrong things get one clear message and the right exit code."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import cli
from testbed.cli.app import app, err
from testbed.errors import HostError
from testbed.host import paths

ROOT = Path(__file__).parents[3]
SCRIPT = "tests/data/cover-letter.sh"


def testbed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:

    env = {
        **os.environ,
        "TESTBED_CACHE": str(folder / "cache"),
        "TESTBED_STATE": str(folder / "state"),
        "COLUMNS": "200",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "testbed", *words], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )


testbed.__test__ = False  # type: ignore[attr-defined]  # pytest takes its name for a test's


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "nope"), "scenario 'nope': expected one of oom-tmpfs, gate"),
        (("compare", "--base", "debian-0.1"), "kernel 'debian-0.1': expected one of debian-5.10"),
        (("compare", "--topology", "/no/such.yaml"), "/no/such.yaml:1:1: cannot be read: No such file or directory"),
        (("run", "--expect", "wonders"), "--expect wonders: expected one of auto, closed, open"),
        (("image", "build", "nope"), "image 'nope': expected one of bookworm"),
        (("image", "rm", "bookworm"), "image 'bookworm': it is not built"),
        (("kernel", "fetch", "/etc/hostname"), "expected a bzImage"),
        (("repro",), "repro: expected a bug file or --script, got neither"),
        (("repro", "/no/such.yaml"), "/no/such.yaml:1:1: cannot be read: No such file or directory"),
        (("repro", "topologies/bugs/bypass.yaml", "--expect", "x"), "--expect and --topology belong to --script"),
        (
            ("repro", "topologies/bugs/bypass.yaml", "--until", "110%"),
            "--until 110%: expected a share between 0 % and 100 %, such as 95%",
        ),
        (("repro", "topologies/bugs/bypass.yaml", "--timeout", "9"), "--timeout 9: expected a duration such as 5ms"),
        (
            ("repro", "topologies/bugs/bypass.yaml", "-k", "debian-6.1", "--clean", "debian-6.1"),
            "debian-6.1: expected a kernel with --kernel or",
        ),
        (("repro", "--script", SCRIPT, "--expect", "("), "repro: signature.0.expect: expected a regular expression"),
        (("repro", "--script", SCRIPT, "--expect", ""), "--expect: expected a value, got an empty one"),
        (
            ("repro", "--script", SCRIPT, "--hold", "--until", "90%"),
            "--hold stops at the first hit; expected no --all and",
        ),
        (("repro", "--script", SCRIPT, "--name", "x"), "repro: --paused and --name belong to --hold"),
        (
            (
                "bisect",
                "topologies/bugs/bypass.yaml",
                "--good",
                "debian-6.1",
                "--bad",
                "x",
                "--kernels",
                "debian-6.1,debian-5.10,debian-6.1",
            ),
            "--kernels: expected each kernel once, got debian-6.1 twice",
        ),
        (
            ("bisect", "topologies/bugs/bypass.yaml", "--good", "a", "--bad", "b", "--kernels", "/nowhere"),
            "--kernels /nowhere: expected two kernels or more, with commas between, or a folder that is there",
        ),
        (
            (
                "bisect",
                "topologies/bugs/bypass.yaml",
                "--good",
                "debian-6.1",
                "--bad",
                "x",
                "--kernels",
                "debian-6.1,x",
            ),
            "kernel 'x': expected one of debian-5.10",
        ),
        (("repro", "topologies/default.yaml"), "topologies/default.yaml:8:1: guests: unknown key"),
        (("bundle", "nope"), "run 'nope': expected a run of `testbed repro`"),
        (
            ("bisect", "topologies/bugs/bypass.yaml", "--good", "debian-6.1"),
            "bisect: expected --bad KERNEL, one of debian-5.10",
        ),
        (
            ("bisect", "topologies/bugs/bypass.yaml", "--good", "x", "--bad", "debian-5.10"),
            "--good x: expected one of debian-5.10",
        ),
        (
            ("reduce", "topologies/bugs/bypass.yaml", "-o", "/no/such/x.yaml"),
            "--output /no/such/x.yaml: expected a place in a folder",
        ),
        (("fork", "nobody", "../y"), "expected a guest's name of small letters"),
        (("sample", "nobody", "--every", "0ms"), "--every: expected a duration of more than nothing, got '0ms'"),
        (("gdb", "nobody"), "nobody: there is no such guest"),
        (("dump", "nobody", "x", "--format", "core"), "--format core: expected one of elf, kdump-zlib"),
        (
            ("reduce", "topologies/bugs/bypass.yaml", "-o", "topologies"),
            "--output topologies: expected a file, got a folder",
        ),
        (
            ("reduce", "topologies/bugs/bypass.yaml", "-o", "topologies/bugs/bypass.yaml"),
            "expected another file than that of the bug itself",
        ),
        (
            ("report", "--diff", "a", "b", "--open"),
            "report --diff: it is text, or JSON with --json; expected no --open and no --format",
        ),
        (("report", "--json", "--format", "html"), "report: expected --json or --format html, got both"),
        (
            ("suite", "tests/data/suite", "-t", "topologies/network.yaml"),
            "--topology: expected one guest, in which each test runs, got",
        ),
        (("report", "nope"), "run 'nope': expected a run's name or folder, or last; `testbed runs` lists those in"),
        (
            ("plan", "topologies/default.yaml", "--point", "a=b"),
            "expected no point, because this file has no matrix, got 'a=b'",
        ),
        (
            ("--qemu", "/no/qemu", "plan", "topologies/default.yaml"),
            "QEMU '/no/qemu': there is no such program; name one with --qemu",
        ),
        (
            ("--qemu", "/bin/true", "plan", "topologies/default.yaml"),
            "/bin/true: expected a QEMU, which answers on QMP, got nothing",
        ),
        (
            ("--qemu", "/bin/echo", "plan", "topologies/default.yaml"),
            "/bin/echo: expected a QEMU, which answers on QMP, got '-machine none",
        ),
        (
            ("--qemu", "/bin/false", "plan", "topologies/default.yaml"),
            "/bin/false: expected a QEMU, which answers on QMP, got nothing",
        ),
        (
            ("compare", "--base", "debian-6.1", "--patched", ""),
            "--patched: expected a value, got an empty one; is a variable of the shell not",
        ),
        (("compare", "--tree="), "--tree: expected a value, got an empty one"),
        (("kernel", "build", "--series", ""), "--series: expected a value, got an empty one"),
        (("--qemu", "", "plan", "topologies/default.yaml"), "--qemu: expected a value, got an empty one"),
        (
            ("matrix", "--kernels", "debian-6.1,,x"),
            "--kernels debian-6.1,,x: expected names with commas between, got an empty one",
        ),
        (
            ("matrix", "--kernels", ",debian-6.1"),
            "--kernels ,debian-6.1: expected names with commas between, got an empty one",
        ),
        (
            ("matrix", "--kernels", "debian-6.1, "),
            "--kernels debian-6.1, : expected names with commas between, got an empty one",
        ),
        (
            (
                "bisect",
                "topologies/bugs/bypass.yaml",
                "--kernels",
                "debian-6.1,debian-6.12,",
                "--good",
                "debian-6.1",
                "--bad",
                "debian-6.12",
            ),
            "--kernels debian-6.1,debian-6.12,: expected names with commas between, got an empty one",
        ),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("compare", "--nope"), "No such option: --nope"),
    ],
)
def test_a_wrong_word_is_an_error_of_the_user(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = testbed(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ((), ("--tree", ".", "--flavor", "kasan")),
        ((), ("--run", "debian-6.11")),
        ((), ("--run=debian-6.1", "--good", "debian-6.1")),
        (("--qemu", "qemu-system-x86_64"), ("--tree",)),
    ],
)
def test_a_wrong_word_is_no_bad_commit_to_git(tmp_path: Path, before: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = testbed(tmp_path, *before, "bisect", "topologies/bugs/bypass.yaml", *words)
    assert done.returncode == 255 and done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["compare", "run", "matrix", "sensitivity"])
def test_a_stack_that_scenarios_would_not_use_is_refused_before_a_guest_starts(tmp_path: Path, verb: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "version: 1\nguests:\n  g0:\n    disks: {data: {type: nvme, size: 1G}}\n    loops: {l0: {backing: data/f, size: 4M}}\n"
    )
    done = testbed(tmp_path, verb, "--topology", str(file))
    assert done.returncode == 2
    assert (
        f"{file}:5:5: guests.g0.loops: not used: scenarios build stacks of their own; leave it out, or add --ignore-stack"
        in done.stderr
    )


def test_an_unwritable_cache_says_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = testbed(tmp_path, "kernel", "list", TESTBED_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 2
    assert "cannot be made" in done.stderr and "TESTBED_CACHE" in done.stderr


@pytest.mark.slow
def test_a_mirror_that_does_not_answer_is_one_message_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    done = testbed(tmp_path, "compare", TESTBED_DEBIAN_MIRROR="http://127.0.0.1:9/debian")
    assert done.returncode == 2
    assert "127.0.0.1" in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".unfinished")]
    assert not list((tmp_path / "cache").rglob("meta.json"))


def test_validate_says_every_error_of_every_file_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nguests: {g0: {cpu: 2, memory: big}}\n")
    (tmp_path / "b.yaml").write_text("version: 3\nguests: {g0: {}}\n")
    done = testbed(tmp_path, "validate", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "topologies/default.yaml")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{tmp_path}/a.yaml:2:15: guests.g0.cpu: unknown key; did you mean 'cpus'?",
        f"{tmp_path}/a.yaml:2:31: guests.g0.memory: expected a size such as 2G, got 'big'",
        f"{tmp_path}/b.yaml:1:10: version: expected 1, got 3",
    ]


def test_validate_says_what_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "version: 1\nguests:\n  g0: {kernel: debian-0.1}\n  g1: {image: bokworm, kernel: /etc/hostname}\n"
    )
    done = testbed(tmp_path, "validate", str(tmp_path / "a.yaml"))
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith(
        f"{tmp_path}/a.yaml:3:16: guests.g0.kernel: kernel 'debian-0.1': expected one of debian-5.10, "
    )
    assert (
        second
        == f"{tmp_path}/a.yaml:4:15: guests.g1.image: expected an image of images/, got 'bokworm'; did you mean 'bookworm'?"
    )


def test_who_only_reads_needs_no_place_for_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file/state")
    for words, status, said in (
        (("ps",), 0, "no guests"),
        (("runs",), 0, "0 runs"),
        (("report",), 2, "there is none"),
        (("gc",), 0, ""),
    ):
        done = testbed(tmp_path, *words, TESTBED_STATE=nowhere)
        assert done.returncode == status and said in done.stderr, (words, done)


def test_a_file_without_an_end_is_too_large(tmp_path: Path) -> None:
    for words in (("validate", "/dev/zero"), ("repro", "--script", "/dev/zero", "--expect", "x")):
        done = testbed(tmp_path, *words)
        assert done.returncode in (1, 2) and "/dev/zero:1:1: expected at most" in done.stdout + done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_who_hears_nothing_gets_the_exit_code(tmp_path: Path, closed: str) -> None:
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path / "c"), "TESTBED_STATE": str(tmp_path / "s")}
    for words, status in (("validate topologies/default.yaml", 0), ("validate nope.yaml", 1), ("ssh nobody", 2)):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -m testbed {words} {closed}', sys.executable], env=env, cwd=ROOT, capture_output=True
        )
        assert done.returncode == status and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("scenarios --markdown >/dev/full", 2, "testbed: what it prints cannot be written: No space left on device\n"),
        ("errors nope 2>/dev/full", 2, ""),
        ("scenarios --markdown >&5", 141, ""),
        ("errors TB100 >&5", 141, ""),
        ("errors nope 2>&5", 141, ""),
    ],
)
def test_what_it_prints_is_taken_or_that_is_its_status(tmp_path: Path, words: str, status: int, said: str) -> None:
    """5: a pipe whose reader has gone."""
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path / "c"), "TESTBED_STATE": str(tmp_path / "s")}
    reader, pipe = os.pipe()
    os.close(reader)
    with os.fdopen(pipe, "wb"):
        script = f'exec 5>&{pipe}; "$0" -m testbed {words}'
        done = subprocess.run(
            ["bash", "-c", script, sys.executable], env=env, cwd=ROOT, capture_output=True, pass_fds=(pipe,)
        )
    assert (done.returncode, done.stderr.decode()) == (status, said)


def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path), "TESTBED_STATE": "/dev/null"}
    done = subprocess.run([sys.executable, "-m", "testbed", "runs"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr
        == "testbed: /dev/null: expected a folder, got something else; name another with TESTBED_STATE\n"
    )


def test_a_pipe_of_the_shells_is_read_and_a_named_one_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = testbed(tmp_path, "validate", str(tmp_path / "pipe"))
    assert done.returncode == 1 and "pipe:1:1: cannot be read: expected a file, got a named pipe" in done.stdout
    for verb in ("repro", "reduce"):
        done = testbed(tmp_path, verb, str(tmp_path / "pipe"))
        assert done.returncode == 2 and "pipe:1:1: cannot be read: expected a file, got a named pipe" in done.stderr
    words = ["bash", "-c", 'exec "$0" -m testbed validate <(cat topologies/default.yaml)', sys.executable]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"version: 1\nguests: {g: {}}\n"])
def test_what_is_no_bug_is_told_what_is_wanted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.yaml").write_bytes(content)
    done = testbed(tmp_path, "repro", str(tmp_path / "file.yaml"))
    assert done.returncode == 2 and "file.yaml:1:1: expected a bug file (docs/reproduce.md), or a bundle" in done.stderr


def test_validate_of_good_files_exits_0(tmp_path: Path) -> None:
    assert testbed(tmp_path, "validate", "topologies/default.yaml").returncode == 0


def test_kernels_and_images_are_listed_without_fetching_any(tmp_path: Path) -> None:
    kernels = testbed(tmp_path, "kernel", "list")
    assert kernels.returncode == 0
    assert "debian-5.10\tbefore\tbase\tnot fetched" in kernels.stdout
    assert "bookworm\tnot built" in testbed(tmp_path, "image", "list").stdout


def test_each_command_is_in_the_module_that_is_loaded_for_it() -> None:
    cli.load()
    found: dict[str, str] = {}
    for one in app.registered_commands:
        assert one.callback is not None
        found[one.name or one.callback.__name__.replace("_", "-")] = one.callback.__module__
    for group in app.registered_groups:
        assert group.typer_instance is not None
        first = group.typer_instance.registered_commands[0].callback
        assert first is not None
        found[str(group.name)] = first.__module__
    assert found == {verb: f"testbed.cli.{module}" for module, verbs in cli.MODULES.items() for verb in verbs}


def test_without_words_there_is_help(tmp_path: Path) -> None:
    assert "compare" in testbed(tmp_path, "--help").stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/somewhere"),
            "/somewhere: No space left on device; name other places with",
        ),
        (
            ExceptionGroup("g", [ExceptionGroup("h", [OSError(errno.EROFS, "Read-only file system")])]),
            "this machine: Read-only file system",
        ),
        (ExceptionGroup("g", [HostError("no tool"), ValueError("b")]), "no tool"),
        (OSError(errno.EPIPE, "Broken pipe"), None),
        (ExceptionGroup("g", [ValueError("a mistake of ours")]), None),
    ],
)
def test_what_the_machine_refuses_is_one_message_and_a_mistake_of_ours_is_not(
    error: Exception, said: str | None
) -> None:
    refused = cli._refused(error)
    assert (refused is None) if said is None else str(refused).startswith(said)


def test_what_is_printed_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    err.print("a:b:c [media] x", markup=False, highlight=False, soft_wrap=True)
    assert capsys.readouterr().err == "a:b:c [media] x\n"


# Taken down for longer than anybody waits.
HANGS = """\
import asyncio
from testbed.cli.app import run_async

async def work():
    print("at work", flush=True)
    try:
        await asyncio.sleep(600)
    finally:
        print("ending", flush=True)
        await asyncio.sleep(600)

run_async(work())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_third_signal_ends_it_at_once(number: signal.Signals) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HANGS], stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "at work\n"
        child.send_signal(number)
        assert child.stdout.readline() == "ending\n"
        child.send_signal(number)
        assert child.stderr.readline() == "testbed: guests are taken down; once more ends that at once\n"
        child.send_signal(number)
        assert child.wait(30) == 128 + number


def test_without_a_home_it_is_the_accounts_or_named_as_missing(tmp_path: Path) -> None:
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])}
    code = "import os; from testbed.host import paths; print(paths.folders().cache)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(done.stdout.strip()) == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "testbed"


def test_an_account_that_nobody_knows_needs_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "TESTBED_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        HostError, match=r"uid \d+ has no home on this machine; set HOME, or TESTBED_CACHE and TESTBED_STATE"
    ):
        paths.folders()
