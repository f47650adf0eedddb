"""Makes the initramfs that a guest boots from, and collects the files that QEMU needs for the boot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from testbed.hashing import content_key, file_sha256
from testbed.host import paths
from testbed.progress import Progress
from testbed.qemu.command_line import BootFiles
from testbed.store import cache, checksums, initramfs
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles


def _init() -> bytes:
    return (paths.shipped("images") / "guest" / "initramfs-init").read_bytes()


def initramfs_folder(kernel: KernelFiles, root: Image, cache_folder: Path) -> Path:
    """Return the folder of the cache that has, or gets, the initramfs of a kernel and an image."""
    key = content_key(kernel.sha256, file_sha256(root.busybox), _init().hex())
    return cache_folder / "initramfs" / key


async def make_boot_files(kernel: KernelFiles, root: Image, cache_folder: Path, progress: Progress) -> BootFiles:
    """Return the files that a kernel boots from on an image; make the initramfs if it is not in the cache.

    :raise HostError: the initramfs in the cache was changed, or cannot be made.
    """
    folder = initramfs_folder(kernel, root, cache_folder)

    async def make(unfinished: Path) -> dict[str, Any]:
        archive = initramfs.build(
            _init(),
            root.busybox.read_bytes(),
            {name: (kernel.folder / "early" / name).read_bytes() for name in kernel.early_modules},
            with_modules_disk=kernel.has_modules,
        )
        (unfinished / "initramfs").write_bytes(archive)
        return {"release": kernel.release, "hashes": {"initramfs": file_sha256(unfinished / "initramfs")}}

    await cache.make_once(folder, make, progress, "initramfs")
    await asyncio.to_thread(checksums.verify, folder, ("initramfs",), cache.read_meta(folder).get("hashes"))
    return BootFiles(
        bzimage=kernel.bzimage, initramfs=folder / "initramfs", root=root.root, modules_disk=kernel.modules_disk
    )
