"""Files that boot a guest are not used once they were changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from testbed.errors import HostError
from testbed.guest import boot_files
from testbed.hashing import file_sha256
from testbed.host import paths
from testbed.progress import Silent
from testbed.store import cache, checksums, image
from testbed.store.apt import PrivateApt
from testbed.store.kernels import build_names, kernel_files
from testbed.store.kernels.build_names import NamedBuild
from testbed.store.kernels.table import BuiltKernel, Series
from testbed.store.mirror import Mirror
from testbed.store.template_files import ctime_ns


def test_a_changed_file_is_not_used_whatever_its_times(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_text("kernel")
    checksums.verify(tmp_path, ("bzImage",))
    checksums.verify(tmp_path, ("bzImage",))
    before = (tmp_path / "bzImage").stat()
    (tmp_path / "bzImage").write_text("KERNEL")
    os.utime(tmp_path / "bzImage", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        HostError, match=r"bzImage: expected the file that was made here .*; remove .*, and the next run makes it again"
    ):
        checksums.verify(tmp_path, ("bzImage",))
    (tmp_path / "bzImage").write_text("kernel")
    checksums.verify(tmp_path, ("bzImage",))
    (tmp_path / "bzImage").unlink()
    with pytest.raises(HostError, match="bzImage: cannot be read: No such file"):
        checksums.verify(tmp_path, ("bzImage",))


def test_a_given_hash_is_checked_at_the_first_use_too(tmp_path: Path) -> None:
    (tmp_path / "root.ext4").write_text("image")
    with pytest.raises(HostError, match=r"expected the file that was made here \(SHA-256 ab\)"):
        checksums.verify(tmp_path, ("root.ext4",), {"root.ext4": "ab"})
    (tmp_path / "seals.json").write_text('{"root.ext4": 3}')
    with pytest.raises(HostError, match=r"seals\.json: expected the hashes of its files"):
        checksums.verify(tmp_path, ("root.ext4",))


@pytest.mark.parametrize("file", ["bzImage", "early/ext4.ko", "modules.ext4"])
async def test_a_kernel_that_was_changed_in_the_cache_is_not_used(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "kernels" / "built-1"
    (folder / "early").mkdir(parents=True)
    hashes = {}
    for name in ("bzImage", "early/ext4.ko", "modules.ext4"):
        (folder / name).write_text(name)
        hashes[name] = file_sha256(folder / name)
    meta = {
        "release": "6.1",
        "origin": "x",
        "sha256": "1",
        "early_modules": ["ext4.ko"],
        "has_modules": True,
        "hashes": hashes,
    }
    (folder / cache.META).write_text(json.dumps(meta))
    kernel = BuiltKernel(name="mine")
    build_names.save_name(tmp_path, kernel, NamedBuild(folder=folder, origin="x", series=Series.AFTER))
    # Before the first use, too.
    (folder / file).write_text("another")
    with pytest.raises(HostError, match=f"{file}: expected the file that was made here"):
        await kernel_files.fetch(kernel, tmp_path, Silent())
    (folder / file).write_text(file)
    assert (await kernel_files.fetch(kernel, tmp_path, Silent())).release == "6.1"


@pytest.mark.parametrize("file", ["root.ext4", "busybox"])
async def test_an_image_that_was_changed_in_the_cache_is_not_used(tmp_path: Path, file: str) -> None:
    images = paths.shipped("images")
    folder = image.image_folder("bookworm", images, tmp_path)
    folder.mkdir(parents=True)
    for name in ("root.ext4", "busybox"):
        (folder / name).write_text(name)
    hashes = {name: file_sha256(folder / name) for name in ("root.ext4", "busybox")}
    (folder / cache.META).write_text(json.dumps({"sha256": hashes["root.ext4"], "hashes": hashes}))
    assert (await image.build_image("bookworm", images, tmp_path, Silent())).folder == folder
    (folder / file).write_text("another")
    with pytest.raises(HostError, match=f"{file}: expected the file that was made here"):
        await image.build_image("bookworm", images, tmp_path, Silent())


async def test_an_initramfs_that_was_changed_in_the_cache_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_text("busybox")
    kernel = AsyncMock(sha256="1", release="6.1", early_modules=(), has_modules=False)
    root = AsyncMock(busybox=tmp_path / "busybox")
    made = (await boot_files.make_boot_files(kernel, root, tmp_path, Silent())).initramfs
    assert (await boot_files.make_boot_files(kernel, root, tmp_path, Silent())).initramfs == made
    made.write_text("another")
    with pytest.raises(HostError, match="initramfs: expected the file that was made here"):
        await boot_files.make_boot_files(kernel, root, tmp_path, Silent())


def test_memory_that_a_guest_has_written_to_is_noticed_whatever_its_times(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(4096))
    before, touched_ns = memory.stat(), ctime_ns(memory)
    assert ctime_ns(memory) == touched_ns
    with memory.open("r+b") as file:
        file.write(b"x")
    os.utime(memory, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ctime_ns(memory) != touched_ns


async def test_a_mirror_without_debians_signature_is_refused(tmp_path: Path) -> None:
    suite = tmp_path / "mirror" / "dists" / "bookworm"
    suite.mkdir(parents=True)
    (suite / "Release").write_text(
        "Origin: Debian\nSuite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64\n"
    )
    apt = PrivateApt(tmp_path / "apt", Mirror(main=f"file:{tmp_path}/mirror", security="file:/none"), ("bookworm",))
    with (
        Silent().task("index") as task,
        pytest.raises(HostError, match="does not serve bookworm with a good signature"),
    ):
        await apt.update(task)
