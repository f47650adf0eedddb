"""All output of a guest is parsed in linear time: it is parsed in the event loop, which must not be blocked."""

import contextlib
import time
from collections.abc import Callable

import pytest

from testbed import cgroupfs
from testbed.api import blktests, suites
from testbed.api.blktests import Status
from testbed.bugs import shell_messages
from testbed.bugs.model import Condition
from testbed.bugs.script_files import script
from testbed.bugs.signature import SignatureMatcher, render
from testbed.errors import TestbedError
from testbed.guest import devices, shell_functions
from testbed.guest.channels import dmesg, kernel_log
from testbed.guest.debug import kallsyms
from testbed.guest.setup import readback, survey_parser
from testbed.guest.setup.readback import Expected
from testbed.pytest_plugin import requirements
from testbed.scenarios.claims import workers
from testbed.text import printable

BASH = script("crash.sh", "set -x\nfoo() {\n  echo a a a a\n}\necho 'a [not run]' <<E\nkill -9 $$\n", "bash")
PYTHON = script("crash.py", "import nothing\nprint('a', 'b')\n", "python3")
MARK = "@0123456789abcdef"
FACTS = (
    Expected(where="disks.a", file="/sys/a", expected="1"),
    Expected(where="disks.b", file="/sys/b", expected="1", line="7:0", of="/dev/loop0"),
)


def watched(data: bytes, piece: int) -> None:
    """Feed data in pieces to a signature with conditions on all outputs."""
    conditions = [
        Condition(console="nowhere"),
        Condition(output="a\nb"),
        Condition(expect="a"),
        Condition(output="a+$"),
    ]
    watch = SignatureMatcher(conditions, BASH)
    for at in range(0, len(data), piece):
        watch.feed_console(data[at : at + piece])
        watch.feed_output(data[at : at + piece])
        watch.feed_errors(data[at : at + piece])
    watch.flush()


def spoken(text: str) -> None:
    for source in (BASH, PYTHON):
        shell_messages.cannot_run(source, text, text)
        stream = shell_messages.Stream(shell_messages.Source(source), errors=True)
        for line in text.splitlines():
            stream.why_not_output(line[:4096])
            stream.why_not_output(f"{source.path}: line 3: 77 Killed {line[:4000]}")


def console_lines(text: str) -> None:
    reader = kernel_log.ConsoleReader()
    for line in text.split("\n"):
        reader.take(line)
        reader.take(f"[    1.000000] {line}")
        kernel_log.clean(line)


def of_processes(text: str) -> None:
    for line in text.splitlines():
        suites._PROCESS.match(line)
        suites._OURS.search(line)


def of_log(text: str) -> None:
    dmesg.merge((), dmesg.parse(f"0\n{text}"), 500)
    dmesg.merge(
        (), dmesg.parse("0\n" + "".join(f"kern  :warn  : [    1.000000] {line}\n" for line in text.split("\n"))), 500
    )


