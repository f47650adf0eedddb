"""What tests are written with, where no guest is needed."""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

import testbed
from testbed.api import cgroup, supervised_guest, topologies
from testbed.api.cgroup import Counters
from testbed.api.compare import Comparison, SideFailed, compare_sides
from testbed.api.devices import Disk, Named
from testbed.api.event_loops import ThreadLoop
from testbed.api.pausable_clock import PausableClock
from testbed.api.vm import Vm
from testbed.errors import GuestError, HostError, ReadingError, TopologyError, UsageError
from testbed.host import resources
from testbed.host.admission import Admission, Claim, obstacle, refusal, resident_memory, turn_order
from testbed.pytest_plugin import requirements
from testbed.topology import Topology
from testbed.units import GIB, MIB


def claim(cores: int = 1, memory_bytes: int = GIB, who: str = "somebody") -> Claim:
    return Claim(cores=cores, memory_bytes=memory_bytes, who=who)


@pytest.mark.parametrize(
    ("wanted", "held", "said"),
    [
        (claim(), (), None),
        (claim(cores=9, memory_bytes=99 * GIB), (), None),
        (claim(), (claim(),), None),
        (claim(cores=2), (claim(who="test_a"),), "2 cores: there are 2, and 1 is taken by test_a"),
        (claim(cores=2), (claim(cores=0, who="it rests"),), None),
        (claim(cores=0), (claim(cores=2),), None),
        (claim(cores=1), (claim(cores=0), claim(cores=2, who="b")), "a core: there are 2, and 2 are taken by b"),
        (claim(), (claim(), claim()), "a core"),
        (claim(memory_bytes=4 * GIB), (claim(memory_bytes=3 * GIB),), "4G of memory: 3G are of somebody, 10G are free"),
        (claim(memory_bytes=6 * GIB), (claim(),), "6G of memory"),
    ],
)
def test_room_is_a_core_for_each_guest_and_half_of_the_memory(
    wanted: Claim, held: tuple[Claim, ...], said: str | None
) -> None:
    why = obstacle(wanted, held, cores=2, memory_bytes=12 * GIB, free_bytes=10 * GIB)
    assert (why is None) if said is None else (why is not None and why.startswith(said))


def resting(count: int, memory_bytes: int) -> tuple[Claim, ...]:
    return tuple(claim(cores=0, memory_bytes=memory_bytes, who=f"g{number}") for number in range(count))


@pytest.mark.parametrize(
    ("wanted", "held", "free_bytes", "resident_bytes", "fits"),
    [
        # Clones that rest have touched 72 MiB of what is theirs, and still may touch the rest.
        (claim(memory_bytes=2 * GIB), resting(1, 2 * GIB), 4 * GIB, 72 * MIB, False),
        (claim(memory_bytes=2 * GIB), resting(5, 2 * GIB), 4 * GIB, 5 * 72 * MIB, False),
        (claim(memory_bytes=2 * GIB), resting(1, 2 * GIB), 5 * GIB, 72 * MIB, True),
        # What they have touched is no longer free.
        (claim(memory_bytes=2 * GIB), resting(3, 2 * GIB), 4 * GIB, 6 * GIB, True),
        (claim(memory_bytes=2 * GIB), resting(3, 2 * GIB), 4 * GIB, 9 * GIB, True),
        (claim(memory_bytes=2 * GIB), resting(3, 2 * GIB), 2 * GIB, 9 * GIB, False),
        # A comparison's two, on a machine with little left.
        (claim(), (claim(),), 3 * GIB, 0, True),
        (claim(), (claim(),), 2 * GIB, 0, False),
        # As many as a run of our own tests has at once, on the machine that they are run on.
        (claim(), resting(9, GIB), 20 * GIB, 0, True),
        # Many small ones need more than they are given.
        (
            claim(memory_bytes=64 * MIB),
            (Claim(cores=0, memory_bytes=8 * 64 * MIB, guests=8, who="net"),),
            GIB,
            0,
            False,
        ),
    ],
)
def test_what_guests_were_promised_and_have_not_touched_is_not_free(
    wanted: Claim, held: tuple[Claim, ...], free_bytes: int, resident_bytes: int, fits: bool
) -> None:
    why = obstacle(wanted, held, cores=2, memory_bytes=24 * GIB, free_bytes=free_bytes, resident_bytes=resident_bytes)
    assert (why is None) is fits
    assert fits or (why is not None and "of that promised" in why)


