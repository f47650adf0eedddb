"""Bugs on real guests: tries that hit and miss, and hostile guests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from testbed.bugs import Case
from testbed.bugs.attempt import AttemptSpec, run_attempt
from testbed.bugs.conclusion import conclude
from testbed.bugs.kernel_tries import KernelTries
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.repro import ReproJob, StopRule, try_kernel
from testbed.bugs.signature import End
from testbed.guest.factory import GuestFactory
from testbed.qemu import command_line
from testbed.report.bugs.results import RunInfo, repro_document
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import trust

# One CPU, so that a guest whose CPU hangs has none left; small, so that many fit.
GUEST = {"guests": {"g0": {"cpus": 1, "memory": "512M"}}}


def plain(script: str, *signature: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "summary": "a test",
        "topology": GUEST,
        "script": script,
        "signature": list(signature),
        **more,
    }


def case(script: str, *signature: dict[str, Any], **more: Any) -> Case:
    return parse_mapping(plain(script, *signature, **more))


# Seconds that a try may take besides its script: to start its guest, and to find out how it ended.
_BESIDES_S = 60


def processes_with(word: str) -> list[str]:
    """Return the command lines that contain a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(path.read_text(errors="replace").replace("\0", " "))
    return [one for one in found if word in one]


@pytest.fixture
def trying(factory: GuestFactory, kernel: KernelFiles, tmp_path: Path) -> Any:
    """Return a function that tries a bug once and checks that it ends in time and leaves no process, socket or disk."""

    async def once(bug: Case, timeout_s: float = 60, **more: Any) -> Try:
        spec = AttemptSpec(
            factory=factory,
            bug=bug.bug,
            guest=bug.guest,
            kernel=kernel,
            number=1,
            seed=7,
            timeout_s=timeout_s,
            logs=tmp_path / "guest",
            **more,
        )
        await factory.prepare(bug.guest, kernel)
        async with asyncio.timeout(timeout_s + _BESIDES_S):
            one = await run_attempt(spec)
        assert not list(factory._session.sockets.iterdir()) and not list(factory._session.scratch.iterdir())
        assert not processes_with(str(factory._session.sockets))
        assert json.loads((tmp_path / "guest" / "try.json").read_text())["outcome"] == one.outcome.value
        return one

    return once


@pytest.mark.slow
async def test_the_output_shows_it_and_the_script_need_not_end(trying: Any) -> None:
    one = await trying(case("echo before; echo BAD 42; sleep 600", {"output": r"BAD \d+"}))
    assert (one.outcome, one.end) == (Outcome.HIT, End.STOPPED)
    assert one.match.seen == "BAD 42" and one.hit_after_s is not None and one.status is None


async def test_a_script_that_ends_without_it_is_a_miss_and_one_that_cannot_try_is_none(trying: Any) -> None:
    one = await trying(case("exit 3", {"output": "BAD"}, {"status": 4}))
    assert (one.outcome, one.end, one.status) == (Outcome.MISS, End.DONE, 3)
    one = await trying(case("echo no such module >&2; exit 125", {"status": "failure"}))
    assert (one.outcome, one.end) == (Outcome.TROUBLE, End.UNTRIED)
    assert "could not try (status 125): no such module" in one.why
    one = await trying(case("true", {"status": 0}, prepare="echo broken >&2; false"))
    assert one.outcome is Outcome.TROUBLE and "prepare:" in one.why and "broken" in one.why


@pytest.mark.slow
async def test_counters_show_it_at_the_end_and_while_it_runs(trying: Any) -> None:
    kill = "mkdir /sys/fs/cgroup/a; cd /sys/fs/cgroup/a; echo 16M >memory.max; echo 0 >memory.swap.max\n"
    kill += "(echo 0 >cgroup.procs; head -c 64M /dev/zero | tail >/dev/null)\n"
    counter = {"cgroup": "a", "counter": "memory.events oom_kill", "above": 0}
    one = await trying(case(f"{kill} true", counter))
    assert one.outcome is Outcome.HIT and one.match.seen == "a/memory.events oom_kill is 1"
    one = await trying(case(f"{kill} sleep 600", counter))
    assert (one.outcome, one.end) == (Outcome.HIT, End.STOPPED)
    one = await trying(case(f"{kill} true", {"expect": "BUG: KASAN|oom_kill [1-9]"}))
    assert one.outcome is Outcome.HIT


