"""Guests with odd, broken or forged counters, cgroups or agents: a run ends with a reason, never in PASS or a crash."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.bugs.attempt import AttemptSpec, run_attempt
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome, Try
from testbed.errors import ReadingError
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.host import paths
from testbed.scenarios import runner
from testbed.scenarios.catalogue import cases
from testbed.scenarios.harness import Charge, Harness, open_harness
from testbed.scenarios.runner import Job
from testbed.scenarios.scenario import Point
from testbed.scenarios.verdict import Evidence, Gap, Lost, Verdict
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel

CASE = cases()["read/virtio-blk/ext4"]
MOVED = "rbytes=16777216 wbytes=0 rios=16 wios=0 dbytes=0 dios=0"


def charged(at: Harness, reading: Charge) -> object:
    return reading.io(at.device, "rbytes")


def line(old: str, new: str) -> str:
    """Return a line of io.stat with a part replaced, in printf(1)'s notation."""
    return f"254:0 {MOVED.replace(old, new)}\\n"


# The file of the cgroup, the text that replaces the kernel's in it, and the part of the reading that is then used.
ODD: dict[str, tuple[str, str, Callable[[Harness, Charge], object]]] = {
    "a superscript digit": ("io.stat", line("=16 ", r"=\302\262 "), charged),
    "5,000 digits": ("io.stat", line("16777216", "9" * 5000), charged),
    "an empty line": ("io.stat", r"\n" + line("", ""), charged),
    "a NUL in place of a number": ("io.stat", line("16777216", r"\000"), charged),
    "a line that is cut": ("io.stat", f"254:0 {MOVED[:30]}", charged),
    "a line whose end is missing": ("io.stat", f"254:0 {MOVED}", charged),
    "a negative number": ("io.stat", line("=0 rios", "=-1 rios"), charged),
    "a huge line": ("io.stat", line("dios=0", "dios=0 " + "x" * 3000), charged),
    "something else": ("io.stat", r"Internal error\n", charged),
    "bytes that are no text": ("io.stat", r"\377\376\n", charged),
    "an empty memory.stat": ("memory.stat", "", lambda at, reading: reading.memory("file")),
    "a memory.stat that is cut": ("memory.stat", r"anon 0\nfile 1677", lambda at, reading: reading.memory("file")),
    "a word for a number": ("memory.events", r"oom_kill max\n", lambda at, reading: reading.events("oom_kill")),
}
# $1: a new cgroup. $2: one of its files. $3: what is in its place, for printf.
FORGE = (
    'mkdir "/sys/fs/cgroup/$1" && printf "$3" >/tmp/odd && cp /tmp/odd "/tmp/$1" '
    '&& mount --bind "/tmp/$1" "/sys/fs/cgroup/$1/$2"'
)


