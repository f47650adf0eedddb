import re
from collections import Counter
from pathlib import Path

import pytest
import re2

from testbed.guest.channels import kernel_log
from testbed.guest.channels.kernel_log import Kind
from tests.support.kernel_lines import LINES

DATA = Path(__file__).parents[3] / "data"
DOCS = Path(__file__).parents[4] / "docs" / "reports.md"

# Recorded consoles of real guests, and the findings in them. The guests of 6.1 whose call traces name `splat` had the
# module data/splat.c loaded; those of console-splats-* had modules as tests/guest/guest/test_warnings.py makes them. In
# console-disks-* every line is a finding.
RECORDED = {
    "console-panic-6.1.txt": {Kind.PANIC: 1},
    "console-oom-6.1.txt": {Kind.OOM: 6},
    "console-boot-5.10.txt": {},
    "console-lockup-5.10.txt": {Kind.LOCKUP: 2},
    "console-lockup-6.1.txt": {Kind.LOCKUP: 2},
    "console-warning-6.1.txt": {Kind.WARNING: 1},
    "console-refcount-6.1.txt": {Kind.REFCOUNT: 1, Kind.WARNING: 1},
    "console-list-6.1.txt": {Kind.LIST_CORRUPTION: 1, Kind.OOPS: 2},
    "console-oops-6.1.txt": {Kind.OOPS: 2},
    "console-atomic-6.1.txt": {Kind.ATOMIC_SLEEP: 1, Kind.WARNING: 1},
    "console-hung-6.1.txt": {Kind.HUNG_TASK: 6},
    "console-rcu-6.1.txt": {Kind.RCU_STALL: 2},
    "console-disks-5.10.txt": {Kind.IO_ERROR: 11, Kind.FILESYSTEM: 7},
    "console-disks-6.1.txt": {Kind.IO_ERROR: 16, Kind.FILESYSTEM: 12},
    "console-disks-6.12.txt": {Kind.IO_ERROR: 11, Kind.FILESYSTEM: 7},
    "console-disks-7.2.txt": {Kind.IO_ERROR: 12, Kind.FILESYSTEM: 7},
    "console-splats-5.10.txt": {Kind.REFCOUNT: 1, Kind.WARNING: 1, Kind.OOPS: 2},
    "console-splats-6.12.txt": {Kind.WARNING: 3, Kind.REFCOUNT: 1, Kind.ATOMIC_SLEEP: 1, Kind.OOPS: 2},
    "console-splats-7.2.txt": {Kind.WARNING: 3, Kind.REFCOUNT: 1, Kind.ATOMIC_SLEEP: 1, Kind.OOPS: 2},
}

# The whole logs of kernels that booted and had a disk of each kind attached and detached.
BOOTED = ("dmesg-boot-5.10.txt", "dmesg-boot-6.1.txt", "dmesg-boot-6.12.txt", "dmesg-boot-7.2.txt")


def stamped(text: str) -> str:
    return f"[   60.000000] {text}"


@pytest.mark.parametrize(("name", "kinds"), RECORDED.items(), ids=RECORDED.keys())
def test_recorded_consoles(name: str, kinds: dict[Kind, int]) -> None:
    reader = kernel_log.ConsoleReader()
    found = [finding for line in (DATA / name).read_text().splitlines() if (finding := reader.take(line))]
    assert Counter(finding.kind for finding in found) == kinds


@pytest.mark.parametrize("name", ["console-warning-6.1.txt", "console-splats-6.12.txt", "console-splats-7.2.txt"])
def test_warnings_whose_banner_is_another_one_day_are_findings_by_their_frame(name: str) -> None:
    reader = kernel_log.ConsoleReader()
    lines = (DATA / name).read_text().replace("WARNING: ", "Attention ").splitlines()
    found = [finding for line in lines if (finding := reader.take(line))]
    # The warning below `refcount_t` has a known line of its own.
    count = RECORDED[name][Kind.WARNING] - RECORDED[name].get(Kind.REFCOUNT, 0)
    assert [one.kind for one in found].count(Kind.OTHER) == count and found[0].text.startswith("Attention ")


@pytest.mark.parametrize("name", BOOTED)
def test_a_healthy_boot_has_no_findings_at_any_log_level(name: str) -> None:
    reader = kernel_log.ConsoleReader()
    lines = (DATA / name).read_text().splitlines()
    assert len(lines) > 300 and [finding for line in lines if (finding := reader.take(line))] == []


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LINES.items() for text in texts])
def test_each_kind_of_line(kind: Kind, text: str) -> None:
    found = kernel_log.classify(stamped(text))
    assert found is not None and (found.kind, found.seconds, found.text) == (kind, 60.0, text.strip())
    # Lines of programs in the guest have no timestamp, and may contain the words of the kind OTHER.
    assert (kernel_log.classify(text) is None) == (kind is Kind.OTHER)


