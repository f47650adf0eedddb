"""The modules of a user's kernel: which are taken, and which are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.store.kernels import module_tree
from tests.support.kernel_images import (
    RELEASE,
    config,
    fetched,
    image,
    module,
    modules,
)

pytestmark = pytest.mark.usefixtures("no_disk")


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_modules_of_the_kernel_are_taken_however_they_are_packed(given: Path, tmp_path: Path, suffix: str) -> None:
    (given / "bzImage").write_bytes(image(config(VIRTIO_BLK="m", EXT4_FS="m")))
    folder = modules(given / "m", "virtio_blk", "ext4", "other", suffix=suffix)
    (folder / "build").symlink_to("/usr/src")
    (folder / "kernel/passwd.ko").symlink_to("/etc/passwd")
    found = fetched(f"{given}/bzImage:{folder}", tmp_path)
    assert found.early_modules == ("virtio_blk.ko", "ext4.ko")
    assert (found.folder / "early/ext4.ko").read_bytes() == module()
    on_disk = (found.folder / "modules.ext4").read_text()
    assert (
        f"{RELEASE}/kernel/other.ko{'' if suffix == '.gz' else suffix}" in on_disk.splitlines()
        and "passwd" not in on_disk
    )


def test_what_is_no_module_or_unpacks_to_too_much_is_refused(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = modules(given / "m", "loop")
    (folder / "kernel/loop.ko").write_bytes(b"\x7fELF of something else")
    with pytest.raises(UsageError, match=r"loop\.ko: expected a kernel module, which says what kernel it is for"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
    monkeypatch.setattr(module_tree, "MOST_BYTES", 1 << 20)
    (folder / "kernel/loop.ko").rename(folder / "kernel/loop.ko.gz")
    (folder / "kernel/loop.ko.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(UsageError, match=r"loop\.ko\.gz: expected at most 1M when it is unpacked"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)


def test_a_folder_of_everything_is_not_walked_to_its_end(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_tree, "_MOST_FILES", 3)
    folder = modules(given / "m", "a", "b", "c", "d")
    with pytest.raises(UsageError, match=r"m: expected the modules of one kernel .*, found more than 3 files"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
