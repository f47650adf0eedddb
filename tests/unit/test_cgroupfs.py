"""Files of the cgroup filesystem with any content: parsed, or refused with a ReadingError that names the place."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import cgroupfs
from testbed.api import blktests
from testbed.bugs import signature
from testbed.errors import ReadingError
from testbed.guest import cpu_memory, devices, shell_functions
from testbed.guest.channels import dmesg, kernel_log
from testbed.guest.clock import parse_uptime
from testbed.guest.debug import kallsyms
from testbed.guest.setup import readback, survey_parser
from testbed.guest.setup.readback import Expected
from testbed.units import parse_decimal, parse_octal, parse_whole

# Printed by Debian 6.1 in a guest, with the trailing blank.
IO_STAT = """\
254:32 rbytes=33816576 wbytes=0 rios=264 wios=0 dbytes=0 dios=0
259:0\x20
7:0 rbytes=33554432 wbytes=0 rios=32 wios=0 dbytes=0 dios=0 cost.usage=12 cost.vrate=100.00
"""
MOVED = "rbytes=5 wbytes=0 rios=1 wios=0 dbytes=0 dios=0"


def test_io_stat_is_parsed_by_device() -> None:
    parsed = cgroupfs.parse_io_stat(IO_STAT, "x")
    assert parsed["254:32"]["rbytes"] == 33816576
    assert parsed["259:0"] == {}
    assert parsed["7:0"]["cost.usage"] == 12 and "cost.vrate" not in parsed["7:0"]


def test_an_empty_io_stat_has_no_devices() -> None:
    assert cgroupfs.parse_io_stat("", "x") == {}


def test_devices_without_io_may_precede_others_or_be_last() -> None:
    parsed = cgroupfs.parse_io_stat(f"7:1 7:0 254:0 {MOVED}\n7:3 7:2 ", "x")
    assert parsed["254:0"]["rbytes"] == 5 and [parsed[f"7:{n}"] for n in range(4)] == [{}] * 4


@pytest.mark.parametrize(
    "text",
    [
        f"254:0 {MOVED}",  # no end: a byte may be missing
        f"254:0 {MOVED[:-7]}\n",
        f"254:0 {MOVED}\n\n",
        "\n",
        f"{MOVED}\n",
        f"254:0 {MOVED}\n254:0 {MOVED}\n",
        f"254:0 {MOVED} rbytes=6\n",
        "254:0 rbytes=\u00b2 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        "254:0 rbytes=\u0663 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        "254:0 rbytes=1_0 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        f"254:0 rbytes={'9' * 5000} wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        f"254:0 rbytes={1 << 64} wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        "254:0 rbytes=-1 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        "254:0 rbytes=\0 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
        "254:0 nonsense\n",
        "\ufffd\ufffd\n",
        "7:",
        "7:1",
    ],
)
def test_a_malformed_io_stat_is_an_error(text: str) -> None:
    with pytest.raises(ReadingError, match=r"^g0: io\.stat.*: expected "):
        cgroupfs.parse_io_stat(text, "g0: io.stat")


def test_a_malformed_flat_keyed_file_is_an_error() -> None:
    assert cgroupfs.parse_flat("anon 4096\nfile 33816576\n", "x") == {"anon": 4096, "file": 33816576}
    for text in (
        "anon 4096\nfile 338",
        "anon\n",
        "anon 1 2\n",
        " 1\n",
        "anon 1\n\n",
        "anon 1\nanon 2\n",
        "anon max\n",
        "anon \u00b2\n",
    ):
        with pytest.raises(ReadingError, match=r"^g0: memory\.stat"):
            cgroupfs.parse_flat(text, "g0: memory.stat")
    with pytest.raises(ReadingError, match="expected a line `file number`, got 'anon'"):
        cgroupfs.parse_key("anon 1\n", "file", "x")


def test_a_named_counter_must_exist_and_be_a_number() -> None:
    assert (
        cgroupfs.parse_value("low 0\noom_kill 3\n", "oom_kill", "x") == 3
        and cgroupfs.parse_value("77\n", "", "x") == 77
    )
    for text, key in (
        ("low 0\n", "oom_kill"),
        ("max\n", ""),
        ("some avg10=0.00 total=1\n", "some"),
        ("a 1\na 2\n", "a"),
        ("", ""),
        ("7", ""),
    ):
        with pytest.raises(ReadingError):
            cgroupfs.parse_value(text, key, "x")


def test_growth_needs_the_device_and_a_monotonic_counter() -> None:
    before, after = f"254:0 {MOVED}\n", f"254:0 {MOVED.replace('rbytes=5', 'rbytes=9')}\n"
    assert cgroupfs.bytes_moved(before, after, "254:0", "rbytes", "x") == 4
    assert cgroupfs.bytes_moved("", after, "254:0", "rbytes", "x") == 9
    # The file was read and has no line for the device: the group moved no bytes.
    assert (
        cgroupfs.bytes_moved("", before, "254:16", "rbytes", "x") == 0
        and cgroupfs.bytes_moved("", "", "254:0", "rbytes", "x") == 0
    )
    for first, last in ((before, ""), (after, before), (before, "254:0 \n")):
        with pytest.raises(ReadingError, match="as before"):
            cgroupfs.bytes_moved(first, last, "254:0", "rbytes", "x")


# Output of the shell functions ----------------------------------------------------------------------------------------


def taken(*parts: str, end: bool = True) -> str:
    return "".join(f"@1 {part}\n" for part in parts) + ("@1 finish\n" if end else "")


def test_sections_have_whole_files() -> None:
    output = "noise\n" + taken(
        "section before",
        "file /a\n1\n2\n",
        "whole /a",
        "absent /b",
        "note status 0",
        "section after",
        "file /a\n\n",
        "whole /a",
    )
    parsed = shell_functions.sections(output, "@1", "g0")
    assert (
        parsed["before"].text("/a") == "1\n2\n"
        and parsed["before"].note("status") == "0"
        and parsed["after"].text("/a") == "\n"
    )
    for path, why in (("/b", "no such file"), ("/c", "it was not looked at")):
        with pytest.raises(ReadingError, match=f"guest g0: {path}: expected to read it, got .*{why}"):
            parsed["before"].text(path)
    with pytest.raises(ReadingError, match="a note of its status"):
        parsed["after"].note("status")


@pytest.mark.parametrize(
    "output",
    [
        "",
        "noise",
        taken("file /a\n1\n", "whole /a", end=False),
        taken("section before", "file /a\n1\n", "whole /a", "section after", end=False),
        taken("file /a\n1\n", "whole /a")[:-1].removesuffix("finish"),
    ],
)
def test_truncated_output_is_an_error(output: str) -> None:
    with pytest.raises(ReadingError, match="its counters: expected what its script prints at the end"):
        shell_functions.sections(output, "@1", "g0")


@pytest.mark.parametrize("parts", [("file /a\n1\n", "unread /a"), ("file /a\n1\n", "whole /b"), ("whole /a",)])
def test_a_partially_read_file_has_no_text(parts: tuple[str, ...]) -> None:
    with pytest.raises(ReadingError, match="expected to read it"):
        shell_functions.sections(taken(*parts), "@1", "g0")[""].text("/a")


def test_shell_functions_read_files_unchanged(tmp_path: Path) -> None:
    mark = shell_functions.new_separator()
    texts = {
        "whole": "a 1\n  b \\\\n\t2 \n",
        "empty": "",
        "lines": "\n\n",
        "cut": "a 1\nb 2",
        "marked": "== x\nfinish\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    files = " ".join([*texts, "folder", "none"])
    script = (
        f"{shell_functions.function_definitions(mark)}echo noise\nsection one\ntake {files}\n"
        "section two\ntake whole\nnote status 7\nfinish\n"
    )
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    parsed = shell_functions.sections(done.stdout, mark, "g0")
    assert (
        parsed["one"].texts == texts
        and parsed["two"].texts == {"whole": texts["whole"]}
        and parsed["two"].note("status") == "7"
    )
    assert parsed["one"].unread == {"folder": "an error, or the file is gone", "none": "no such file"}
    for end in range(len(done.stdout) - len("finish\n")):
        with pytest.raises(ReadingError):
            shell_functions.sections(done.stdout[:end], mark, "g0")


# Arbitrary output of a guest ------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "\u00b2",
            "\u0663",
            "9" * 5000,
            "",
            "-1",
            "+1",
            "1e9",
            "0x10",
            "1_0",
            " 1",
            "1 ",
            "nan",
            "inf",
            "\0",
            str(1 << 64),
        ]
    ),
)
LINE = st.lists(
    st.one_of(ODD, st.sampled_from(["7:0", "rbytes=1", "group", "name=61", "io=7:0,1,2,3,4", "oom_kill", "12"])),
    max_size=8,
)
TEXT = st.lists(LINE.map(" ".join), max_size=6).map("\n".join)
PARSERS: dict[str, Callable[[str], object]] = {
    "whole": lambda text: parse_whole(text, "x"),
    "decimal": lambda text: parse_decimal(text, "x"),
    "octal": lambda text: parse_octal(text, "x"),
    "io.stat": lambda text: cgroupfs.parse_io_stat(text, "x"),
    "flat": lambda text: cgroupfs.parse_flat(text, "x"),
    "value": lambda text: cgroupfs.parse_value(text, "oom_kill", "x"),
    "single": lambda text: cgroupfs.parse_single(text, "x"),
    "agent": lambda text: cgroupfs.parse_group_counts(text.split("\n")),
    "uptime": lambda text: strict_uptime(text),
    "cpus": lambda text: cpu_memory.online_cpus(text, "x"),
    "named": lambda text: shell_functions.named_values(text, "rate", ("a",), "x"),
    "sections": lambda text: shell_functions.sections(text, "7:0", "x"),
}


def strict_uptime(text: str) -> float:
    try:
        return parse_uptime(f"uptime_ns={text}")
    except ReadingError:
        raise
    except Exception as error:
        if "expected an answer with uptime_ns" in str(error):
            raise ReadingError("x", "y", "z") from None
        raise


@pytest.mark.parametrize("parser", PARSERS)
@given(text=st.one_of(TEXT, ODD))
@settings(max_examples=200, deadline=None)
def test_guest_output_is_numbers_or_a_reading_error(parser: str, text: str) -> None:
    try:
        PARSERS[parser](text)
    except ReadingError as error:
        assert len(str(error)) < 1000 and "Traceback" not in str(error)


# Parsers that skip what they cannot parse, or return an unknown value.
FORGIVING: dict[str, Callable[[str], object]] = {
    "disks": devices.parse,
    "symbols": lambda text: kallsyms.make_elf(kallsyms.parse(text)),
    "read back": lambda text: readback.differences(
        (Expected(where="x", file="/y", expected="1"),), f"read back\n== 0\n{text}"
    ),
    "signature": lambda text: signature.render({"a/b": text}),
    "console": lambda text: json.dumps(
        [finding.seconds for line in text.splitlines() if (finding := kernel_log.classify(line))], allow_nan=False
    ),
    "kernel log": lambda text: dmesg.parse(text),
    "survey": lambda text: survey_parser.parse(f"{text}\nend\n", {}),
    "blktests": lambda text: blktests.read_results("loop/001", f"nodev\0{text}\0{text}\0", text, text, devices=False),
}
STAMPED = TEXT.map(
    lambda text: f"[{text}.000000] WARNING: CPU: 0 PID: 1\nffffffffffffffff t x\n== {text}\nblock sda\nstatus\t{text}"
)


@pytest.mark.parametrize("parser", FORGIVING)
@given(text=st.one_of(TEXT, ODD, STAMPED))
@settings(max_examples=200, deadline=None)
def test_other_guest_output_is_no_error(parser: str, text: str) -> None:
    FORGIVING[parser](text)


@given(text=ODD)
def test_integers_are_what_the_kernel_prints(text: str) -> None:
    try:
        assert 0 <= parse_whole(text, "x") < 1 << 64 and text.isascii() and text.isdigit()
    except ReadingError:
        assert not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 1 << 64)
