import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed.errors import GuestError
from testbed.guest.channels import dmesg
from testbed.guest.channels.dmesg import KernelLog
from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.guest.guest import Guest

BOOT = (
    "kern  :notice: [    0.000000] Linux version 7.2.13\n"
    "kern  :info  : [    0.100000] Kernel command line: console=ttyS0\n"
)
WARNED = "WARNING: block/bio.c:9 at submit_bio+0x1/0x2, CPU#0: dd/7"


def shown(kind: Kind, text: str, seconds: float = 9.0) -> Finding:
    return Finding(kind=kind, seconds=seconds, text=text)


def merged(raw: str, *console: Finding, tainted: str = "0") -> list[tuple[Kind, str]]:
    log = dmesg.parse(f"{tainted}\n{BOOT}{raw}")
    return [(finding.kind, finding.text) for finding in dmesg.merge(console, log, 500)]


def test_the_text_is_that_of_dmesg_without_options() -> None:
    log = dmesg.parse(f"0\n{BOOT}user  :warn  : [    1.500000] a\nb\n")
    assert log.text == (
        "[    0.000000] Linux version 7.2.13\n[    0.100000] Kernel command line: console=ttyS0\n[    1.500000] a\nb\n"
    )
    assert [(facility, level) for facility, level, _ in log.lines] == [
        ("kern", "notice"),
        ("kern", "info"),
        *[("user", "warn")] * 2,
    ]


def test_a_line_that_the_console_showed_is_one_finding() -> None:
    assert merged(f"kern  :warn  : [    9.000000] {WARNED}\n", shown(Kind.WARNING, WARNED)) == [(Kind.WARNING, WARNED)]


def test_lines_of_a_console_without_time_stamps_match_the_log() -> None:
    unstamped = Finding(kind=Kind.WARNING, seconds=None, text=WARNED)
    assert merged(f"kern  :warn  : [    9.000000] {WARNED}\n", unstamped) == [(Kind.WARNING, WARNED)]
    assert merged(f"user  :warn  : [    9.000000] {WARNED}\n", unstamped) == [(Kind.PROGRAM, WARNED)]


def test_a_continued_line_has_the_time_of_its_first_line() -> None:
    bad = "BUG: Bad page state in process dd  pfn:0a1b2"
    assert merged(f"kern  :alert : [    9.000000] =====\n               {bad}\n", shown(Kind.BAD_PAGE, bad)) == [
        (Kind.BAD_PAGE, bad)
    ]


def test_what_the_console_did_not_show_is_a_finding() -> None:
    # Printed before the template was cloned, or below the console's log level.
    assert merged(f"kern  :warn  : [    1.000000] {WARNED}\n") == [(Kind.WARNING, WARNED)]
    twice = f"kern  :warn  : [    9.000000] {WARNED}\n" * 2
    assert merged(twice, shown(Kind.WARNING, WARNED)) == [(Kind.WARNING, WARNED)] * 2
    leaks = "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"
    assert merged(f"kern  :info  : [    9.000000] {leaks}\n") == [(Kind.LEAK, leaks)]


def test_information_is_not_of_the_broad_class() -> None:
    assert merged("kern  :info  : [    9.000000] INFO: so it is\n") == []
    assert merged("kern  :warn  : [    9.000000] INFO: so it is\n") == [(Kind.OTHER, "INFO: so it is")]


def test_lines_that_a_program_wrote_are_marked_as_such() -> None:
    assert merged(f"user  :warn  : [    9.000000] {WARNED}\n", shown(Kind.WARNING, WARNED)) == [(Kind.PROGRAM, WARNED)]
    assert merged(f"user  :warn  : [    9.000000] {WARNED}\n") == []
    # The same line from a program and from the kernel: one of them is the kernel's.
    both = f"user  :warn  : [    9.000000] {WARNED}\nkern  :warn  : [    9.000000] {WARNED}\n"
    assert (Kind.WARNING, WARNED) in merged(both, shown(Kind.WARNING, WARNED), shown(Kind.WARNING, WARNED))


def test_a_program_cannot_hide_a_frame_of_the_kernel() -> None:
    raw = "\n".join(
        (
            "kern  :warn  : [    9.000000] ------------[ cut here ]------------",
            "user  :warn  : [    9.000000] WARNING: a program's",
            "kern  :warn  : [    9.000001] nobody knows this",
            "kern  :warn  : [    9.000001] CPU: 0 PID: 7 Comm: dd Not tainted 9.0.0 #1",
            "kern  :warn  : [    9.000002] ---[ end trace 0000000000000000 ]---\n",
        )
    )
    assert merged(raw) == [(Kind.OTHER, "nobody knows this")]