# Each reads what a guest chose; what it refuses it may refuse with an error of ours.
READERS: dict[str, Callable[[str], object]] = {
    "what ./check prints": lambda text: blktests.read_results("a/001", "", text, "", devices=True),
    "a record": lambda text: blktests.read_results("a/001", f"nodev\0{text}\0{text}\0", text, "", devices=True),
    "records": lambda text: blktests.read_results("a/001", text.replace(" ", "\0"), "", "", devices=True),
    "a test's text": lambda text: blktests.read_results("a/001", "", "", text, devices=False),
    "processes": of_processes,
    "console": console_lines,
    "kernel log": of_log,
    "interpreters": spoken,
    "script's output": lambda text: watched(text.encode(), 65536),
    "script's output in small pieces": lambda text: watched(text.encode(), 16),
    "flat counters": lambda text: cgroupfs.parse_flat(text, "g0"),
    "io.stat": lambda text: cgroupfs.parse_io_stat(f"{text}\n", "g0"),
    "unfinished io.stat": lambda text: cgroupfs.parse_io_stat(text, "g0"),
    "all counters": lambda text: render({"a": text}),
    "agent's counters": lambda text: cgroupfs.parse_group_counts(text.split("\n")),
    "agent's io": lambda text: cgroupfs.parse_group_counts([f"group name=61 io={text}"]),
    "disks": devices.parse,
    "shell's sections": lambda text: shell_functions.sections(text.replace("a", f"{MARK} file a\n"), MARK, "g0"),
    "shell's lines": lambda text: shell_functions.named_values(text, "a", ("b",), "g0"),
    "read back": lambda text: readback.differences(
        FACTS, f"read back\nnumber /dev/loop0 7:0\n== 0\n{text}\n== 1\n{text}"
    ),
    "survey": lambda text: survey_parser.parse(
        f"cpus {text}\nmount {text} / a b\nmount /dev/a {text} ext4 rw\nblock vda\nend", {}
    ),
    "trace": workers.parse_trace,
    "kallsyms": lambda text: kallsyms.make_elf(kallsyms.parse(text)),
    "configuration": lambda text: requirements.config_lacks("CONFIG_A=y", text),
    "terminal": printable,
}
# What patterns have been slow on: what each of their parts may begin with, again and again.
PIECES = (
    *(
        "/",
        "a/",
        " ",
        "\t",
        "[",
        "[ ",
        "[1",
        "a",
        "a ",
        "a: ",
        "1",
        "1:",
        "1 ",
        "0:0 ",
        ": ",
        "line 1: ",
        "=",
        "a=a ",
        "-a ",
        "(",
        "(a",
        "a()",
        "\0",
    ),
    *(
        "'",
        "<<'",
        '<<"',
        "<< ",
        "\\",
        "`",
        ";",
        " => ",
        "a/b => ",
        "...",
        "  ...",
        "    a  ...",
        "[not run]",
        "a/b [not run] ",
        "check: ",
        ",",
        ";,",
        "\n",
    ),
    *(
        "\x1b[",
        "\x1b[0",
        "\u00e9",
        "\u2028",
        "+ ",
        "++",
        "Killed ",
        "BUG: ",
        "XFS (",
        "BTRFS",
        "possible ",
        "INFO: ",
        "kern:",
        "io=",
        "work struct=",
    ),
    *(
        "a/b [not run]\n",
        "a/b [not run]\n    a\n",
        "    a\n",
        "a\n",
        "a 1\n",
        "status\tpass\n",
        "7:0 rbytes=1\n",
        "group name=61\n",
        "1 Killed '\n",
    ),
    *(
        "kern  :warn  : [    1.000000] BUG: a\n",
        f"{BASH.path}: line 1: a: not found\n",
        "echo a a a a",
        "ffffffff81000000 T a\n",
        "number a 1:1\n",
    ),
)
_FEW, _TIMES = 1_500, 10
# Of CPU time: less says nothing. A quadratic reader takes a hundred times as long for ten times as much.
_NOISE_S, _MOST_TIMES = 0.25, 40


def took_s(read: Callable[[str], object], text: str) -> float:
    before = time.thread_time()
    with contextlib.suppress(TestbedError):
        read(text)
    return time.thread_time() - before


@pytest.mark.parametrize("reader", READERS)
def test_parsing_guest_output_takes_linear_time(reader: str) -> None:
    read = READERS[reader]
    took_s(read, "a\n" * 50)  # patterns are compiled
    for piece in PIECES:
        few, many = piece * (_FEW // len(piece) + 1), piece * (_TIMES * _FEW // len(piece) + 1)
        if (long_s := took_s(read, many)) > _NOISE_S:
            short_s = min(took_s(read, few) for _ in range(3))
            assert long_s < _MOST_TIMES * max(short_s, _NOISE_S / _TIMES), (piece, short_s, long_s)


def test_a_long_line_is_parsed_at_once() -> None:
    """This text once stopped `suite` for hours."""
    line = "/" * (1 << 20)
    (found,) = blktests.read_results("a/001", "nodev\0status\tpass\n\0\0", line, "", devices=True)
    assert found.status is Status.PASS
    assert shell_messages.cannot_run(BASH, line, line) == []


def test_a_script_that_prints_its_own_source_is_no_hit_and_hides_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell_messages, "_MOST_COMPARISONS", 1000)
    watch = SignatureMatcher([Condition(output="a")], BASH)
    for _ in range(1000):
        watch.feed_output(b"  echo a a a a\n")
    watch.script_ended(0)
    assert watch.hit is None and "its own source" in watch.why_unknown(0)