@pytest.mark.slow
async def test_a_counter_that_was_not_read_is_an_error(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with (
        factory.guest("g0", model, kernel, logs) as guest,
        open_harness(guest, Point(disk="virtio-blk", filesystem="ext4")) as at,
    ):
        read = f"dd if={at.loop} of=/dev/null bs=1M count=1 iflag=direct status=none"
        for number, (what, (file, text, asked)) in enumerate(ODD.items()):
            await guest.script(FORGE, f"odd-{number}", file, text)
            reading = await at.meter(f"odd-{number}", read, warm="")
            with pytest.raises(ReadingError, match=f"guest g0: /sys/fs/cgroup/odd-{number}/{file}"):
                pytest.fail(f"{what}: {asked(at, reading)}")
        await _is_entered_or_nothing(guest, at, read)
        await _is_gone_afterwards(at, read)
        await _went_backwards(guest, at, read)
        # A command may print anything, and a cgroup that has done no I/O has an io.stat without a line.
        reading = await at.meter("plain", 'echo "== after"; echo "@0 finish"; exit 3', check=False, warm="")
        assert (reading.status, reading.io(at.device, "rbytes"), reading.events("oom_kill")) == (3, 0, 0)
        assert (await at.meter("plain", read)).io(at.device, "rbytes") >= 1 << 20


async def _is_entered_or_nothing(guest: Guest, at: Harness, read: str) -> None:
    """A plain file as cgroup.procs takes any pid and moves no process; a cgroup with a subtree_control takes none."""
    await guest.script(FORGE, "closed", "cgroup.procs", "")
    await guest.script("cd /sys/fs/cgroup && mkdir inner && echo +memory >inner/cgroup.subtree_control")
    for cgroup in ("closed", "inner"):
        with pytest.raises(
            ReadingError, match=f"{cgroup}: expected a cgroup that a command can run in, got .*cannot be entered"
        ):
            await at.meter(cgroup, read, warm="")


async def _is_gone_afterwards(at: Harness, read: str) -> None:
    leave = "echo 0 >/sys/fs/cgroup/cgroup.procs; rmdir /sys/fs/cgroup/gone"
    reading = await at.meter("gone", f"{read}; {leave}", warm="")
    asks: tuple[Callable[[], int], ...] = (
        lambda: reading.io(at.device, "rbytes"),
        lambda: reading.memory("file"),
        lambda: reading.events("oom_kill"),
    )
    for asked in asks:
        with pytest.raises(ReadingError, match=r"/sys/fs/cgroup/gone/.*: expected to read it, got 'no such file'"):
            asked()


async def _went_backwards(guest: Guest, at: Harness, read: str) -> None:
    """Check that a counter that decreased is an error, also if its device has vanished from the file."""
    fewer = MOVED.replace("16777216", "9")
    for number, text in enumerate((f"{at.device} {fewer}\\n", f"{at.device} \\n", "")):
        name = f"back-{number}"
        await guest.script(FORGE, name, "io.stat", f"{at.device} {MOVED}\\n")
        reading = await at.meter(name, f"{read}; printf '{text}' >/tmp/{name}", warm="")
        with pytest.raises(ReadingError, match="as before"):
            pytest.fail(str(reading.io(at.device, "rbytes")))


def job(
    factory: GuestFactory,
    model: GuestModel,
    folder: Path,
    kernel: KernelFiles,
    prepare: str,
    sample_s: float | None = None,
) -> Job:
    """Return a job: the usual read in a guest in which `prepare` was run, then the same in an unchanged guest."""

    def nothing(*_: object) -> None:
        pass

    async def steps(guest: Guest, point: Point) -> Any:
        await guest.script(prepare)
        return await CASE.scenario.steps(guest, point)

    odd = replace(CASE, scenario=replace(CASE.scenario, name="odd", steps=steps))
    return Job(
        factory=factory,
        cases=(odd, CASE),
        model=model,
        kernels={"k": kernel},
        folder=folder,
        on_step=nothing,
        on_result=nothing,
        sample_s=sample_s,
    )


@pytest.mark.slow
async def test_odd_counters_of_a_case_are_that_cases(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, tmp_path: Path
) -> None:
    odd = ODD["a superscript digit"][1]
    prepare = f"set -- reader io.stat '{odd}'; {FORGE}"
    first, second = await runner.run(job(factory, model, tmp_path, kernel, prepare), runner.judge_each({"k": Gap.OPEN}))
    # An unread counter that passed for 0 would look like a kernel before the series: that would be a PASS.
    assert first.judgement.verdict is Verdict.INFRA
    assert "reader/io.stat, line 1, rios: expected a whole number below 2**64, got '²'" in first.judgement.reason
    assert second.judgement.verdict is Verdict.FAIL and isinstance(second.sides["k"].outcome, Evidence)


# Repro

DISKS = {"data": {"type": "virtio-blk", "size": "512M"}}
TOPOLOGY = {"guests": {"g0": {"cpus": 1, "memory": "512M", "disks": DISKS}}}
# The root's own counters, and 3 of a number that no kernel prints.
FORGED = """\
cp /sys/fs/cgroup/io.stat /tmp/forged
dd if=$DEV_DATA of=/dev/null bs=1M count=8 iflag=direct status=none
sed -i "s/^$NUM_DATA rbytes=[0-9]*/$NUM_DATA rbytes=900000000/" /tmp/forged
mount --bind /tmp/forged /sys/fs/cgroup/io.stat
"""


@pytest.fixture
def trying(factory: GuestFactory, kernel: KernelFiles, tmp_path: Path) -> Any:
    async def once(script: str, *signature: dict[str, Any]) -> Try:
        case = parse_mapping(
            {"version": 1, "summary": "a test", "topology": TOPOLOGY, "script": script, "signature": list(signature)}
        )
        folder = tmp_path / f"guest-{len(list(tmp_path.iterdir()))}"
        async with asyncio.timeout(600):
            return await run_attempt(
                AttemptSpec(
                    factory=factory,
                    bug=case.bug,
                    guest=case.guest,
                    kernel=kernel,
                    number=1,
                    seed=7,
                    timeout_s=60,
                    logs=folder,
                )
            )

    return once


@pytest.mark.slow
async def test_a_try_with_an_unread_counter_is_no_miss(trying: Any) -> None:
    counter = {"cgroup": "a", "counter": "memory.events oom_kill", "above": 0}
    odd = "mkdir /sys/fs/cgroup/a; printf '%s' >/tmp/odd; mount --bind /tmp/odd /sys/fs/cgroup/a/memory.events"
    one = await trying(odd % r"oom_kill \302\262\n", counter)
    assert one.outcome is Outcome.TROUBLE
    assert (
        "a/memory.events oom_kill: not read: guest g0: /sys/fs/cgroup/a/memory.events, oom_kill: expected a whole"
        in one.why
    )
    one = await trying(odd % ("9" * 5000 + r"\n\n"), counter, {"output": "never"})
    assert one.outcome is Outcome.TROUBLE and "expected one line `oom_kill number`" in one.why
    one = await trying("true", counter)
    assert one.outcome is Outcome.TROUBLE and "not read: no such file" in one.why
    # Printed output alone is a hit, whatever the counters are; a counter that is not read may be odd.
    one = await trying(f"{odd % 'x'}; echo BAD", {"output": "^BAD$"}, counter)
    assert one.outcome is Outcome.HIT
    one = await trying(odd % "x", {"output": "^BAD$"})
    assert one.outcome is Outcome.MISS


@pytest.mark.slow
async def test_a_guest_that_forges_its_counters_is_contradicted_by_its_disks(trying: Any) -> None:
    honest = await trying("dd if=$DEV_DATA of=/dev/null bs=1M count=8 iflag=direct status=none", {"output": "never"})
    (account,) = honest.accounts
    assert (honest.outcome, account.disk, account.finding, account.note) == (Outcome.MISS, "data", "", "")
    assert account.device == account.guest and account.device["read"] >= 8 << 20
    forged = await trying(FORGED, {"output": "never"})
    (account,) = forged.accounts
    assert account.guest["read"] > 800_000_000 > account.device["read"] >= 8 << 20
    assert "the guest's counters are wrong" in account.finding
    odd = await trying(
        "printf '\\302\\262' >/tmp/odd; mount --bind /tmp/odd /sys/fs/cgroup/io.stat", {"output": "never"}
    )
    (account,) = odd.accounts
    assert (
        account.guest is None
        and account.finding == ""
        and "/sys/fs/cgroup/io.stat: expected a line's end" in account.note
    )


# The agent

# The agent sends odd lines before each of its own, and each of its answers to `counts` has another odd clock.
HOSTILE = r"""
my @ODD = ('', ' ', '=', "\0\0", "\x{ff}\x{fe}", "\xc2\xb2", '9' x 5000, 'group', 'gone', 'group name=zz',
    "group name=61 current=\xc2\xb2", 'group name=61 io=7:0,1,2', 'group name=61 io=' . ('9' x 5000),
    'counts turn=99999 uptime_ns=1', 'time turn=x', 'x' x 9000, "\e[2J",
    'disks nvme', 'disks nvme,x,1:1,' . ('9' x 5000) . ',0,61,', 'gone name=');
my $odd = 0;
srand 7;
sub say_line {
    true_line($ODD[$odd++ % @ODD]) for 1 .. 3;
    true_line(join '', map { chr(1 + int rand 9) . chr(11 + int rand 240) } 1 .. 20);
    true_line(@_);
}
"""
ANSWERS = r"""
$VERBS{counts} = sub {
    my %asked = @_;
    "counts turn=$asked{turn} uptime_ns=" . ('', "\xc2\xb2", '9' x 5000, '-1', 'x')[$odd++ % 5]
};
"""


def hostile_image(factory: GuestFactory, folder: Path) -> Path:
    """Create a copy of the guest image whose process 1 sends all of that."""
    agent = (paths.shipped("images") / "guest" / "testbed-agent").read_text(encoding="utf-8")
    agent = agent.replace("sub say_line {", "sub true_line {", 1).replace(
        "\nsay_line('waiting'", f"\n{ANSWERS}\nsay_line('waiting'", 1
    )
    agent = agent.replace("\nsub write_file {", f"\n{HOSTILE}\nsub write_file {{", 1)
    (folder / "agent").write_text(agent, encoding="utf-8")
    image = folder / "root.ext4"
    commands = (
        f"rm /sbin/testbed-agent\nwrite {folder / 'agent'} /sbin/testbed-agent\nsif /sbin/testbed-agent mode 0100755\n"
    )
    (folder / "commands").write_text(commands)
    copied = os.system(
        f"cp --sparse=always --preserve=mode '{factory.image.root}' '{image}' "
        f"&& debugfs -w -f '{folder}/commands' '{image}'"
    )
    assert copied == 0
    return image


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_arbitrary_answers_of_the_agent_do_not_end_a_run(
    factory: GuestFactory,
    model: GuestModel,
    kernel: KernelFiles,
    trying: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("testbed.store.image.Image.root", hostile_image(factory, tmp_path))
    factory.cold = True
    wanted = replace(job(factory, model, tmp_path, kernel, "true", sample_s=0.2), cases=(CASE,))
    (result,) = await runner.run(wanted, runner.judge_each({"k": Gap.CLOSED}))
    lost = result.sides["k"].outcome
    assert result.judgement.verdict is Verdict.INFRA and isinstance(lost, Lost), result.judgement.reason
    assert "agent: " in lost.why and "mistake" not in lost.why
    one = await trying("echo BAD", {"output": "^BAD$"})
    assert one.outcome is Outcome.HIT or (one.outcome is Outcome.TROUBLE and "mistake" not in one.why), one.why
