"""The switch that carries Ethernet frames between guests."""

import asyncio
import socket

from testbed.host.paths import Folders
from testbed.qemu.frame_switch import SwitchPort


async def test_frames_reach_every_other_guest_and_a_missing_one_holds_nobody_up(folders: Folders) -> None:
    there, away = folders.runtime / "there.in", folders.runtime / "away.in"
    plug = SwitchPort(outlet=folders.runtime / "own.out", inlet=folders.runtime / "own.in", others=(away, there))
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu,
    ):
        for one in (peer, qemu):
            one.setblocking(False)
        peer.bind(str(there))
        plug.open()
        for number in range(3):
            await loop.sock_sendto(qemu, bytes([number]) * 60, str(folders.runtime / "own.out"))
        async with asyncio.timeout(5):
            assert [(await loop.sock_recv(peer, 100))[0] for _ in range(3)] == [0, 1, 2]
    await plug.close()
    assert not (folders.runtime / "own.out").exists()
