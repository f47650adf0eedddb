"""Kernels that a user gives as files: one that cannot boot is refused beforehand, one that can boots unchanged."""

from __future__ import annotations

import gzip
import lzma
import shutil
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.guest.factory import GuestFactory
from testbed.host import process
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel

pytestmark = pytest.mark.guest


async def modules_of(kernel: KernelFiles, folder: Path) -> Path:
    """Return the modules of a kernel of the table, as `make modules_install` would have left them."""
    assert kernel.modules_disk is not None
    folder.mkdir(parents=True)
    await process.run(["debugfs", "-R", f"rdump /{kernel.release} {folder}", kernel.modules_disk], timeout_s=120)
    return folder / kernel.release


@pytest.mark.slow
async def test_a_kernel_boots_with_its_own_modules_and_is_refused_with_anothers(
    factory: GuestFactory, kernel: KernelFiles, model: GuestModel, logs: Path, tmp_path: Path
) -> None:
    own, other = await factory.kernel("debian-6.1"), await factory.kernel("debian-6.12")
    folder = tmp_path / "a:b"
    modules = await modules_of(own, folder / "own")
    given = folder / "bzImage-1234.xz"
    given.write_bytes(lzma.compress(kernel.bzimage.read_bytes(), preset=0))
    (folder / "bzImage").write_bytes(kernel.bzimage.read_bytes())
    assert kernel.config is not None
    shutil.copyfile(kernel.config, folder / f"config-{kernel.release}")

    others = await modules_of(other, folder / "other")
    with pytest.raises(
        UsageError, match=r"to another kernel:\n    expected: 6\.1\.0-.* modversions\n    got of .*: 6\.12\."
    ):
        await factory.kernel(f"{given}:{others}")
    with pytest.raises(UsageError, match=r"CONFIG_VIRTIO_PCI=m without virtio_pci\.ko: its root is ext4 on virtio-blk"):
        await factory.kernel(str(folder / "bzImage"))

    # Compressed in a way that no program of Debian's reads.
    for path in (*modules.rglob("virtio*.ko"), *modules.rglob("loop.ko")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
        path.unlink()
    found = await factory.kernel(f"{given}:{modules}")
    # The bytes are the same, so no other template is made.
    assert (found.sha256, found.early_modules) == (own.sha256, own.early_modules)
    async with factory.guest("g0", model, found, logs) as guest:
        said = await guest.script("modprobe loop && uname -r")
    assert said.stdout.strip() == own.release
