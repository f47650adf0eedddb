"""Kernels in .deb packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.store.kernels import debs
from tests.support.kernel_images import (
    RELEASE,
    config,
    deb,
    fetched,
    image,
    module,
)

pytestmark = pytest.mark.usefixtures("no_disk")


def test_packages_are_one_kernel_with_its_configuration_and_modules(tmp_path: Path) -> None:
    one = deb(
        tmp_path,
        "image.deb",
        {f"boot/vmlinuz-{RELEASE}": image(None), f"boot/config-{RELEASE}": config(EXT4_FS="m").encode()},
    )
    two = deb(tmp_path, "modules.deb", {f"lib/modules/{RELEASE}/kernel/ext4.ko": module()})
    with pytest.raises(
        UsageError,
        match=(
            r"CONFIG_EXT4_FS=m without ext4\.ko: .*\n"
            r"  its modules go with it as BZIMAGE:MODULES_FOLDER, or as another"
        ),
    ):
        fetched(one, tmp_path)
    assert fetched(f"{one}:{two}", tmp_path).early_modules == ("ext4.ko",)
    other = deb(tmp_path, "other.deb", {"lib/modules/6.8.0/kernel/ext4.ko": module("6.8.0 SMP ")})
    with pytest.raises(
        UsageError, match=r"expected modules of Linux 6\.9\.0-test in its packages, found those of 6\.8\.0"
    ):
        fetched(f"{one}:{other}", tmp_path)


def test_links_of_a_package_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(image(config()))
    hostile = deb(
        tmp_path,
        "x.deb",
        {
            f"boot/vmlinuz-{RELEASE}": str(tmp_path / "secret"),
            "lib/modules/x": "/etc",
            "usr/share/doc/x": b"x",
            "boot/a": b"a",
        },
    )
    with pytest.raises(UsageError, match=r"expected one boot/vmlinuz-\* in its packages, found 0"):
        fetched(hostile, tmp_path)
    debs.unpack(hostile, tmp_path / "tree")
    assert [str(path.relative_to(tmp_path / "tree")) for path in sorted((tmp_path / "tree").rglob("*"))] == [
        "boot",
        "boot/a",
    ]


def test_a_package_that_is_none_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none.deb").write_bytes(b"no archive")
    with pytest.raises(
        UsageError, match=r"none\.deb: expected a Debian package with files of a kernel: .*cannot be unpacked"
    ):
        fetched(tmp_path / "none.deb", tmp_path)
    monkeypatch.setattr(debs, "MOST_BYTES", 1 << 20)
    large = deb(tmp_path, "large.deb", {"boot/large": bytes(2 << 20)})
    with pytest.raises(UsageError, match=r"large\.deb: .*expected at most 1M when it is unpacked"):
        debs.unpack(large, tmp_path / "tree")
    with pytest.raises(UsageError, match=r"large\.deb: expected a file of a kernel, got one of 2"):
        fetched(large, tmp_path)
