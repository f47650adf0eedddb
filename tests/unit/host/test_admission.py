"""Admission: the queue of guests that wait to start."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host import resources
from testbed.host.admission import Admission, Claim, Cores, most_at_once, obstacle, refusal, resident_memory, turn_order
from testbed.units import GIB, MIB
from tests.support.values import host


def test_a_command_starts_as_many_guests_at_once_as_cores_and_memory_allow() -> None:
    assert most_at_once(Cores.SHARED, host(cores=2), GIB) == 2
    assert most_at_once(Cores.SHARED, host(cores=8, free=6 * GIB), GIB) == 3
    assert most_at_once(Cores.SHARED, host(cores=8, free=GIB // 2), GIB) == 1
    assert most_at_once(Cores.IDLE, host(cores=2, free=6 * GIB), GIB) == 3
    assert most_at_once(Cores.IDLE, host(cores=2, free=600 * GIB), GIB) == 24
    assert most_at_once(Cores.ALONE, host(cores=8, free=600 * GIB), GIB) == 1


def test_a_guest_claims_cores_by_what_it_does() -> None:
    assert [cores.count(host(cores=8)) for cores in (Cores.SHARED, Cores.IDLE, Cores.ALONE)] == [1, 0, 8]


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
        # Idle clones have touched 72 MiB of their memory, and may still touch the rest.
        (claim(memory_bytes=2 * GIB), resting(1, 2 * GIB), 4 * GIB, 72 * MIB, False),
        (claim(memory_bytes=2 * GIB), resting(5, 2 * GIB), 4 * GIB, 5 * 72 * MIB, False),
        (claim(memory_bytes=2 * GIB), resting(1, 2 * GIB), 5 * GIB, 72 * MIB, True),
        # The memory that they have touched is no longer free.
        (claim(memory_bytes=2 * GIB), resting(3, 2 * GIB), 4 * GIB, 6 * GIB, True),
        (claim(memory_bytes=2 * GIB), resting(3, 2 * GIB), 4 * GIB, 9 * GIB, True),
        (claim(memory_bytes=2 * GIB), resting(3, 2 * GIB), 2 * GIB, 9 * GIB, False),
        # The two guests of a comparison, on a machine with little free memory.
        (claim(), (claim(),), 3 * GIB, 0, True),
        (claim(), (claim(),), 2 * GIB, 0, False),
        # As many guests as a run of this test suite has at once, on the machine that it runs on.
        (claim(), resting(9, GIB), 20 * GIB, 0, True),
        # Many small guests need more memory than their own.
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
        # A long command has two guests that run and two that wait. A guest of a short command that comes later is
        # next, and after it the older one of equals.
        (["3-7-2", "4-7-3", "5-8-0"], ["1-7-0", "2-7-1"], ["5-8-0", "3-7-2", "4-7-3"]),
        (["3-7-2", "4-7-3", "6-8-1", "7-8-2"], ["1-7-0", "5-8-0"], ["3-7-2", "6-8-1", "4-7-3", "7-8-2"]),
        # A command whose guests have all ended counts as new.
        (["3-7-2", "9-8-0"], [], ["3-7-2", "9-8-0"]),
    ],
)
def test_processes_take_turns(waiting: list[str], held: list[str], turns: list[str]) -> None:
    assert turn_order(waiting, held, now_ns=0) == turns
    # After a minute of waiting, tickets are ordered by age, however many guests their process has.
    assert turn_order(waiting, held, now_ns=61_000_000_000) == sorted(waiting)


async def test_whoever_has_guests_is_not_kept_waiting(tmp_path: Path) -> None:
    admission = Admission(tmp_path, cores=1, memory_bytes=64 * GIB)
    async with admission.admitted(claim(), print), admission.admitted(claim(), print, at_once=True):
        pass


async def test_who_does_not_wait_gets_no_memory_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents that the host swaps."""
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
        first.release_cores()
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
    # QEMU itself needs memory, too.
    assert refusal(claim(memory_bytes=GIB), (), free_bytes=GIB + 128 * MIB) is None
    assert refusal(claim(memory_bytes=GIB), (), free_bytes=GIB + 127 * MIB) is not None