def test_every_kind_has_a_line() -> None:
    assert set(LINES) == set(Kind) - {Kind.PROGRAM, Kind.UNREAD}


# Kinds whose lines are between `cut here` and `end trace`, which ANY_SPLAT matches instead.
FRAMED = (Kind.LIST_CORRUPTION, Kind.REFCOUNT)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.splat and kind not in FRAMED])
def test_a_search_that_names_no_class_finds_every_splat(kind: Kind) -> None:
    pattern = re2.compile(kernel_log.ANY_SPLAT)
    assert [text for text in LINES[kind] if not pattern.search(stamped(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "Linux version 6.1",
        "Kernel command line: console=ttyS0 panic=-1 loglevel=5 mitigations=off",
        "x86/fpu: Supporting XSAVE feature 0x001: 'x87 floating point registers'",
        "kfence: initialized - using 2097152 bytes for 255 objects",
        "kasan: KernelAddressSanitizer initialized",
        "**   This means that this is a DEBUG kernel and it is     **",
        (
            "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, "
            "data leaks possible via Spectre v2 BHB attacks!"
        ),
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.001 msecs",
        "INFO: lockdep is turned off.",
        "rcu: INFO: Expedited stall ended before state dump start",
        "EXT4-fs (vdc): INFO: recovery required on readonly filesystem",
        "ODEBUG: selftest passed",
        "EXT4-fs (vdc): mounted filesystem with ordered data mode. Opts: (null). Quota mode: none.",
        "EXT4-fs (vdc): VFS: Can't find ext4 filesystem",
        "EXT4-fs (vdc): warning: metadata_csum and uninit_bg are redundant flags - please run fsck.",
        "XFS (loop0): Mounting V5 Filesystem",
        "XFS (loop0): Ending clean mount",
        "XFS (loop0): Unmounting Filesystem",
        "BTRFS info (device loop0): disk space caching is enabled",
        "nvme nvme0: Shutdown timeout set to 8 seconds",
        "nvme nvme0: 1/0/0 default/read/poll queues",
        "traps: dd[77] general protection fault ip:55d0c8 sp:7ffd error:0 in dd[55d0c8000000+1000]",
        "dd[77]: segfault at 0 ip 000055d0c8 sp 00007ffd error 4 in dd[55d0c8000000+1000]",
        (
            "clocksource: timekeeping watchdog on CPU0: Marking clocksource "
            "'tsc' as unstable because the skew is too large:"
        ),
        "[Firmware Bug]: TSC_DEADLINE disabled due to Errata; please update microcode to version: 0x52 (or later)",
        "workqueue: blk_mq_run_work_fn hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
        "hrtimer: interrupt took 5500000 ns",
    ],
)
def test_lines_of_a_healthy_kernel_are_no_findings(text: str) -> None:
    assert kernel_log.classify(stamped(text)) is None


HARMLESS = "INFO: lockdep is turned off."


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.OOPS, f"BUG: unable to handle page fault for address: ffffffff {HARMLESS}"),
        (Kind.OOPS, f"{HARMLESS} BUG: unable to handle page fault for address: ffffffff"),
        (Kind.PANIC, f"{HARMLESS} Kernel panic - not syncing: {HARMLESS}"),
        (Kind.OTHER, f"BUG: a format that nobody knows yet {HARMLESS}"),
        (Kind.OTHER, f"loop: BUG: a format that nobody knows yet; {HARMLESS}"),
    ],
)
def test_an_alarm_wins_over_what_is_harmless_on_the_same_line(kind: Kind, text: str) -> None:
    found = kernel_log.classify(stamped(text))
    assert found is not None and found.kind is kind


@pytest.mark.parametrize(
    "line",
    ["", "dropbear: WARNING is a word", "login:", "WARNING: a program's", "BUG: a program's", "INFO: a program's"],
)
def test_other_lines_are_no_findings(line: str) -> None:
    assert kernel_log.classify(line) is None


@pytest.mark.parametrize("program", ["systemd[1]", "systemd-journald[151]", "(sd-pam)[77]", "sshd(pam_unix)[77]"])
@pytest.mark.parametrize("text", ["INFO: hello", "WARNING: a program's", "BUG: a program's", "a BUG, it says"])
def test_a_line_with_the_name_of_a_program_is_not_of_the_broad_class(program: str, text: str) -> None:
    assert kernel_log.classify(stamped(f"{program}: {text}")) is None
    found = kernel_log.classify(stamped(f"{program}: BUG: unable to handle page fault for address: ffffffff"))
    assert found is not None and found.kind is Kind.OOPS


