"""Times reads by `qemu-img bench` on this host, without a guest: from the export that delays requests, from nbdkit with
its file plugin and delay filter (whose delay is fixed while it runs), and from the file itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.hardware.latency import Latency
from testbed.host import paths, process, tempdirs
from testbed.host.facts import Host
from testbed.qemu import probe
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server.settings import Settings
from testbed.units import MIB

DELAYS_US = (0, 1000, 5000)
_DEPTHS = (1, 16)
_TOOK = re.compile(r"Run completed in ([\d.]+) seconds")

Row = dict[str, Any]
# The image arguments of `qemu-img bench`, and the open files that they name.
Target = tuple[tuple[str, ...], tuple[int, ...]]


async def measure(*, requests: int) -> list[Row]:
    """Return a row for each server, delay and depth; nbdkit if it is installed."""
    rows = []
    with tempdirs.temporary() as folder:
        disk = folder / "disk"
        disk.write_bytes(bytes(64 * MIB))
        servers: dict[str, Any] = {"the file itself": _plain, "testbed.qemu.nbd_server": _ours}
        if shutil.which("nbdkit"):
            servers["nbdkit"] = _nbdkit
        for delay_us in DELAYS_US:
            for server, serve in servers.items():
                if server == "the file itself" and delay_us:
                    continue
                for depth in _DEPTHS:
                    async with serve(
                        disk, folder / f"{server.replace(' ', '-')}-{delay_us}-{depth}", delay_us
                    ) as target:
                        rows.append(
                            {
                                "server": server,
                                "delay ms": delay_us / 1000,
                                **await _read(target, depth, requests, delay_us),
                            }
                        )
    return rows


async def _read(target: Target, depth: int, requests: int, delay_us: int) -> Row:
    count = requests if not delay_us else max(100, min(requests, 3_000_000 * depth // delay_us))
    named, handed = target
    words = ["qemu-img", "bench", "-c", str(count), "-d", str(depth), "-s", "4096", "-S", "4096", *named]
    done = await asyncio.to_thread(
        subprocess.run, words, capture_output=True, text=True, check=True, timeout=300, pass_fds=handed
    )
    found = _TOOK.search(done.stdout)
    assert found is not None, done.stdout
    took = float(found[1])
    return {"at once": depth, "requests/s": round(count / took), "ms a request": round(took / count * depth * 1000, 3)}


@contextlib.asynccontextmanager
async def _plain(disk: Path, socket: Path, delay_us: int) -> AsyncIterator[Target]:
    del socket, delay_us
    yield ("-f", "raw", str(disk)), ()


@contextlib.asynccontextmanager
async def _ours(disk: Path, socket: Path, delay_us: int) -> AsyncIterator[Target]:
    log = socket.with_suffix(".log")
    export = await Export.start(
        "bench", Settings(block_bytes=512), file=disk, log=log, host=await _host(), on_end=_fail
    )
    try:
        await export.set_latency(Latency(read_us=delay_us))
        handed = export.client.fileno()
        yield ("--image-opts", f"driver=raw,file.driver=nbd,file.server.type=fd,file.server.str={handed}"), (handed,)
    finally:
        await export.close()


async def _host() -> Host:
    return await probe.probe(paths.folders().cache, None)


def _fail(why: str) -> None:
    raise HostError(why)


@contextlib.asynccontextmanager
async def _nbdkit(disk: Path, socket: Path, delay_us: int) -> AsyncIterator[Target]:
    words = [
        "nbdkit",
        "--foreground",
        "--unix",
        str(socket),
        *(["--filter=delay"] if delay_us else []),
        "file",
        str(disk),
    ]
    log = socket.with_suffix(".log")
    child = await process.start([*words, *([f"rdelay={delay_us // 1000}ms"] if delay_us else [])], output=log)
    try:
        while not socket.exists():
            if child.returncode is not None:
                raise HostError(
                    f"nbdkit: expected it to listen on {socket}, but it ended: "
                    f"{log.read_text(encoding='utf-8').strip()}"
                )
            await asyncio.sleep(0.01)
        yield ("-f", "raw", f"nbd+unix:///?socket={socket}"), ()
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()
