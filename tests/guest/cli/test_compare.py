"""`testbed compare`, as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.guest.session import OWNER_VARIABLE, reap
from testbed.host import paths

ROOT = Path(__file__).parents[3]


async def start(state: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "testbed",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "TESTBED_STATE": str(state)},
    )


async def finish(child: asyncio.subprocess.Process) -> tuple[int, str, str]:
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


async def compare(state: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code, out, err = await finish(await start(state, "compare", "--json", *words))
    assert out, err
    return code, json.loads(out)


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {scenario["name"]: scenario["verdict"] for scenario in document["scenarios"]}


def standing(side: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the filesystem types by mount point and the backing files by loop device of one kernel's guest."""
    stack = side["stack"]
    loops = {one["device"]: one["backing_file"] for one in stack["blocks"] if one["kind"] == "loop"}
    return {one["mount_point"]: one["type"] for one in stack["mounts"]}, loops


@pytest.mark.slow
async def test_the_default_pair_passes_every_scenario(tmp_path: Path) -> None:
    code, document = await compare(tmp_path)
    assert verdicts(document) == {
        "oom-tmpfs": "PASS",
        "gate": "PASS",
        "read/virtio-blk/ext4": "PASS",
        "read/nvme/ext4": "PASS",
    }, document
    assert (code, document["verdict"]) == (0, "PASS")
    assert document["kernels"]["base"]["release"].startswith("5.10") and document["kernels"]["patched"][
        "release"
    ].startswith("6.1")
    letter, gate, virtio, nvme = document["scenarios"]
    measures = {
        side: {name: one["value"] for name, one in letter[side]["measures"].items()} for side in ("base", "patched")
    }
    # The cover letter's three readings: 0; one kill on tmpfs; through the loop none before the series, some with it.
    for side in ("base", "patched"):
        assert measures[side]["oom_kill at start"] == 0
        assert measures[side]["oom_kill after tmpfs"] >= 1
    assert measures["base"]["oom_kill after loop"] == measures["base"]["oom_kill after tmpfs"]
    assert measures["patched"]["oom_kill after loop"] > measures["patched"]["oom_kill after tmpfs"]
    for read in (virtio, nvme):
        assert read["base"]["measures"]["charged reads"]["value"] == 0
        assert read["patched"]["measures"]["charged reads"]["value"] >= 16 << 20
        assert all(control["holds"] for side in ("base", "patched") for control in read[side]["controls"])
    # The stack, read from each guest while the claim was measured, also inside the letter's own mount namespace.
    for side in ("base", "patched"):
        assert standing(letter[side]) == ({"/tmp": "tmpfs"}, {"/dev/loop0": "/tmp/backing_file"})
        (limited,) = letter[side]["stack"]["groups"]
        assert (limited["path"], limited["limits"]["memory.max"]) == ("/test.slice", ["67108864"])
        assert standing(gate[side]) == ({"/tmp": "tmpfs"}, {"/dev/loop1": "/tmp/backing_file"})
        for read, disk in ((virtio, "data"), (nvme, "fast")):
            assert standing(read[side]) == ({f"/mnt/{disk}": "ext4"}, {"/dev/loop0": f"/mnt/{disk}/file"})
            stack = read[side]["stack"]
            assert [(one["name"], one["kind"], one["size_bytes"]) for one in stack["blocks"]][:2] == [
                ("data", "virtio-blk", 1 << 30),
                ("fast", "nvme", 1 << 30),
            ]
            assert stack["mounts"][0]["source"] == next(one["device"] for one in stack["blocks"] if one["name"] == disk)
            assert not stack["blocks"][2]["direct_io"] and [group["path"] for group in stack["groups"]] == ["/reader"]
    folder = tmp_path / "runs" / document["run"]
    page = (folder / "report.html").read_text()
    assert (
        page.count(
            "The stack on each kernel while the claim was measured, read back from the guest: data (virtio-blk 1G)"
        )
        == 4
    )
    assert json.loads((folder / "results.json").read_text()) == document
    for scenario in document["scenarios"]:
        for side in ("base", "patched"):
            found = {path.name for path in (folder / scenario[side]["evidence"]).iterdir()}
            assert {"console.log", "qmp.jsonl", "argv.txt", "dmesg.txt"} <= found
    # Mostly the loop's worker reaches the limit while it charges for dd (patch 4), sometimes dd itself; dd is killed.
    dmesg = (folder / letter["patched"]["evidence"] / "dmesg.txt").read_text()
    assert "invoked oom-killer" in dmesg and "(dd)" in dmesg


