"""Whole commands that are killed, or that are many: nothing of them is left after the next one; see `faults.py`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from benchmarks import kills
from testbed import probe
from testbed.lab import Lab
from testbed.store.kernel_files import KernelFiles
from testbed.topology import Guest, load
from testbed.units import GIB
from tests.guest import places
from tests.guest.faults import NAMES
from tests.guest.places import Places

TINY = "version: 1\nguests:\n  tiny: {cpus: 1, memory: 256M, disks: {data: {type: virtio-blk, size: 64M}}}\n"
SCRIPT = "echo here it is\n"
RUN = ("repro", "--script", "bad.sh", "--expect", "^here it is$", "-k", "debian-6.1", "-n", "1", "-q", "-t", "tiny.yaml")
GATE = ("run", "gate", "--quick", "-k", "debian-6.1", "-q")


@pytest.fixture
async def own(lab: Lab, kernel: KernelFiles, model: Guest) -> AsyncIterator[Places]:
    with places.made() as found:
        found.file("bad.sh", SCRIPT)
        tiny = load(Path(found.file("tiny.yaml", TINY))).guests["tiny"]
        # It is their own guests that are hurt, and not those of which templates are made.
        for machine in (tiny, model):
            await lab.prepare(machine, kernel)
        yield found


def logs(own: Places) -> list[Path]:
    return list(own.state.glob("runs/*/**/stages.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("state", NAMES)
async def test_a_killed_run_leaves_nothing(own: Places, state: str) -> None:
    await own.run(*RUN, hurt=("us", state), status=-9)
    # The very next command cleans up.
    await own.nothing_left()
    (log,) = logs(own)
    assert json.loads(log.read_text().splitlines()[-1])["state"] == state


@pytest.mark.slow
@pytest.mark.parametrize("state", NAMES)
async def test_a_killed_supervisor_leaves_nothing(own: Places, state: str) -> None:
    ended = await own.run("up", "tiny.yaml", "-q", hurt=("us", state), status=2)
    assert "tiny: its supervisor ended before it was ready" in ended.err
    await own.nothing_left("ps")
    assert logs(own)


@pytest.mark.slow
@pytest.mark.parametrize("state", NAMES)
async def test_a_killed_up_takes_its_guest_along(own: Places, state: str) -> None:
    await own.run("up", "tiny.yaml", "-q", hurt=("starter", state), status=-9)
    await own.nothing_left()
    assert logs(own)


@pytest.mark.slow
async def test_a_killed_template_leaves_nothing(own: Places) -> None:
    (own.cache / "templates").unlink()
    await own.run(*RUN, hurt=("us", "IDENTIFIED"), status=-9)
    assert list(own.cache.glob("templates/.unfinished-*"))
    await own.nothing_left()


@pytest.mark.slow
async def test_a_command_whose_qemu_is_killed_says_so(own: Places) -> None:
    for command, state in ((GATE, "READY"), (RUN, "MONITORED")):
        ended = await own.run(*command, "--json", hurt=("qemu", state), status=2)
        assert "QEMU ended with status -9" in ended.out
    await own.nothing_left()
    assert len(logs(own)) == 2


@pytest.mark.slow
async def test_random_kills_leave_nothing() -> None:
    found = await kills.measure(count=5, seed=8, commands=("up", "repro"))
    assert found["kills"] == 5 and found["orphans"] == 0 and found["leftovers"] == 0


@pytest.mark.slow
async def test_twenty_commands_at_once(own: Places) -> None:
    if probe.host_memory() < 12 * GIB:
        pytest.skip("twenty guests of 256M take 5G, and all guests get half of the memory")
    try:
        started = [await own.start("up", "tiny.yaml", "--name", f"g{number}") for number in range(20)]
        said = await asyncio.gather(*(one.communicate() for one in started))
        assert [one.returncode for one in started] == [0] * 20, said
        # Who waited was told what for.
        assert any(b"waiting for" in err for _, err in said)
        assert len(json.loads((await own.run("ps", "--json")).out)) == 20
        adjusted = [Path(f"/proc/{pid}/oom_score_adj").read_text() for pid, words in own.processes().items() if "qemu-system" in words]
        assert adjusted == ["1000\n"] * 20
    finally:
        await own.run("down", "--all")
    await own.nothing_left()


# Takes two seconds where mmdebstrap takes a minute, and makes an image that nobody boots: it is who waits for whom that is looked at.
BUILDER = """\
#!/bin/sh
echo x >>"$BUILDS"
for word; do
    case $word in
    "--customize-hook=download /bin/busybox "*) cp /bin/sh "${word##* }" ;;
    "--customize-hook=download /root.ext4.zst "*) image=${word##* } ;;
    esac
done
sleep 2
head -c 1000000 /dev/zero | zstd -q -o "$image"
"""


async def test_an_image_is_built_once_by_two() -> None:
    with places.made() as own:
        (own.cache / "images").unlink()
        own.root.chmod(0o755)
        elsewhere = own.root / "elsewhere"
        elsewhere.mkdir(mode=0o755)
        Path(own.file("mmdebstrap", BUILDER)).chmod(0o755)

        def build() -> Awaitable[asyncio.subprocess.Process]:
            path = f"{own.root}:{os.environ['PATH']}"
            return own.start("image", "build", TMPDIR=str(elsewhere), PATH=path, BUILDS=str(own.root / "builds"))

        first = await build()
        while not (own.root / "builds").exists():
            await asyncio.sleep(0.05)
        first.kill()
        await first.communicate()
        await own.no_processes()
        assert list(elsewhere.iterdir()) and list(own.cache.glob("images/.unfinished-*"))
        both = [await build() for _ in range(2)]
        said = await asyncio.gather(*(one.communicate() for one in both))
        assert [one.returncode for one in both] == [0, 0], said
        assert said[0][0] == said[1][0] and sum(b"waiting for another run that is at it" in err for _, err in said) == 1
        assert (own.root / "builds").read_text() == "x\n" * 2
        assert not list(elsewhere.iterdir())
        await own.nothing_left()