async def test_what_a_process_s_guests_have_is_read_from_their_qemus(tmp_path: Path) -> None:
    before = resident_memory(os.getpid())
    for name, counts in (("qemu-system-own", True), ("something", False)):
        (tmp_path / name).symlink_to(Path(sys.executable).resolve())
        words = [str(tmp_path / name), "-c", "kept = b'x' * (64 << 20); print('has it', flush=True); input()"]
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        assert child.stdout is not None and await child.stdout.readline() == b"has it\n"
        assert (resident_memory(os.getpid()) - before >= 64 * MIB) is counts
        child.kill()
        await child.communicate()
    assert resident_memory(os.getpid()) == before


async def test_whoever_waits_is_told_what_for_and_comes_in_turn(tmp_path: Path) -> None:
    admission, notes, spec = Admission(tmp_path, cores=1, memory_bytes=64 * GIB), list[str](), list[str]()

    async def one(who: str) -> None:
        async with admission.admitted(claim(who=who), notes.append):
            spec.append(who)

    async with admission.admitted(claim(who="first"), notes.append):
        second = asyncio.create_task(one("second"))
        while not notes:
            await asyncio.sleep(0)
        third = asyncio.create_task(one("third"))
        while len(notes) < 2:
            await asyncio.sleep(0.01)
        assert spec == []
    await asyncio.gather(second, third)
    assert spec == ["second", "third"]
    assert notes[0] == "waiting for a core: there are 1, and 1 is taken by first"
    assert notes[1] == "waiting for its turn, after second"
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


@pytest.mark.parametrize(
    ("waiting", "held", "turns"),
    [
        (["1-7-0", "2-8-0", "3-7-1"], [], ["1-7-0", "2-8-0", "3-7-1"]),
        # A long command has two that run and two that wait; a short one that comes later is next, and then the older of equals.
        (["3-7-2", "4-7-3", "5-8-0"], ["1-7-0", "2-7-1"], ["5-8-0", "3-7-2", "4-7-3"]),
        (["3-7-2", "4-7-3", "6-8-1", "7-8-2"], ["1-7-0", "5-8-0"], ["3-7-2", "6-8-1", "4-7-3", "7-8-2"]),
        # Whoever has ended all of his is as new.
        (["3-7-2", "9-8-0"], [], ["3-7-2", "9-8-0"]),
    ],
)
def test_processes_take_turns(waiting: list[str], held: list[str], turns: list[str]) -> None:
    assert turn_order(waiting, held, now_ns=0) == turns
    # Who has waited a minute comes by age, whatever his process has.
    assert turn_order(waiting, held, now_ns=61_000_000_000) == sorted(waiting)


async def test_whoever_has_guests_is_not_kept_waiting(tmp_path: Path) -> None:
    admission = Admission(tmp_path, cores=1, memory_bytes=64 * GIB)
    async with admission.admitted(claim(), print), admission.admitted(claim(), print, at_once=True):
        pass


