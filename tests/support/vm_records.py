"""The record of a VM, and work that does not end by itself."""

import asyncio
import os

from testbed.host import registry
from testbed.host.registry import VmRecord

RECORD = VmRecord(
    name="g0",
    state=registry.READY,
    topology="/somewhere/default.yaml",
    point="",
    guest="g0",
    kernel="debian-6.1",
    release="6.1.0",
    memory_bytes=1 << 30,
    cpus=1,
    disks=("data",),
    loops=("l0",),
    evidence="/evidence",
    supervisor=os.getpid(),
    since=0,
    networks="/nowhere",
    devices={"data": "/dev/vdc", "l0": "/dev/loop0"},
)


class Slow:
    """Something that goes on until it is ended, which takes it a moment."""

    def __init__(self, ended: list[str]) -> None:
        self.begun, self._ended = asyncio.Event(), ended

    async def go_on(self, *_: object) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            self._ended.append("slow")
