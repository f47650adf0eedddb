"""Bugs of the museum on real guests: where they show, where they must not, and the commands that take bugs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.bugs import load
from testbed.bugs.kernel_tries import KernelTries, KernelVerdict
from testbed.bugs.repro import ReproJob, StopRule, try_kernel
from testbed.guest.factory import GuestFactory, open_factory
from testbed.host import process
from testbed.progress import Silent
from testbed.store.kernels.kernel_files import KernelFiles

MUSEUM = Path(__file__).parents[3] / "topologies" / "bugs"
# The pair of kernels that `./tb compare` uses, so that most machines have them already.
PAIR = ("debian-5.10", "debian-6.1")
WAITS, TIMED = ("css-leak", "idle-workers"), ("inversion", "io-max-bypass")


async def one_side(job: ReproJob, factory: GuestFactory, spec: str, *, must_show: bool) -> KernelTries:
    """Try a bug on one kernel, up to three times: a bug that measures time cannot do so while this machine is busy."""
    for _ in range(3):
        tried = await try_kernel(job, await factory.kernel(spec), must_show=must_show)
        if tried.verdict is not KernelVerdict.TROUBLE:
            break
    return tried


async def both_sides(factory: GuestFactory, name: str, folder: Path) -> None:
    case = load(MUSEUM / f"{name}.yaml")
    job = ReproJob(
        factory=factory,
        case=case,
        limits=StopRule(tries=1, timeout_s=case.bug.timeout_s),
        seed=1,
        folder=folder / name,
        on_try=lambda kernel, one: None,
    )
    shows = next(spec for spec in PAIR if spec in case.bug.kernels.shows)
    clean = next(spec for spec in PAIR if spec in case.bug.kernels.clean)
    wanted = (one_side(job, factory, shows, must_show=True), one_side(job, factory, clean, must_show=False))
    if name in TIMED:
        tried = (await wanted[0], await wanted[1])
    else:
        tried = await asyncio.gather(*wanted)
    assert [one.verdict for one in tried] == [KernelVerdict.SHOWS, KernelVerdict.ABSENT], [
        (try_.why, try_.end) for one in tried for try_ in one.tries
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_each_bug_shows_where_it_must_and_only_there(tmp_path: Path) -> None:
    # Bugs that measure time run last, when those that wait no longer do anything else.
    busy = sorted(
        (path.stem for path in MUSEUM.glob("*.yaml") if path.stem not in WAITS), key=lambda name: (name in TIMED, name)
    )
    async with open_factory(Silent(), kernels=PAIR) as factory, asyncio.TaskGroup() as group:
        for name in WAITS:
            group.create_task(both_sides(factory, name, tmp_path))
        for name in busy:
            await both_sides(factory, name, tmp_path)
    assert len(busy) + len(WAITS) >= 6


async def testbed(folder: Path, *words: str, status: int | None = 0) -> tuple[str, str, int]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testbed", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TESTBED_STATE": str(folder / "state")},
        cwd=folder,
    )
    out, err = await child.communicate()
    assert "Traceback" not in err.decode()
    assert status is None or child.returncode == status, (words, out.decode(), err.decode())
    return out.decode(), err.decode(), child.returncode or 0


testbed.__test__ = False  # type: ignore[attr-defined]  # pytest takes its name for a test's


def installed(folder: Path, lab_kernel: KernelFiles) -> None:
    """Create what `make install modules_install` leaves of a kernel in the cache; read its modules from their disk."""
    release = lab_kernel.release
    modules = folder / "lib" / "modules"
    modules.mkdir(parents=True, exist_ok=True)
    (folder / f"vmlinuz-{release}").symlink_to(lab_kernel.bzimage)
    assert lab_kernel.modules_disk is not None
    read = f"rdump /{release} {modules}"
    subprocess.run([str(process.find("debugfs")), "-R", read, lab_kernel.modules_disk], check=True, capture_output=True)
    # A folder's date is part of its cache key: otherwise each run of this test would leave a kernel in the cache.
    for path in (folder / "lib").rglob("*"):
        os.utime(path, (0, 0))


@pytest.mark.slow
async def test_a_folder_of_kernels_is_walked_by_version_with_the_modules_beside_them(tmp_path: Path) -> None:
    async with open_factory(Silent(), kernels=PAIR) as factory:
        for spec in PAIR:
            installed(tmp_path / "kernels", await factory.kernel(spec))
    (tmp_path / "old.yaml").write_text(OLD)
    first, last = sorted(path.name for path in (tmp_path / "kernels").glob("vmlinuz-*"))
    # Files that lie beside kernels, and kernels that do not unpack or boot.
    beside = (
        f"vmlinuz-{first}.old",
        "vmlinuz",
        "System.map-5.15",
        f".vmlinuz-{last}.hmac",
        "linux-headers-5.15_5.15-1_amd64.deb",
    )
    for name in (*beside, "vmlinuz-5.15.0"):
        (tmp_path / "kernels" / name).write_text(f"{name}: no kernel")
    whole = (tmp_path / "kernels" / last).read_bytes()
    (tmp_path / "kernels" / "vmlinuz-5.16.0").write_bytes(whole[: 64 << 10] + bytes(len(whole) - (64 << 10)))
    words = ("bisect", "old.yaml", "--kernels", "kernels", "--good", last, "--bad", first, "--json")
    out, err, _ = await testbed(tmp_path, *words)
    found = json.loads(out)
    names = [first, "vmlinuz-5.15.0", "vmlinuz-5.16.0", last]
    assert [Path(one.split(":")[0]).name for one in found["kernels"]] == names and found["wrong"] == ""
    answers = [(Path(one["kernel"].split(":")[0]).name, one["answer"]) for one in found["asked"]]
    assert answers == [(first, "bad"), (last, "good"), ("vmlinuz-5.15.0", "skip"), ("vmlinuz-5.16.0", "skip")]
    assert "expected a bzImage" in found["asked"][2]["why"] and found["asked"][3]["why"]
    assert found["skipped"] == found["kernels"][1:3] and found["reason"].endswith("could not be tried")
    assert {one.split(" ")[0] for one in found["not_kernels"]} == set(beside) and "no kernels: " in err
    # The run is listed, and its results are shown again.
    out, _, _ = await testbed(tmp_path, "report", "last")
    assert f"it went after {found['bad']}" in out and "| bad |" in out
    out, _, _ = await testbed(tmp_path, "runs", "--json")
    assert [one["verdict"] for one in json.loads(out)["runs"]] == ["bisected"]


# Shows on kernels before 5.14 without any device.
OLD = """\
version: 1
summary: an old kernel
topology: {guests: {g0: {cpus: 1, memory: 512M}}}
script: case $(uname -r) in 5.*) echo old ;; esac
signature: [{output: ^old$}]
"""
# Shows on kernels before 5.14, and needs one of two disks, its loop and a limit, but nothing else of the topology.
RELEASE = """\
version: 1
summary: an old kernel
kernels: {shows: [debian-5.10], clean: [debian-6.1]}
topology:
  guests:
    g0:
      cpus: 2
      memory: 512M
      disks:
        data: {type: virtio-blk, size: 256M, throttle: {iops-total: 5000}}
        spare: {type: virtio-scsi, size: 256M}
      loops:
        l0: {backing: data/disk.img, size: 32M}
      cgroups:
        a: {memory.max: 64M}
      timeline:
        - {at: 10s, do: throttle data off}