async def test_who_does_not_wait_gets_no_memory_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine would swap."""
    monkeypatch.setattr(resources, "free_bytes", lambda: 10 * GIB)
    admission = Admission(tmp_path, cores=4, memory_bytes=64 * GIB)
    async with admission.admitted(claim(memory_bytes=6 * GIB), print):
        async with admission.admitted(claim(memory_bytes=3 * GIB), print, at_once=True):
            pass
        with pytest.raises(HostError, match=r"expected 4\.\d*G of free memory, got 3\.\d*G; end other programs"):
            async with admission.admitted(claim(memory_bytes=4 * GIB), print, at_once=True):
                pass


async def test_a_ticket_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys; from pathlib import Path; from testbed.host.admission import *\n"
        "async def main():\n"
        "    async with Admission(Path(sys.argv[1]), cores=1, memory_bytes=1 << 40).admitted("
        "Claim(cores=1, memory_bytes=1, who='other'), print):\n"
        "        print('in', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None and await other.stdout.readline() == b"in\n"
    notes: list[str] = []

    async def one() -> None:
        async with Admission(tmp_path, cores=1, memory_bytes=64 * GIB).admitted(claim(), notes.append):
            pass

    waiting = asyncio.create_task(one())
    while not notes:
        await asyncio.sleep(0.01)
    assert not waiting.done() and "taken by other" in notes[0]
    other.kill()
    await other.wait()
    await waiting


async def test_whoever_s_guests_wait_leaves_the_cores_to_others(tmp_path: Path) -> None:
    admission, notes = Admission(tmp_path, cores=1, memory_bytes=64 * GIB), list[str]()
    async with admission.admitted(claim(who="first"), notes.append) as first:
        first.rest()
        async with admission.admitted(claim(who="second"), notes.append):
            pass
    assert notes == []


async def test_a_host_without_memory_says_so_where_nobody_s_end_would_help(tmp_path: Path) -> None:
    admission = Admission(tmp_path, cores=2, memory_bytes=64 * GIB)
    with pytest.raises(
        HostError, match=r"test_a: expected 976\.6T of free memory, got .*; end other programs, or give its guests less"
    ):
        async with admission.admitted(claim(memory_bytes=999_999 * GIB, who="test_a"), print):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]
    assert refusal(claim(memory_bytes=9), (claim(),), free_bytes=8) is None
    # QEMU itself needs some, too.
    assert refusal(claim(memory_bytes=GIB), (), free_bytes=GIB + 128 * MIB) is None
    assert refusal(claim(memory_bytes=GIB), (), free_bytes=GIB + 127 * MIB) is not None


async def test_patience_ends_but_not_while_it_is_held() -> None:
    patience = PausableClock()
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        await patience.within(asyncio.sleep(600), 0.01)
    assert await patience.within(asyncio.sleep(0, "done"), 5) == "done"
    patience.hold()
    held_at = patience.now()
    assert await patience.within(asyncio.sleep(0.05, "late"), 0.01) == "late"
    assert patience.now() == held_at
    stood = time.monotonic() - held_at
    patience.release()
    assert time.monotonic() - patience.now() >= stood


async def test_the_background_does_what_it_is_given_and_hands_back_what_comes() -> None:
    background = ThreadLoop()
    try:

        async def where() -> int:
            return threading.get_ident()

        assert await background.do(where()) != threading.get_ident()
        assert background.wait(where()) == await background.do(where())

        async def fails() -> None:
            raise GuestError("no")

        with pytest.raises(GuestError, match="no"):
            await background.do(fails())
        ended: list[str] = []
        began = threading.Event()

        async def stays() -> None:
            began.set()
            try:
                await asyncio.sleep(600)
            finally:
                ended.append("cancelled")

        waiting = asyncio.create_task(background.do(stays()))
        while not began.is_set():
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        background.close()
    assert ended == ["cancelled"]


FILES = {
    "io.stat": "254:32 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n7:9 rbytes=1 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
    "memory.stat": "anon 10\nfile 20\n",
    "memory.events": "oom_kill 1\n",
    "memory.current": "77\n",
}


def taken(files: dict[str, str], *notes: str) -> str:
    """What the script that reads a group's counters prints."""
    texts = "".join(
        f"M file /sys/fs/cgroup/a/b/{name}\n{text}\nM whole /sys/fs/cgroup/a/b/{name}\n" for name, text in files.items()
    )
    return texts + "".join(f"M note {note}\n" for note in notes) + "M finish\n"


