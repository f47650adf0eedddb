"""Whole commands that are killed, or run in great number: the next one removes all that is left; see `faults.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from benchmarks import kills
from testbed.guest.factory import GuestFactory
from testbed.host import resources
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel, load
from testbed.units import MIB
from tests.support import places
from tests.support.faults import NAMES, expect
from tests.support.places import Places
from tests.support.victim import SAVING

TINY = "version: 1\nguests:\n  tiny: {cpus: 1, memory: 256M, disks: {data: {type: virtio-blk, size: 64M}}}\n"
SCRIPT = "echo here it is\n"
RUN = (
    "repro",
    "--script",
    "bad.sh",
    "--expect",
    "^here it is$",
    "-k",
    "debian-6.1",
    "-n",
    "1",
    "-q",
    "-t",
    "tiny.yaml",
)
KILLED = "kill -9 of the testbed"
GATE = ("run", "gate", "--quick", "-k", "debian-6.1", "-q")


@pytest.fixture
async def own(factory: GuestFactory, kernel: KernelFiles, model: GuestModel) -> AsyncIterator[Places]:
    with places.made() as found:
        found.file("bad.sh", SCRIPT)
        tiny = load(Path(found.file("tiny.yaml", TINY))).guests["tiny"]
        # The faults hit the tests' own guests, not those of which templates are made.
        for machine in (tiny, model):
            await factory.prepare(machine, kernel)
        yield found


def logs(own: Places) -> list[Path]:
    return list(own.state.glob("runs/*/**/stages.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("state", NAMES)
async def test_a_killed_run_leaves_nothing(own: Places, state: str) -> None:
    with expect(KILLED):
        await own.run(*RUN, hurt=("us", state), status=-9)
        # The very next command cleans up.
        await own.nothing_left()
    reached = [json.loads(line)["state"] for log in logs(own) for line in log.read_text().splitlines()]
    assert (reached or ["PLANNED"])[-1] == state


@pytest.mark.slow
@pytest.mark.parametrize("state", NAMES)
async def test_a_killed_supervisor_leaves_nothing(own: Places, state: str) -> None:
    with expect(KILLED):
        ended = await own.run("up", "tiny.yaml", "-q", hurt=("us", state), status=2)
        assert "tiny: its supervisor ended before it was ready" in ended.err
        await own.nothing_left("ps")
    assert bool(logs(own)) == (state != "PLANNED")


@pytest.mark.slow
@pytest.mark.parametrize("state", NAMES)
async def test_a_killed_up_ends_its_guest(own: Places, state: str) -> None:
    with expect(KILLED):
        await own.run("up", "tiny.yaml", "-q", hurt=("starter", state), status=-9)
        await own.nothing_left()
    # Its supervisor is notified; it may have reached this state by then, or not.
    assert logs(own) or state == "PLANNED"


@pytest.mark.slow
@pytest.mark.parametrize("state", (*NAMES, SAVING))
async def test_a_killed_template_leaves_nothing(own: Places, state: str) -> None:
    (own.cache / "templates").unlink()
    with expect(KILLED):
        await own.run(*RUN, hurt=("us", state), status=-9)
        (unfinished,) = own.cache.glob("templates/.unfinished-*")
        assert (unfinished / "state").exists() == (state == SAVING)
        await own.nothing_left()


@pytest.mark.slow
async def test_a_command_reports_that_its_qemu_was_killed(own: Places) -> None:
    with expect("kill -9 of QEMU") as met:
        for command, state in ((GATE, "READY"), (RUN, "MONITORED")):
            ended = met.by(await own.run(*command, "--json", hurt=("qemu", state), status=None), coded=False)
            assert "QEMU ended with status -9" in ended.out
        await own.nothing_left()
    assert len(logs(own)) == 2


@pytest.mark.slow
async def test_random_kills_leave_nothing() -> None:
    with expect(KILLED):
        found = await kills.measure(count=5, seed=8, commands=("up", "repro"))
    assert (found["kills"], found["left"]) == (5, [])


@pytest.mark.slow
async def test_twenty_commands_at_once(own: Places) -> None:
    """Fewer commands are started if not all fit: all guests together get half of the memory."""
    count = min(20, resources.memory_bytes() // 2 // (256 * MIB))
    with expect("20 commands at once"):
        try:
            started = [await own.start("up", "tiny.yaml", "--name", f"g{number}") for number in range(count)]
            said = await asyncio.gather(*(one.communicate() for one in started))
            assert [one.returncode for one in started] == [0] * count, said
            # Commands that waited reported what for.
            assert any(b"waiting for" in err for _, err in said)
            assert len(json.loads((await own.run("ps", "--json")).out)) == count
            adjusted = [
                Path(f"/proc/{pid}/oom_score_adj").read_text()
                for pid, words in own.processes().items()
                if "qemu-system" in words
            ]
            assert adjusted == ["1000\n"] * count
        finally:
            await own.run("down", "--all")
        await own.nothing_left()


# Takes two seconds where mmdebstrap takes a minute, and makes an image that is never booted: only waiting is tested.
BUILDER = """\
#!/bin/sh
echo x >>"$BUILDS"
cp /bin/sh busybox
sleep 2
head -c 1000000 /dev/zero >root.ext4
"""


@pytest.mark.slow
async def test_two_commands_build_an_image_once() -> None:
    with expect("two commands build the same image"), places.made() as own:
        (own.cache / "images").unlink()
        Path(own.file("mmdebstrap", BUILDER)).chmod(0o755)

        def build() -> Awaitable[asyncio.subprocess.Process]:
            path = f"{own.root}:{os.environ['PATH']}"
            return own.start("image", "build", PATH=path, BUILDS=str(own.root / "builds"))

        first = await build()
        while not (own.root / "builds").exists():
            await asyncio.sleep(0.05)
        first.kill()
        await first.communicate()
        await own.no_processes()
        assert list(own.cache.glob("images/.unfinished-*"))
        both = [await build() for _ in range(2)]
        said = await asyncio.gather(*(one.communicate() for one in both))
        assert [one.returncode for one in both] == [0, 0], said
        assert said[0][0] == said[1][0]
        assert (
            sum(
                f"waiting for pid {one.pid} ".encode() in err
                for one, (_, err) in zip(both, reversed(said), strict=True)
            )
            == 1
        ), said
        assert (own.root / "builds").read_text() == "x\n" * 2
        await own.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ("unpacking the essential packages", "installing the other packages"))
async def test_a_killed_image_build_leaves_nothing(stage: str) -> None:
    """Neither mmdebstrap nor its children are left, no mount, and no file of any user."""
    with expect(KILLED), places.made() as made:
        own = made.bare()
        building = await own.start("image", "build")
        assert building.stderr is not None
        async for line in building.stderr:
            if stage.encode() in line:
                break
        (unfinished,) = own.cache.glob("images/.unfinished-*")
        assert any("mmdebstrap" in words for words in own.processes().values()) and list(
            unfinished.glob("work/mmdebstrap.*")
        )
        building.kill()
        await building.communicate()
        await own.nothing_left()


@pytest.mark.slow
async def test_an_interrupted_benchmark_leaves_nothing(own: Places) -> None:
    words = (sys.executable, "-m", "benchmarks", "up", "-n", "1")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*words, stderr=pipe, env=own.env, cwd=places.ROOT)
    while not any("qemu-system" in words for words in own.processes().values()):
        assert child.returncode is None
        await asyncio.sleep(0.05)
    child.terminate()
    _, err = await child.communicate()
    assert child.returncode == 128 + signal.SIGTERM and err.decode().endswith(
        "testbed: stopped by SIGTERM; what it had started is gone\n"
    )
    await own.no_processes()
    assert own.left() == []