script: |
  test -b "$DEV_L0" && test "$(cat /sys/fs/cgroup/a/memory.max)" = 67108864 || exit 125
  case $(uname -r) in 5.*) echo old ;; esac
signature:
  - {output: ^old$}
"""


@pytest.mark.slow
async def test_the_cover_letters_script_alone_tells_the_kernels_apart(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "data" / "cover-letter.sh"
    expected = r"^oom_kill 0\noom_kill 1\noom_kill 1$"
    out, _, _ = await testbed(
        tmp_path,
        "repro",
        "--script",
        str(script),
        "--expect",
        expected,
        "-k",
        "debian-5.10",
        "--clean",
        "debian-6.1",
        "--json",
    )
    found = json.loads(out)
    assert (found["result"], [one["verdict"] for one in found["kernels"]]) == ("reproduced", ["shows", "absent"])
    # The fewest tries that tell a bug which always shows from one that never does.
    assert [(one["hits"], one["tries"], one["told_apart"]) for one in found["kernels"]] == [(6, 6, None), (0, 6, True)]
    assert found["reason"] == "it shows on debian-5.10 and not on debian-6.1 (not seen in 6 tries, up to 39%)"


@pytest.mark.slow
async def test_a_bug_goes_to_another_machine_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "old.sh").write_text('#!/bin/bash\ncase $(uname -r) in 5.*) echo "old $SEED" ;; esac\n')
    words = (
        "repro",
        "--script",
        "old.sh",
        "--expect",
        "^old [0-9]+$",
        "-k",
        "debian-5.10",
        "--clean",
        "debian-6.1",
        "--seed",
        "41",
        "--json",
    )
    # Two tries of the clean kernel are too few, as the reason and the exit code show.
    out, _, _ = await testbed(tmp_path, *words, "-j", "1", "-n", "2", "--save", "old.yaml", status=3)
    first = json.loads(out)
    assert first["result"] == "not told apart" and [one["verdict"] for one in first["kernels"]] == ["shows", "absent"]
    assert (
        "debian-6.1 (not seen in 2 tries, up to 66%)" in first["reason"] and first["kernels"][1]["told_apart"] is False
    )
    assert first["kernels"][0]["attempts"][0]["seen"] == "old 42"
    await testbed(tmp_path, "validate", "old.yaml")
    await testbed(tmp_path, "bundle", "last", "-o", "a.tar")
    await testbed(tmp_path, "bundle", first["run"], "-o", "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    out, err, _ = await testbed(tmp_path, "repro", "a.tar", "--json", "-j", "1", "-n", "2", status=3)
    again = json.loads(out)
    assert "nothing differs from where the bundle was made" in err
    assert (again["result"], again["seed"], again["kernels"][0]["attempts"][0]["seen"]) == (
        "not told apart",
        41,
        "old 42",
    )
    # With the kernels swapped the signature is invalid; on a kernel without the bug it is not reproduced.
    out, _, _ = await testbed(
        tmp_path, "repro", "old.yaml", "-k", "debian-6.1", "--clean", "debian-5.10", "-n", "1", status=3
    )
    assert "invalid: the signature shows on debian-5.10, which must be clean" in " ".join(out.split())
    await testbed(tmp_path, "repro", "old.yaml", "-k", "debian-6.1", "-n", "1", status=1)


@pytest.mark.slow
async def test_a_kernel_goes_along_in_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "any.sh").write_text("uname -r\n")
    await testbed(tmp_path, "repro", "--script", "any.sh", "--expect", "^6.1", "-k", "debian-6.1", "-j", "1")
    await testbed(tmp_path, "bundle", "last", "--with-kernel", "-o", "a.tar")
    out, err, _ = await testbed(tmp_path, "repro", "a.tar", "--json", "-j", "1")
    assert json.loads(out)["result"] == "reproduced" and "nothing differs" in err


@pytest.mark.slow
async def test_a_bug_is_reduced_to_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(RELEASE)
    out, err, _ = await testbed(tmp_path, "reduce", "big.yaml", "--tries", "2", "--error", "0.25", "--json")
    found = json.loads(out)
    guest: dict[str, Any] = load(tmp_path / "big.reduced.yaml").guest.model_dump(exclude_unset=True)
    assert set(guest["disks"]) == {"data"} and set(guest["loops"]) == {"l0"} and "timeline" not in guest, err
    assert set(guest["cgroups"]["a"]) == {"memory_max"} and guest["cpus"] == 1 and guest["memory"] == 256 << 20
    assert "throttle" not in guest["disks"]["data"] and found["guests"] > 10
    await testbed(tmp_path, "repro", "big.reduced.yaml", "-k", "debian-5.10", "-j", "1")


@pytest.mark.slow
async def test_kernels_are_walked_and_git_is_answered(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    pair = ("--kernels", "debian-5.10,debian-6.1")
    out, _, _ = await testbed(
        tmp_path, "bisect", "old.yaml", *pair, "--good", "debian-6.1", "--bad", "debian-5.10", "--json"
    )
    found = json.loads(out)
    assert (found["good"], found["bad"], found["wrong"]) == ("debian-6.1", "debian-5.10", "")
    out, _, _ = await testbed(
        tmp_path, "bisect", "old.yaml", *pair, "--good", "debian-5.10", "--bad", "debian-6.1", status=2
    )
    assert "the ends are the other way round" in " ".join(out.split())
    await testbed(tmp_path, "bisect", "old.yaml", "--run", "debian-5.10", status=1)
    assert json.loads((await testbed(tmp_path, "runs", "--json"))[0])["runs"][0]["verdict"] == "bad"
    await testbed(tmp_path, "bisect", "old.yaml", "--run", "debian-6.1", status=0)
    await testbed(tmp_path, "bisect", "old.yaml", "--run", "arch/x86/boot/bzImage", status=125)
    (tmp_path / "cannot.yaml").write_text(OLD.replace("case", "exit 125; case"))
    await testbed(tmp_path, "bisect", "cannot.yaml", "--run", "debian-6.1", status=125)
    await testbed(tmp_path, "bisect", "none.yaml", "--run", "debian-6.1", status=255)