@pytest.mark.parametrize(("bit", "what"), [(5, "a bad page"), (7, "an oops"), (9, "a warning"), (14, "a soft lockup")])
def test_a_taint_that_no_line_explains_is_a_finding(bit: int, what: str) -> None:
    ((kind, text),) = merged("", tainted=str(1 << bit | 1 << 12))
    assert kind is Kind.OTHER and what in text
    assert merged(f"kern  :warn  : [    9.000000] {WARNED}\n", tainted=str(1 << bit)) == [(Kind.WARNING, WARNED)]


@pytest.mark.parametrize("tainted", ["0", "4096", "12289"])
def test_other_taints_are_no_findings(tainted: str) -> None:
    assert merged("", tainted=tainted) == []


@pytest.mark.parametrize("tainted", ["", "many", "-512", "9" * 5000, "\u00b2", "\x1b[2J"])
def test_a_log_with_an_invalid_taint_counts_as_not_read(tainted: str) -> None:
    warned, ((kind, text)) = merged(f"kern  :warn  : [    9.000000] {WARNED}\n", tainted=tainted)
    assert warned == (Kind.WARNING, WARNED)
    assert kind is Kind.UNREAD and text.startswith(
        "the kernel's log was not read: expected the number of /proc/sys/kernel/tainted first"
    )
    assert len(text) < 250 and "\x1b" not in text


def test_a_log_that_was_not_read_is_a_finding_and_no_splat() -> None:
    log = dmesg.unreadable("guest g0: `dmesg`: timed out\nits last lines")
    unread = Finding(kind=Kind.UNREAD, seconds=None, text="the kernel's log was not read: guest g0: `dmesg`: timed out")
    assert dmesg.merge((), log, 500) == [unread] and not Kind.UNREAD.splat
    before = shown(Kind.WARNING, WARNED)
    assert dmesg.merge((before,), log, 500) == [before, unread]


def test_a_log_that_is_cut_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    output = f"0\n{BOOT}"
    assert dmesg.parse(output).unread == "" and "8 MiB" in dmesg.parse(output, cut=True).unread
    monkeypatch.setattr(dmesg, "_MOST_LINES", 2)
    log = dmesg.parse(output)
    assert len(log.lines) == 2 and "it is larger than what is read of one" in log.unread


def test_a_flood_in_the_log_is_bounded_by_kind() -> None:
    flood = "".join(
        f"kern  :err   : [    9.{number:06}] Buffer I/O error on dev vdc, logical block 8\n" for number in range(2000)
    )
    findings = merged(f"{flood}kern  :warn  : [   10.000000] {WARNED}\n")
    assert [kind for kind, _ in findings] == [Kind.IO_ERROR] * 500 + [Kind.WARNING]


@pytest.mark.parametrize("output", ["0", "0\nkern  :warn  : [", "0\nkern  :loud  : [    1.000000] x"])
def test_text_that_is_no_log_has_no_findings(output: str) -> None:
    assert dmesg.merge((), dmesg.parse(output), 500) == []


@pytest.mark.parametrize("output", ["", "\n", "\0", "\nkern  :warn  : ["])
def test_an_invalid_answer_of_dmesg_counts_as_not_read(output: str) -> None:
    assert [finding.kind for finding in dmesg.merge((), dmesg.parse(output), 500)] == [Kind.UNREAD]


async def saved_log(folder: Path, answer: str | Exception, *, lost: bool = False) -> KernelLog | None:
    """Return the kernel log that is saved for a guest whose dmesg has this output or error."""

    async def run(*_: object, **__: object) -> SimpleNamespace:
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer, truncated=False)

    gone = asyncio.get_running_loop().create_future()
    if lost:
        gone.set_result(None)
    console: Any = SimpleNamespace(dmesg=None)
    guest = SimpleNamespace(_shell=object(), _lost=gone, run=run, console=console, logs=folder)
    await Guest.save_dmesg(cast(Guest, guest))
    return cast(KernelLog | None, console.dmesg)


@pytest.mark.parametrize(
    "error", [GuestError("guest g0: `sh`: exit status 127\nsh: dmesg: not found"), ConnectionResetError("closed")]
)
async def test_a_running_guest_without_a_readable_log_has_a_finding(tmp_path: Path, error: Exception) -> None:
    log = await saved_log(tmp_path, error)
    assert log is not None and log.unread == str(error).splitlines()[0]
    assert not (tmp_path / "dmesg.txt").exists()


async def test_a_log_is_saved_and_the_log_of_a_lost_guest_is_not_requested(tmp_path: Path) -> None:
    assert await saved_log(tmp_path, GuestError("x"), lost=True) is None
    log = await saved_log(tmp_path, f"0\n{BOOT}")
    assert log is not None and not log.unread and (tmp_path / "dmesg.txt").read_text() == log.text
    # The log was read, although the host cannot write it.
    log = await saved_log(tmp_path / "nowhere", f"0\n{BOOT}")
    assert log is not None and not log.unread