@pytest.mark.slow
async def test_a_kernel_compared_with_itself_does_not_pass(tmp_path: Path) -> None:
    """The test of the swapped pair runs all four scenarios on this base."""
    code, document = await compare(
        tmp_path, "oom-tmpfs", "read/nvme/ext4", "--base", "debian-6.1", "--patched", "debian-6.1"
    )
    assert set(verdicts(document).values()) == {"INVALID"}, document
    assert code == 3


@pytest.mark.slow
async def test_swapped_kernels_do_not_pass(tmp_path: Path) -> None:
    code, document = await compare(tmp_path, "--base", "debian-6.1", "--patched", "debian-5.10")
    assert set(verdicts(document).values()) == {"INVALID"}, document
    assert code == 3


@pytest.mark.slow
async def test_the_base_kernel_compared_with_itself_fails(tmp_path: Path) -> None:
    """The base shows the bypass, and so does the `patched` kernel, as with a series that does not work."""
    code, document = await compare(tmp_path, "read/nvme/ext4", "--base", "debian-5.10", "--patched", "debian-5.10")
    assert verdicts(document) == {"read/nvme/ext4": "FAIL"}, document
    assert code == 1


async def test_a_single_kernel_is_judged_by_the_kernel_table(tmp_path: Path) -> None:
    code, out, err = await finish(
        await start(tmp_path, "run", "read/virtio-blk/ext4", "--kernel", "debian-6.1", "--quiet")
    )
    assert code == 0, err
    verdict, _, folder = out.splitlines()[-1].rpartition(" ")
    assert verdict == "verdict: PASS"
    assert json.loads((Path(folder) / "results.json").read_text())["scenarios"][0]["kernel"]["claim"] == "closed"


async def test_a_topology_without_the_needed_disk_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("version: 1\nguests: {g0: {}}\n")
    code, document = await compare(tmp_path, "read", "--topology", str(tmp_path / "bare.yaml"))
    assert set(verdicts(document).values()) == {"SKIP"}
    assert code == 4
    assert "has no virtio-blk disk" in document["scenarios"][0]["reason"]


def qemus(of: int) -> set[int]:
    """Return the QEMU processes that a testbed process has started."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == of and b"qemu-system" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except (OSError, IndexError):
            continue
    return found


async def running(child: asyncio.subprocess.Process) -> set[int]:
    """Wait until a guest of the testbed runs; return its QEMU processes."""
    while not (found := qemus(child.pid)):
        assert child.returncode is None
        await asyncio.sleep(0.05)
    return found


def folders_of(guests: set[int]) -> set[Path]:
    """Return the folders of sockets and scratch disks of the guests' session."""
    found = set()
    for pid in guests:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        own = next(Path(word.partition("=")[2]) for word in words if word.startswith(f"{OWNER_VARIABLE}="))
        session = own.parent
        found |= {session, paths.folders().scratch / session.name}
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_signal_ends_the_guests(tmp_path: Path, number: signal.Signals, code: int) -> None:
    child = await start(tmp_path, "run", "oom-tmpfs")
    guests = await running(child)
    folders = folders_of(guests)
    assert all(folder.is_dir() for folder in folders)
    child.send_signal(number)
    status, _, err = await finish(child)
    assert status == code
    assert f"stopped by {number.name}" in err and "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in guests)
    assert not any(folder.exists() for folder in folders)


async def test_a_killed_command_leaves_no_guest_and_the_next_one_removes_its_files(tmp_path: Path) -> None:
    child = await start(tmp_path, "run", "oom-tmpfs")
    guests = await running(child)
    folders = folders_of(guests)
    child.kill()
    await child.wait()
    async with asyncio.timeout(60):  # the kernel signals QEMU, and QEMU's threads have to end
        while any(_alive(pid) for pid in guests):
            await asyncio.sleep(0.05)
    assert any(folder.exists() for folder in folders)
    reap(paths.folders())
    assert not any(folder.exists() for folder in folders)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
