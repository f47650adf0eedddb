"""Topologies that need more than the host has."""

import errno
import os
from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.topology import load
from tests.support.values import host_limits


def test_a_guest_larger_than_the_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nguests:\n  g0: {memory: 8G}\n")
    assert load(tmp_path / "a.yaml", limits=host_limits(16 << 30)).guests["g0"].memory == 8 << 30
    for room in (4 << 30, 8 << 30):
        with pytest.raises(
            TopologyError,
            match=r"a\.yaml:3:16: guests\.g0\.memory: expected less than this host's memory of [48]G, got 8G",
        ):
            load(tmp_path / "a.yaml", limits=host_limits(room))
    (tmp_path / "b.yaml").write_text("version: 1\nguests:\n  g0: {memory: 3G}\n  g1: {memory: 2G}\n")
    with pytest.raises(
        TopologyError, match=r"b\.yaml:4:16: guests\.g1\.memory: .* memory of 4G for all guests, got 5G up to this one"
    ):
        load(tmp_path / "b.yaml", limits=host_limits(4 << 30))
    (tmp_path / "c.yaml").write_text(
        "version: 1\nguests:\n  g0: {memory: 2G}\n  g1: {memory: 2G}\n  g2: {memory: 1G}\n"
    )
    with pytest.raises(TopologyError) as failed:
        load(tmp_path / "c.yaml", limits=host_limits(4 << 30))
    assert str(failed.value).count("for all guests") == 1, "the first that is too much is named, and no other"
    assert "guests.g1.memory" in str(failed.value), "as much as there is, is too much"


def test_a_disk_larger_than_any_file_of_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8,000,000T on ext4, whose files have 16T."""

    def refuses(descriptor: int, size_bytes: int) -> None:
        if size_bytes > 16 << 40:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        truncate(descriptor, size_bytes)

    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", refuses)
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "not" / "there"))
    (tmp_path / "a.yaml").write_text(
        "version: 1\nguests:\n  g0:\n    disks:\n      a: {type: nvme, size: 8000000T, namespaces: {b: {size: 17T}}}\n"
        "      c: {type: nvme, size: 2T}\n      d: {type: nvme, size: 8000000T, format: null-co}\n"
    )
    with pytest.raises(TopologyError) as found:
        load(tmp_path / "a.yaml", limits=host_limits(8 << 30))
    said = "expected a size that a file of this machine can have, got"
    assert [(one.path, one.message) for one in found.value.problems] == [
        ("guests.g0.disks.a.size", f"{said} 8000000T: File too large"),
        ("guests.g0.disks.a.namespaces.b.size", f"{said} 17T: File too large"),
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.yaml"]