@pytest.mark.slow
async def test_what_scripts_know_of_their_guest(trying: Any) -> None:
    disks = {"data": {"type": "virtio-blk", "size": "512M"}}
    topology = {
        "guests": {
            "g0": {
                "cpus": 1,
                "memory": "512M",
                "disks": disks,
                "loops": {"l-0": {"backing": "data/file", "size": "64M"}},
            }
        }
    }
    script = 'sudo test -b "$DEV_DATA" && sudo test -b "$DEV_L_0" && test -s "$FILE_L_0" && echo "told $SEED $NUM_DATA"'
    one = await trying(case(script, {"output": r"^told 7 \d+:\d+$"}, topology=topology))
    assert one.outcome is Outcome.HIT, one


# What guests do to themselves, how the try ends, and its reason. Each has a minute, and none takes it.
HANGS = """\
cat >/tmp/hang.py <<'END'
# A small module whose first instructions are replaced by cli; jmp . (the call to ftrace before them stays).
import struct, subprocess
path = subprocess.run(["modinfo", "-n", "dummy"], capture_output=True, text=True).stdout.strip()
data = bytearray(open(path, "rb").read())
(shoff,) = struct.unpack_from("<Q", data, 40)
size, count, names = struct.unpack_from("<HHH", data, 58)
sections = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + n * size) for n in range(count)]
symbols = next(s for s in sections if s[1] == 2)
strings = sections[symbols[6]]
for at in range(symbols[4], symbols[4] + symbols[5], 24):
    name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
    text = bytes(data[strings[4] + name:]).split(bytes(1))[0]
    if text == b"init_module":
        begin = sections[section][4] + value
        call = data.index(b"\\xe8\\0\\0\\0\\0", begin, begin + 16)
        data[call + 5:call + 8] = b"\\xfa\\xeb\\xfe"
# Without the mark that a signature follows, which is no longer right.
open("/tmp/hang.ko", "wb").write(data.removesuffix(b"~Module signature appended~\\n"))
END
python3 /tmp/hang.py && insmod /tmp/hang.ko
"""
HOSTILE: dict[str, tuple[str, End, str]] = {
    "panics": ("echo c >/proc/sysrq-trigger", End.PANIC, "panic on its console"),
    "powers itself off": ("echo o >/proc/sysrq-trigger; sleep 600", End.POWER_OFF, "guest-shutdown"),
    "reboots": ("echo b >/proc/sysrq-trigger; sleep 600", End.REBOOT, "guest-reset"),
    "hangs with interrupts off": (HANGS, End.HANG, "neither SSH nor its agent answers"),
    "loses its SSH server": (
        "pkill -9 dropbear; sleep 600",
        End.SSH,
        "its SSH connection broke while the guest goes on",
    ),
    "does not end": ("sleep 600", End.TIMED_OUT, "did not end in time; the guest answers"),
    "starves everybody": (
        "echo -1 >/proc/sys/kernel/sched_rt_runtime_us; chrt -f 99 sh -c 'while :; do :; done'",
        End.HANG,
        "neither SSH nor its agent answers",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("script", "end", "why"), HOSTILE.values(), ids=HOSTILE)
async def test_a_guest_that_does_its_worst_is_reported_as_what_it_is(
    trying: Any, script: str, end: End, why: str
) -> None:
    word = end.of_guest
    one = await trying(
        case(f"echo begun\n{script}", {"output": "never"}, *([{"guest": word}] if word else [])), timeout_s=8
    )
    assert (one.outcome, one.end) == (Outcome.HIT if word else Outcome.TROUBLE, end)
    assert why in one.why
    # Output of the last moment before the machine stops may still be in the guest's buffers.
    at_once = end in (End.PANIC, End.POWER_OFF, End.REBOOT)
    printed = (one.logs / "output.txt").read_text()
    assert printed.startswith("begun\n") or (at_once and printed == "")


@pytest.mark.slow
async def test_a_guest_that_floods_its_console_does_not_flood_us(
    trying: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A busy machine passes as little as 50 KB/s.
    monkeypatch.setattr("testbed.guest.channels.console._MAX_LOG_BYTES", 1 << 16)
    monkeypatch.setattr("testbed.guest.channels.console._LAST_BYTES", 1 << 12)
    one = await trying(
        case("yes 0123456789012345678901234567890123456789 >/dev/ttyS0", {"console": "never"}), timeout_s=10
    )
    assert (one.outcome, one.end) == (Outcome.TROUBLE, End.TIMED_OUT)
    log = (tmp_path / "guest" / "console.log").read_bytes()
    assert one.console_bytes > len(log) > 1 << 16
    assert len(log) < (1 << 16) + (1 << 12) + 200
    assert f" of {one.console_bytes} bytes that the guest printed are left out here]".encode() in log


# Not a virtconsole: QEMU drops its output while the reader is behind.
FAST_PORT = ["-device", "virtio-serial-pci,addr=5", "-device", "virtserialport,chardev=console"]
FLOOD = """\
modprobe virtio_console && exec 3>$(echo /dev/vport*p1) || exit 125
yes 0123456789012345678901234567890123456789 | head -c 100000000 >&3
printf '\\nit is over\\n' >&3
sleep 600
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_console_passes_100_mb_in_bounded_memory_and_a_bounded_file(
    factory: GuestFactory, trying: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    factory.cold = True  # no template for this machine alone
    monkeypatch.setenv(trust.VARIABLE, "0" * 64)
    # The serial port passes 0.2 MB/s under emulation: a virtio port writes to the same channel, which is read as usual.
    port = command_line._serial_port

    def shared(name: str, sockets: Path) -> tuple[tuple[str, ...], ...]:
        (option, chardev), device = port(name, sockets)
        return ((option, f"{chardev},mux=on"), device) if name == "console" else port(name, sockets)

    monkeypatch.setattr(command_line, "_serial_port", shared)
    topology = {"guests": {"g0": {"cpus": 1, "memory": "512M", "qemu-args": FAST_PORT}}}
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood = parse_mapping(plain(FLOOD, {"console": "^it is over$"}, topology=topology), sources={"0" * 64: "a test"})
    one = await trying(flood, timeout_s=300)
    assert (one.outcome, one.end) == (Outcome.HIT, End.STOPPED), one
    assert one.console_bytes >= 100_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 << 10
    log = (tmp_path / "guest" / "console.log").read_bytes()
    assert len(log) < (33 << 20) + 200 and log.endswith(b"\nit is over\n")
    assert f" of {one.console_bytes} bytes that the guest printed are left out here]".encode() in log


@pytest.mark.slow
async def test_a_guest_that_fills_its_disk_says_so(trying: Any) -> None:
    one = await trying(
        case("dd if=/dev/zero of=/root/full bs=1M; cp /bin/bash /root/more", {"output": "No space left on device"})
    )
    assert one.outcome is Outcome.HIT, one


@pytest.mark.slow
async def test_a_rate_and_a_signature_that_shows_everywhere(
    factory: GuestFactory, kernel: KernelFiles, tmp_path: Path
) -> None:
    told: list[Try] = []
    # Of three seeds in a row, two are not multiples of three.
    sometimes = case("[ $((SEED % 3)) != 0 ] || exit 1", {"status": 0})

    async def run(limits: StopRule, folder: str, *, must_show: bool = True) -> tuple[ReproJob, KernelTries]:
        job = ReproJob(
            factory=factory,
            case=sometimes,
            limits=limits,
            seed=2,
            folder=tmp_path / folder,
            on_try=lambda _, one: told.append(one),
        )
        return job, await try_kernel(job, kernel, must_show=must_show)

    job, every = await run(StopRule(tries=6, timeout_s=60, every=True), "every")
    assert [one.outcome for one in every.tries] == [Outcome.MISS, Outcome.HIT, Outcome.HIT] * 2
    assert str(every.rate).startswith("4 of 6 (67 %") or str(every.rate).startswith("4 of 6 (67%")
    assert every.first_hit == 2 and len(told) == 6
    _, first = await run(StopRule(tries=6, timeout_s=60, jobs=1), "first")
    assert [one.outcome for one in first.tries] == [Outcome.MISS, Outcome.HIT]
    _, until = await run(StopRule(tries=6, timeout_s=60, jobs=1, until=0.9), "until")
    # With 6 tries, 90 % cannot be reached.
    assert until.tries == ()
    _, clean = await run(StopRule(tries=3, timeout_s=60, every=True), "clean", must_show=False)
    assert conclude((every, clean))[0].value == "invalid"
    document = repro_document(job, (every, clean), RunInfo(command=["testbed"], took_s=1.0))
    first_kernel, second = document.kernels
    assert (document.result, first_kernel.hits, second.must_show) == ("invalid", 4, False)
    json.dumps(document.as_json())
