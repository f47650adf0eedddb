"""Kernels built from Debian's source, and guests that run on them."""

import contextlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import BuildError, GuestLost
from testbed.guest.channels.kernel_log import Kind
from testbed.guest.factory import GuestFactory
from testbed.host import paths
from testbed.report.sensitivity import UNCHANGED
from testbed.scenarios import runner
from testbed.scenarios.catalogue import cases
from testbed.scenarios.verdict import Evidence, Gap, Verdict, judge_pair
from testbed.store import cache
from testbed.store.kernels.ablations import ABLATIONS
from testbed.store.kernels.builder import Builder, BuildSpec
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import Series, shipped_table
from testbed.topology import GuestModel
from tests.guest.bugs.test_museum import testbed
from tests.guest.conftest import Notes

DATA = Path(__file__).parents[2] / "data"

pytestmark = pytest.mark.kernels

BASE = BuildSpec(source="debian-6.1")
DEBUG = BuildSpec(source="debian-6.1", flavours=("lockdep", "faults", "iolatency", "kasan", "leaks"))
NO_CHARGE = BuildSpec(source="debian-6.1", ablations=("no-io-charge",))
TWICE = BuildSpec(source="debian-6.1", ablations=("io-charged-twice",))


@pytest.fixture
def builder(notes: Notes) -> Builder:
    images = paths.shipped("images")
    return Builder(table=shipped_table(), root=paths.folders().cache, shipped=images, progress=notes)


async def seen_and_said(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, name: str, folder: Path
) -> tuple[Gap | None, set[Kind]]:
    """Return what a scenario finds on a kernel, None if the guest is lost; and the kinds of the kernel's warnings."""
    case, found = cases()[name], None
    async with factory.guest("g0", case.model(model), kernel, folder) as guest:
        assert not await runner.missing_needs(guest, case.scenario.needs)
        with contextlib.suppress(GuestLost):
            found = await case.scenario.steps(guest, case.point)
        kinds = {finding.kind for finding in guest.console.findings}
    return found.claim if isinstance(found, Evidence) else None, kinds


async def measured(factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path) -> Evidence:
    """Return what the scenario `read` measures on a kernel."""
    case = cases()["read/virtio-blk/ext4"]
    async with factory.guest("g0", case.model(model), kernel, logs) as guest:
        assert (await guest.run("uname", "-r")).stdout.strip() == kernel.release
        await guest.run("modprobe", "bfq")  # also succeeds if it is built in
        found = await case.scenario.steps(guest, case.point)
        assert not guest.console.findings
    assert isinstance(found, Evidence)
    return found


async def test_a_pair_that_differs_in_one_line_differs_in_what_is_charged(
    builder: Builder, factory: GuestFactory, model: GuestModel, logs: Path
) -> None:
    base, ablated, twice = [await builder.build(spec) for spec in (BASE, NO_CHARGE, TWICE)]
    assert (base.series, ablated.series, base.early_modules) == (Series.AFTER, Series.UNKNOWN, ())
    whole, half, double = [
        await measured(factory, model, await factory.kernel(one.name), logs / one.name)
        for one in (base, ablated, twice)
    ]
    assert whole.claim is Gap.CLOSED and all(control.holds for control in (*whole.controls, *half.controls))
    # The page cache is still charged.
    assert half.claim is Gap.PARTIAL and half.reason.endswith(
        "; charged: the page cache; not charged: the disk's bytes"
    )
    assert double.claim is Gap.EXCESS and double.reason.endswith(
        "; charged more than there was: the disk's bytes 2.0 times"
    )
    # The base of the comparisons is a kernel before the series.
    before = Evidence(claim=Gap.OPEN, reason="", measures=(), controls=())
    assert [judge_pair(before, patched).verdict for patched in (whole, half, double)] == [
        Verdict.PASS,
        Verdict.FAIL,
        Verdict.FAIL,
    ]


