"""The export that delays a disk's requests, beside nbdkit with its file plugin and delay filter (which cannot change while it runs), and
beside the file itself: read by `qemu-img bench` on this host, without a guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from testbed import held, process
from testbed.errors import HostError
from testbed.exports import Export
from testbed.hardware.latency import Latency
from testbed.units import MIB

DELAYS_US = (0, 1000, 5000)
_DEPTHS = (1, 16)
_TOOK = re.compile(r"Run completed in ([\d.]+) seconds")

Row = dict[str, Any]


async def measure(*, requests: int) -> list[Row]:
    """A row for each server, delay and depth; nbdkit where it is installed."""
    rows = []
    with held.temporary() as folder:
        disk = folder / "disk"
        disk.write_bytes(bytes(64 * MIB))
        servers: dict[str, Any] = {"the file itself": _plain, "testbed.export": _ours}
        if shutil.which("nbdkit"):
            servers["nbdkit"] = _nbdkit
        for delay_us in DELAYS_US:
            for server, serve in servers.items():
                if server == "the file itself" and delay_us:
                    continue
                async with serve(disk, folder / f"{server.replace(' ', '-')}-{delay_us}", delay_us) as target:
                    for depth in _DEPTHS:
                        rows.append({"server": server, "delay ms": delay_us / 1000, **await _read(target, depth, requests, delay_us)})
    return rows


async def _read(target: str, depth: int, requests: int, delay_us: int) -> Row:
    count = requests if not delay_us else max(100, min(requests, 3_000_000 * depth // delay_us))
    done = await process.run(
        ["qemu-img", "bench", "-f", "raw", "-c", str(count), "-d", str(depth), "-s", "4096", "-S", "4096", target], timeout_s=300
    )
    found = _TOOK.search(done.stdout)
    assert found is not None, done.stdout
    took = float(found[1])
    return {"at once": depth, "requests/s": round(count / took), "ms a request": round(took / count * depth * 1000, 3)}


@contextlib.asynccontextmanager
async def _plain(disk: Path, socket: Path, delay_us: int) -> AsyncIterator[str]:
    del socket, delay_us
    yield str(disk)


@contextlib.asynccontextmanager
async def _ours(disk: Path, socket: Path, delay_us: int) -> AsyncIterator[str]:
    export = await Export.start("bench", {"file": str(disk)}, socket, socket.with_suffix(".log"))
    try:
        await export.delay(Latency(read_us=delay_us))
        yield f"nbd+unix:///?socket={socket}"
    finally:
        await export.close()


@contextlib.asynccontextmanager
async def _nbdkit(disk: Path, socket: Path, delay_us: int) -> AsyncIterator[str]:
    words = ["nbdkit", "--foreground", "--unix", str(socket), *(["--filter=delay"] if delay_us else []), "file", str(disk)]
    log = socket.with_suffix(".log")
    child = await process.start([*words, *([f"rdelay={delay_us // 1000}ms"] if delay_us else [])], output=log)
    try:
        while not socket.exists():
            if child.returncode is not None:
                raise HostError(f"nbdkit: expected it to listen on {socket}, it ended: {log.read_text(encoding='utf-8').strip()}")
            await asyncio.sleep(0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()
