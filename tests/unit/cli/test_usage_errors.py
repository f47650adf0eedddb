"""Wrong arguments and files: one clear message and the right exit code, before any guest starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import testbed

ROOT = Path(__file__).parents[3]
SCRIPT = "tests/data/cover-letter.sh"


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
            ("bisect", "topologies/bugs/bypass.yaml", "--good", "a", "--bad", "b", "--kernels", "/no/such"),
            "--kernels /no/such: expected two kernels or more, with commas between, or a folder that is there",
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
def test_wrong_arguments_are_usage_errors(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
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
def test_wrong_arguments_are_no_bad_commit_to_git_bisect(
    tmp_path: Path, before: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = testbed(tmp_path, *before, "bisect", "topologies/bugs/bypass.yaml", *words)
    assert done.returncode == 255 and done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["compare", "run", "matrix", "sensitivity"])
def test_a_stack_that_scenarios_do_not_use_is_refused_before_a_guest_starts(tmp_path: Path, verb: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "version: 1\nguests:\n  g0:\n    disks: {data: {type: nvme, size: 1G}}\n"
        "    loops: {l0: {backing: data/f, size: 4M}}\n"
    )
    done = testbed(tmp_path, verb, "--topology", str(file))
    assert done.returncode == 2
    assert (
        f"{file}:5:5: guests.g0.loops: not used: "
        "scenarios build stacks of their own; leave it out, or add --ignore-stack"
    ) in done.stderr


def test_an_endless_file_is_too_large(tmp_path: Path) -> None:
    for words in (("validate", "/dev/zero"), ("repro", "--script", "/dev/zero", "--expect", "x")):
        done = testbed(tmp_path, *words)
        assert done.returncode in (1, 2) and "/dev/zero:1:1: expected at most" in done.stdout + done.stderr


def test_a_shell_pipe_is_read_and_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = testbed(tmp_path, "validate", str(tmp_path / "pipe"))
    assert done.returncode == 1 and "pipe:1:1: cannot be read: expected a file, got a named pipe" in done.stdout
    for verb in ("repro", "reduce"):
        done = testbed(tmp_path, verb, str(tmp_path / "pipe"))
        assert done.returncode == 2 and "pipe:1:1: cannot be read: expected a file, got a named pipe" in done.stderr
    words = ["bash", "-c", 'exec "$0" -m testbed validate <(cat topologies/default.yaml)', sys.executable]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"version: 1\nguests: {g: {}}\n"])
def test_a_file_that_is_no_bug_is_refused_with_what_was_expected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.yaml").write_bytes(content)
    done = testbed(tmp_path, "repro", str(tmp_path / "file.yaml"))
    assert done.returncode == 2 and "file.yaml:1:1: expected a bug file (docs/reproduce.md), or a bundle" in done.stderr