async def test_a_patch_that_has_make_and_kconfig_run_what_it_likes_reaches_nothing_of_the_caller(
    builder: Builder, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the caller's own")
    attack = f"cat {tmp_path}/secret; echo planted >{tmp_path}/planted; echo planted >planted; echo planted >/planted"
    (tmp_path / "attack.patch").write_text(
        f"""\
--- a/Makefile
+++ b/Makefile
@@ -1,3 +1,4 @@
 # SPDX-License-Identifier: GPL-2.0
+ATTACK := $(shell ({attack}) >/dev/null 2>&1)
 VERSION = 6
 PATCHLEVEL = 1
--- a/Kconfig
+++ b/Kconfig
@@ -6,3 +6,4 @@
 mainmenu "Linux/$(ARCH) $(KERNELVERSION) Kernel Configuration"
\x20
+$(error-if,y,error: ran as $(shell,id -u; {attack} 2>/dev/null; sort -u /proc/net/dev | wc -l))
 source "scripts/Kconfig.include"
"""
    )
    with pytest.raises(BuildError) as refused:
        await builder.build(BuildSpec(source="debian-6.1", series=(tmp_path / "attack.patch",)))
    # Its network has only lo, below the two header lines.
    assert re.search(r"error: ran as \d+ 3\n", str(refused.value)) and "the caller's own" not in str(refused.value)
    assert os.geteuid() != 0 or "ran as 0" not in str(refused.value)
    assert not (tmp_path / "planted").exists() and not Path("/planted").exists()
    assert not list(paths.folders().cache.glob("sources/debian-6.1-*/tree/planted"))


async def test_the_same_key_gives_the_same_bytes_whatever_was_built_between(builder: Builder) -> None:
    base = await builder.build(BASE)
    bytes_before = base.bzimage.read_bytes()
    other = await builder.build(BuildSpec(source="debian-6.1", ablations=("idle-at-once",)))
    shutil.rmtree(base.folder)
    again = await builder.build(BASE)
    assert again.folder == base.folder and again.bzimage.read_bytes() == bytes_before
    assert other.bzimage.read_bytes() != bytes_before
    # Far fewer than all files: only those that differ are compiled.
    assert cache.read_meta(again.folder)["compiled"] < 100


@pytest.mark.parametrize("source", ["debian-6.1", "debian-6.12"])
@pytest.mark.parametrize("name", ABLATIONS)
async def test_each_ablation_has_its_place_in_debians_sources(builder: Builder, source: str, name: str) -> None:
    await builder.check(BuildSpec(source=source, ablations=(name,)))


async def test_a_pair_of_one_tree_is_built_and_compared(tmp_path: Path) -> None:
    out, _, _ = await testbed(
        tmp_path,
        "compare",
        "io-max",
        "--tree",
        "debian-6.1",
        "--revert",
        str(DATA / "charge-buffered.mbx"),
        "--quick",
        "--json",
    )
    run = json.loads(out)
    base, patched = (run["kernels"][side] for side in ("base", "patched"))
    assert run["verdict"] == "PASS" and base["release"] != patched["release"]
    assert (
        "without 1 patch (loop: charge disk I/O that is not direct, too)" in base["origin"]
        and "patch" not in patched["origin"]
    )


@pytest.mark.parametrize(
    ("ablation", "scenario", "kinds"),
    [
        ("destroyed-under-lock", "lock-order", {Kind.ATOMIC_SLEEP, Kind.LOCKDEP}),
        ("idle-twice", "lock-order", {Kind.LIST_CORRUPTION}),
        ("freed-in-tree", "destroy-race", {Kind.KASAN}),
        ("timer-outlives", "destroy-race", {Kind.WARNING}),  # ODEBUG: free active object
        ("worker-leaked", "leak", {Kind.LEAK}),
    ],
)
async def test_what_a_debug_kernel_says_of_a_loss_is_heard_and_it_says_nothing_without(
    builder: Builder,
    factory: GuestFactory,
    model: GuestModel,
    logs: Path,
    ablation: str,
    scenario: str,
    kinds: set[Kind],
) -> None:
    name = f"{scenario}/virtio-blk/ext4"
    kernels = [await builder.build(spec) for spec in (DEBUG, replace(DEBUG, ablations=(ablation,)))]
    whole, without = [
        await seen_and_said(factory, model, await factory.kernel(one.name), name, logs / one.name) for one in kernels
    ]
    assert whole == (Gap.CLOSED, set())
    assert without[0] is not Gap.CLOSED and without[1] >= kinds


async def test_each_half_of_what_is_charged_is_missed_by_the_scenarios_that_look_for_it(tmp_path: Path) -> None:
    ablations = [word for name in (UNCHANGED, "no-io-charge", "no-memory-charge") for word in ("--ablation", name)]
    out, _, _ = await testbed(tmp_path, "sensitivity", "read", "oom-tmpfs", "io-max", *ablations, "--json", "--quiet")
    found = json.loads(out)["cases"]
    assert found == {
        "oom-tmpfs": {"no-io-charge": "-", "no-memory-charge": "noticed"},
        "read/virtio-blk/ext4": {"no-io-charge": "in part", "no-memory-charge": "in part"},
        "io-max/virtio-blk/ext4": {"no-io-charge": "noticed", "no-memory-charge": "-"},
    }
