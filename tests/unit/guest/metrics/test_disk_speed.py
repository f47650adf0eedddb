"""What a machine's disks reach, against what a topology asks of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from testbed.guest.metrics import disk_speed
from testbed.guest.metrics.disk_speed import DiskSpeed
from testbed.host.facts import Host
from testbed.topology import GuestModel

SLOW = {"nvme": DiskSpeed(iops=5000, bytes_per_s=300 << 20, read_us=200)}


def model(**disk: object) -> GuestModel:
    return GuestModel.model_validate({"disks": {"data": {"size": "1G", **disk}}})


def test_a_profile_that_is_too_fast_for_the_machine_gets_a_warning_with_a_scale_that_fits() -> None:
    (requests, amount) = disk_speed.too_fast_profiles(model(type="nvme", profile="nvme-consumer"), SLOW)
    assert "disk data: expected" in requests and "this machine makes 5000 at most (testbed bench disks)" in requests
    assert "makes 300M at most" in amount
    scale = float(requests.partition("scale: ")[2].split()[0])
    assert not any(
        "requests" in said
        for said in disk_speed.too_fast_profiles(model(type="nvme", profile="nvme-consumer", scale=scale * 0.9), SLOW)
    )


def test_an_unmeasured_kind_or_a_disk_without_a_profile_gets_no_warning() -> None:
    assert list(disk_speed.too_fast_profiles(model(type="virtio-blk", profile="nvme-consumer"), SLOW)) == []
    assert list(disk_speed.too_fast_profiles(model(type="nvme", throttle={"iops-total": 10**9}), SLOW)) == []
    assert list(disk_speed.too_fast_profiles(model(type="nvme", profile="hdd-7200"), SLOW)) == []


def test_disk_speeds_are_cached_per_machine_and_qemu(tmp_path: Path) -> None:
    host, other = (
        cast(Host, SimpleNamespace(qemu=SimpleNamespace(identity=identity), accelerator="tcg", cores=2))
        for identity in ("a", "b")
    )
    assert disk_speed.load(tmp_path, host) == {}
    disk_speed.save(SLOW, tmp_path, host)
    assert disk_speed.load(tmp_path, host) == SLOW and disk_speed.load(tmp_path, other) == {}
    for file in (tmp_path / "reach").iterdir():
        file.write_text("{")
    assert disk_speed.load(tmp_path, host) == {}