@pytest.mark.parametrize("before", ["", "root@g0:~# ", "half a line of a program", "\x1b[2J", "<4>"])
@pytest.mark.parametrize("caller", ["", "[    T1]", "[   C12]"])
def test_text_before_a_time_stamp_is_not_the_kernel_s(before: str, caller: str) -> None:
    found = kernel_log.classify(f"{before}[    1.500000]{caller} WARNING: a format that nobody knows yet\r")
    assert found is not None and (found.kind, found.seconds, found.text) == (
        Kind.OTHER,
        1.5,
        "WARNING: a format that nobody knows yet",
    )


@pytest.mark.parametrize("stamp", ["9" * 400 + ".000000", "\u0661.000000", "\u00b2.000000", "1.0", "-1.000000", "nan"])
def test_an_invalid_time_is_no_time_stamp(stamp: str) -> None:
    assert kernel_log.classify(f"[{stamp}] WARNING: a format that nobody knows yet") is None
    found = kernel_log.classify(f"[{stamp}] refcount_t: underflow; use-after-free.")
    assert found is not None and found.seconds is None


def read_findings(text: str) -> list[tuple[Kind, str]]:
    reader = kernel_log.ConsoleReader()
    return [(found.kind, found.text) for line in text.splitlines() if (found := reader.take(stamped(line)))]


CUT, END = "------------[ cut here ]------------", "---[ end trace 0000000000000000 ]---"
BODY = (
    "Modules linked in: loop\nCPU: 0 UID: 0 PID: 151 Comm: dd Not tainted 9.0.0 #1\n"
    "RIP: 0010:loop_workfn+0x1/0x2\nCall Trace:\n <TASK>"
)
HEADING = "Attention, block/blk-core.c has warned"


@pytest.mark.parametrize(
    "report",
    [
        f"{CUT}\n{HEADING}\n{BODY}\n{END}",
        f"{CUT}\n{HEADING}\nanother line\n{BODY}\n{END}",
        f"{HEADING}\n{BODY}\n{END}",  # as the console of 7.2 shows it
        f"quiet\n{HEADING}\n{BODY}\n{END}\nquiet",
    ],
)
def test_a_report_that_is_recognized_by_its_frame_alone_is_one_finding(report: str) -> None:
    assert read_findings(report) == [(Kind.OTHER, HEADING)]
    assert read_findings(f"{report}\n{report}") == [(Kind.OTHER, HEADING)] * 2
    oom = "dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0"
    killed = f"{oom}\nCPU: 0 PID: 7 Comm: dd Not tainted 6.1\nCall Trace:\n dump_stack+0x1/0x2"
    assert read_findings(f"{killed}\n{report}") == [(Kind.OOM, oom), (Kind.OTHER, HEADING)]


def test_a_report_with_a_line_of_a_class_is_not_of_the_class_other() -> None:
    banner = "WARNING: drivers/block/loop.c:10 at loop_workfn+0x1/0x2 [loop], CPU#0: kworker/0:1/77"
    for report in (f"{CUT}\nsome words first\n{banner}\n{BODY}\n{END}", f"some words first\n{banner}\n{BODY}\n{END}"):
        assert [kind for kind, _ in read_findings(f"{report}\n{report}")] == [Kind.WARNING] * 2
    assert read_findings(f"{CUT}\n{END}\n{END}") == [] and read_findings(f"{BODY}\n{END}") == []
    # A report of a known kind does not hide the next one.
    hung = "INFO: task dd:77 blocked for more than 120 seconds.\n" + "      Not tainted\n" * 20
    assert [kind for kind, _ in read_findings(f"{hung}{HEADING}\n{BODY}\n{END}")] == [Kind.HUNG_TASK, Kind.OTHER]


def test_only_panic_and_oops_end_a_guest() -> None:
    assert {kind for kind in Kind if kind.fatal} == {Kind.PANIC, Kind.OOPS}


def test_terminal_control_characters_are_removed() -> None:
    assert kernel_log.clean("a\x1b[31mred\x1b[0m\x07\x9b2J\ttab") == "ared2J\ttab"
    assert len(kernel_log.clean("x" * 100_000)) == 1000


def test_the_docs_have_every_class() -> None:
    table = [line.split("|")[1] for line in DOCS.read_text(encoding="utf-8").splitlines() if "|" in line]
    assert {kind.value for kind in Kind} <= {name for cell in table for name in re.findall("`([^`]+)`", cell)}
