"""Times one command of virtme-ng beside our clones, if `vng` is installed (`pip install virtme-ng`).

It needs a Debian kernel with 9p, which cloud kernels lack: the suite's ordinary kernel is fetched once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

from testbed.host import process
from testbed.progress import Progress
from testbed.store import cache
from testbed.store.apt import PrivateApt
from testbed.store.kernels import kernel_files
from testbed.store.mirror import find_mirror

_SUITES, _PACKAGE = ("bookworm", "bookworm-security"), "linux-image-amd64"
_LIMIT_S = 120


async def measure(root: Path, progress: Progress) -> float | str:
    """Return the seconds of `uname -r` in a virtme-ng guest without KVM, or why there are none."""
    vng = shutil.which("vng")
    if vng is None:
        return "not installed"
    folder = root / "bench" / "virtme-kernel"

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task("kernel with 9p for virtme-ng") as task:
            apt = PrivateApt(unfinished / "apt", await find_mirror(), _SUITES)
            await apt.update(task)
            (unfinished / "debs").mkdir()
            for deb in await apt.download(await kernel_files.kernel_packages(apt, _PACKAGE), unfinished / "debs", task):
                await process.run(["dpkg-deb", "-x", deb, unfinished / "tree"], timeout_s=300)
            (image,) = (unfinished / "tree/boot").glob("vmlinuz-*")
            release = image.name.removeprefix("vmlinuz-")
            await process.run(["depmod", "-b", unfinished / "tree", release], timeout_s=120)
            shutil.rmtree(unfinished / "apt")
            shutil.rmtree(unfinished / "debs")
            return {"release": release}

    await cache.make_once(folder, make, progress, "kernel with 9p for virtme-ng")
    release = cache.read_meta(folder)["release"]
    started = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        vng,
        "--verbose",
        "--run",
        str(folder / f"tree/boot/vmlinuz-{release}"),
        "--disable-kvm",
        "--",
        "uname -r",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # --verbose: without a driver for virtio consoles in its initramfs the output comes over the serial console. vng
        # starts virtme-run from its own folder.
        env={**os.environ, "PATH": f"{Path(vng).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    try:
        async with asyncio.timeout(_LIMIT_S):
            said, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        return f"no answer in {_LIMIT_S} s"
    if release.encode() not in said:
        return f"failed: {said.decode(errors='replace').strip()[-200:]}"
    return round(time.monotonic() - started, 3)
