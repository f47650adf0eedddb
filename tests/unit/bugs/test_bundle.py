"""Bundles: packing a run, reading it back, and what differs on another machine."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from testbed.bugs import bundle as bundles
from testbed.bugs import bundle_rules
from testbed.errors import UsageError
from tests.support.bundles import RESULTS, rewritten


def test_the_same_run_is_the_same_bytes_and_is_read_back(run: Path, tmp_path: Path) -> None:
    bundles.pack(run, tmp_path / "a.tar", {})
    for path in run.rglob("*"):
        os.utime(path, (1, 1))
    (run / "bug.yaml").chmod(0o600)
    bundles.pack(run, tmp_path / "b.tar", {})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    found = bundles.read(tmp_path / "a.tar")
    assert found.manifest.seed == 5 and found.plain["summary"] == "it breaks"
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == ["manifest.json", "bug.yaml", "guests/debian-6.1-1/console.log", "repro.json"]
        assert {(one.mtime, one.uid, one.uname, one.mode) for one in archive} == {(0, 0, "", 0o644)}
    assert (
        bundles.is_bundle(tmp_path / "a.tar")
        and not bundles.is_bundle(run / "bug.yaml")
        and not bundles.is_bundle(tmp_path / "none")
    )
    with pytest.raises(Exception, match="cannot be written: File exists"):
        bundles.pack(run, tmp_path / "a.tar", {})


def test_a_kernel_goes_along_and_comes_back(run: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    (kernel / "early").mkdir(parents=True)
    (kernel / "bzImage").write_text("kernel")
    (kernel / "early" / "ext4.ko").write_text("module")
    (kernel / "modules.ext4").write_text("disk")
    meta = {"release": "6.1.0-1", "origin": "x", "sha256": "22", "early_modules": ["ext4.ko"], "has_modules": True}
    (kernel / "meta.json").write_text(json.dumps(meta))
    bundles.pack(run, tmp_path / "a.tar", {"debian-6.1": kernel})
    bundle = bundles.read(tmp_path / "a.tar")
    found = bundles.kernels(bundle, tmp_path / "new")["debian-6.1"]
    assert (found.bzimage.read_text(), (found.folder / "early" / "ext4.ko").read_text()) == ("kernel", "module")
    # Whatever it says that it is: what is made of it must not be taken for another kernel's.
    assert found.sha256 not in ("22", "")


@pytest.mark.parametrize("module", ["/etc/hostname", "../../../bug.yaml", "gone.ko", "../bzImage", 7])
def test_a_kernel_that_names_files_which_are_not_its_own_is_refused(run: Path, tmp_path: Path, module: object) -> None:
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    (kernel / "bzImage").write_text("kernel")
    meta = {"release": "6.1.0-1", "origin": "x", "sha256": "22", "early_modules": [module], "has_modules": False}
    (kernel / "meta.json").write_text(json.dumps(meta))
    bundles.pack(run, tmp_path / "a.tar", {"debian-6.1": kernel})
    with pytest.raises(UsageError, match="expected names of modules that came along, got"):
        bundles.kernels(bundles.read(tmp_path / "a.tar"), tmp_path / "new")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ([], "expected a meta.json as kernels in the cache have it"),
        ({}, "expected a meta.json as kernels in the cache have it"),
        ({"release": "\x1b[2J"}, "expected a bzImage and its release, got"),
        ({"release": "6" * 200}, "expected a bzImage and its release, got"),
        ({"release": "6.1\n- all is well"}, "expected a bzImage and its release, got"),
        ({"release": "6.1.0-1", "origin": "x\x1b[2J\ny" * 200}, None),
    ],
)
def test_what_a_bundles_kernel_says_of_itself_is_a_releases_name_or_refused(
    run: Path, tmp_path: Path, meta: Any, message: str | None
) -> None:
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    (kernel / "bzImage").write_text("kernel")
    if meta:
        meta = {"origin": "x", "sha256": "22", "early_modules": [], "has_modules": False, **meta}
    (kernel / "meta.json").write_text(json.dumps(meta))
    bundles.pack(run, tmp_path / "a.tar", {"debian-6.1": kernel})
    bundle = bundles.read(tmp_path / "a.tar")
    if message is None:
        origin = bundles.kernels(bundle, tmp_path / "new")["debian-6.1"].origin
        assert origin.startswith("x yx yx") and len(origin) <= 500
        return
    with pytest.raises(UsageError, match=message):
        bundles.kernels(bundle, tmp_path / "new")


@pytest.mark.parametrize("what", ["bug.yaml", "repro.json"])
def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path, what: str) -> None:
    (run / what).unlink()
    with pytest.raises(UsageError, match="expected the folder of a run"):
        bundles.pack(run, tmp_path / "a.tar", {})


def test_what_differs_is_said(run: Path) -> None:
    plain = bundle_rules.manifest(RESULTS, {}, ())
    there = bundle_rules.manifest_of(plain)
    assert list(bundle_rules.manifest_differences(there, there)) == []
    here = json.loads(json.dumps(plain))
    here["host"]["qemu"] = "9.0"
    here["kernels"][0] |= {"sha256": "33", "release": "6.1.0-2"}
    said = list(bundle_rules.manifest_differences(there, bundle_rules.manifest_of(here)))
    assert said == ["QEMU: 7.2 there, 9.0 here", "kernel debian-6.1: 6.1.0-1 there, 6.1.0-2 here"]


def test_a_kernel_that_is_exchanged_after_the_look_is_refused(run: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    (kernel / "bzImage").write_text("kernel")
    (kernel / "meta.json").write_text(
        json.dumps({"release": "6.1.0-1", "origin": "x", "sha256": "22", "early_modules": [], "has_modules": False})
    )
    bundles.pack(run, tmp_path / "a.tar", {"debian-6.1": kernel})
    bundle = bundles.read(tmp_path / "a.tar")
    rewritten(
        tmp_path / "a.tar", tmp_path / "a.tar", last=lambda name, data: b"KERNEL" if name.endswith("bzImage") else data
    )
    with pytest.raises(UsageError, match="bzImage': it was changed since it was looked at"):
        bundles.kernels(bundle, tmp_path / "new")