def test_counters_are_by_the_names_of_the_topology_and_can_be_subtracted() -> None:
    found = cgroup.parse("a/b", taken(FILES, "data 254:32", "l0 7:0"), "M", "g0")
    assert found.of("data", "rbytes") == 4096 and found.of("7:9", "rios") == 1 and found.of("l0", "rbytes") == 0
    assert found.memory["file"] == 20 and found.events == {"oom_kill": 1} and found.usage == {"current": 77}
    grown = found - Counters(io={"data": {"rbytes": 96}}, memory={"file": 5}, events={"oom_kill": 1})
    assert (grown.of("data", "rbytes"), grown.memory["file"], grown.events["oom_kill"]) == (4000, 15, 0)
    assert (Counters(memory={"file": 1}) - Counters(memory={"file": 20})).memory == {"file": -19}, (
        "what there is now may become less"
    )


def test_a_counter_that_is_not_there_is_no_zero() -> None:
    found = cgroup.parse("a/b", taken(FILES, "data 254:32", "l0 7:0"), "M", "g0")
    with pytest.raises(UsageError, match="dta: expected MAJ:MIN, or one of the devices that are there: data, l0"):
        found.of("dta", "rbytes")
    with pytest.raises(UsageError, match=r"rbyte: expected one of io\.stat's counters, which are rbytes, wbytes, "):
        (found - Counters()).of("data", "rbyte")
    off = cgroup.parse("a/b", taken({name: text for name, text in FILES.items() if name != "io.stat"}), "M", "g0")
    for counted in (off, off - off, found - off):
        with pytest.raises(ReadingError, match="where the io controller is on"):
            counted.of("data", "rbytes")


@pytest.mark.parametrize(
    "after",
    [
        Counters(events={"oom_kill": 1}),  # the device is gone
        Counters(io={"data": {"rbytes": 4095}}, events={"oom_kill": 1}),
        Counters(io={"data": {"rbytes": 4096}}, events={"oom_kill": 0}),
        Counters(io={"data": {"rbytes": 4096}}),
    ],
)
def test_a_counter_that_shrank_or_went_away_is_no_growth(after: Counters) -> None:
    before = Counters(io={"data": {"rbytes": 4096}}, events={"oom_kill": 1})
    with pytest.raises(ReadingError, match="as before"):
        after - before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            taken(FILES | {"memory.events": "oom_kill \u00b2\n"}),
            r"g0: .*/a/b/memory.events, line 1: expected a whole number",
        ),
        (taken(FILES | {"io.stat": FILES["io.stat"][:-20]}), r"io.stat: expected a line's end"),
        (taken(FILES).removesuffix("M finish\n"), "expected what its script prints at the end"),
        (
            taken(FILES).replace("whole /sys/fs/cgroup/a/b/io.stat", "unread /sys/fs/cgroup/a/b/io.stat"),
            "io.stat: expected to read it",
        ),
        ("", "expected what its script prints at the end"),
    ],
)
def test_counters_that_were_not_read_are_an_error(text: str, why: str) -> None:
    with pytest.raises(ReadingError, match=why):
        cgroup.parse("a/b", text, "M", "g0")


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        (">=7.2", True),
        (">= 7.2.22", True),
        (">7.2", False),
        ("<8", True),
        ("==7.2", True),
        ("<7", False),
        (">=8.0", False),
        ("nvme", True),
    ],
)
def test_versions_of_qemu(need: str, fits: bool) -> None:
    assert (requirements.lacking_version([need], "7.2.22") == "") is fits


def test_options_of_a_kernel() -> None:
    config = "CONFIG_BLK_CGROUP=y\nCONFIG_LOOP=m\n# CONFIG_KASAN is not set\n"
    assert [requirements.config_lacks(need, config) for need in ("BLK_CGROUP", "CONFIG_LOOP=m", "KASAN", "LOOP=y")] == [
        "",
        "",
        "CONFIG_KASAN",
        "CONFIG_LOOP=y (it has m)",
    ]


def test_a_device_that_is_not_there_is_told_with_those_that_are() -> None:
    disk = Disk(name="data", path="/dev/vdc", number="254:32", serial="tb-data", size_bytes=1)
    disks = Named("one of the topology's disks", {"data": disk})
    assert f"{disks['data']}" == "/dev/vdc"
    with pytest.raises(UsageError, match="which are data; got 'dta'"):
        disks["dta"]


def test_a_topology_is_a_path_or_yaml_or_a_mapping(tmp_path: Path) -> None:
    text = "version: 1\nguests:\n  here: {}\n"
    (tmp_path / "t.yaml").write_text(text)
    some: tuple[topologies.Wanted, ...] = ("t.yaml", Path("t.yaml"), text, {"guests": {"here": {}}})
    for wanted in some:
        assert list(topologies.resolve_point(wanted, tmp_path, "it", None).guests) == ["here"]
    with pytest.raises(TopologyError, match=r"it:3:16: guests\.g0\.cpus"):
        topologies.resolve_point("version: 1\nguests:\n    g0: {cpus: 99}\n", tmp_path, "it", None)
    with pytest.raises(UsageError, match="it: expected a topology"):
        topologies.resolve_point(cast("topologies.Wanted", 3), tmp_path, "it", None)


class Side:
    def __init__(self, release: str) -> None:
        self.release = release


SIDES = cast("dict[str, Vm]", {"base": Side("5.10"), "patched": Side("6.1")})


async def test_a_comparison_holds_what_both_sides_gave() -> None:
    async def body(vm: Vm) -> str:
        return vm.release

    for together in (True, False):
        result = await compare_sides(body, SIDES, side_by_side=together)
        assert (result.base, result.patched) == ("5.10", "6.1")


def test_what_is_expected_of_both_sides_is_told_of_both() -> None:
    result = Comparison(base=0, patched=5, releases={"base": "5.10", "patched": "6.1"})
    result.expect("bytes", base=0, patched=lambda got: got > 0)
    with pytest.raises(AssertionError) as failed:
        result.expect("bytes", base=0, patched=lambda got: got > 9)
    assert str(failed.value) == (
        "bytes\n  base    5.10: expected 0, got 0: holds\n  patched 6.1: expected as its function says, got 5: does not hold"
    )


async def test_a_side_that_fails_is_named_and_the_other_runs_to_its_end() -> None:
    async def body(vm: Vm) -> int:
        if vm.release == "5.10":
            raise GuestError("it broke")
        await asyncio.sleep(0.01)
        return 7

    with pytest.raises(SideFailed) as failed:
        await compare_sides(body, SIDES, side_by_side=True)
    assert "base    5.10: failed: GuestError: it broke" in str(failed.value) and "patched 6.1: returned 7" in str(
        failed.value
    )


async def test_a_skip_on_one_side_skips() -> None:
    async def body(vm: Vm) -> Any:
        pytest.skip("not here")

    with pytest.raises(pytest.skip.Exception, match="not here"):
        await compare_sides(body, SIDES, side_by_side=True)


def test_everything_public_is_there() -> None:
    for name in testbed.__all__:
        assert getattr(testbed, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testbed.nothing


async def test_modules_in_the_current_folder_are_not_run_for_a_guest_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be a stranger's."""
    asked: list[Any] = []

    async def run(words: list[Any], **how: Any) -> None:
        asked.extend(words)
        raise HostError("no more")

    monkeypatch.setattr("testbed.api.supervised_guest.process.run", run)
    topology = Topology.model_validate({"version": 1, "guests": {"g0": {}}})
    with pytest.raises(HostError, match="no more"):
        async with supervised_guest.start_supervised(
            topology, "k", {"g0": "k"}, cast(Any, None), tmp_path / "evidence", cold=False
        ):
            pass
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    words = [*asked[: asked.index("up")], "--version"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=environment)
    assert await done.wait() == 0 and not (tmp_path / "ran").exists()
