"""The main program: exports one device to one client, and ends with its owner, or after a line that says why.

python -m testbed.qemu.nbd_server '{"wire": 5, "file": 6}'
{}
{"verb": "latency", "read_us": 5000, "number": 1}
{"number": 1}
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import traceback

from testbed.qemu.nbd_server import confinement
from testbed.qemu.nbd_server.backing import Backing, DiscardingBacking, FileBacking, VolatileCache
from testbed.qemu.nbd_server.device import Device
from testbed.qemu.nbd_server.protocol import Protocol
from testbed.qemu.nbd_server.server import BadClient, Client, Owner, notify_owner, serve
from testbed.qemu.nbd_server.settings import Settings
from testbed.text import parse_json


def main() -> None:
    try:
        _run(Settings(**parse_json(sys.argv[1])))
        status = 0
    except Exception as error:
        why = f"its client: {error}" if isinstance(error, BadClient) else f"{type(error).__name__}: {error}"
        sys.stderr.write("" if isinstance(error, BadClient) else traceback.format_exc())
        notify_owner({"ends": why})
        status = 1
    # The cache is not written out, as after a power cut or a kill.
    os._exit(status)


def _run(settings: Settings) -> None:
    backing: Backing = (
        DiscardingBacking(settings.room_bytes)
        if settings.file is None
        else FileBacking(settings.file, room_bytes=settings.room_bytes)
    )
    cache = None
    if settings.cache_bytes:
        backing = cache = VolatileCache(backing, room_bytes=settings.cache_bytes, lies=settings.cache_lies)
    device = Device(backing, log=sys.stderr, drops_fua=settings.drops_fua)
    protocol = Protocol(size_bytes=device.size, read_only=settings.read_only, block_bytes=settings.block_bytes)
    # A low descriptor, which select() accepts however many files the owner had open.
    connection = socket.socket(fileno=fcntl.fcntl(settings.wire, fcntl.F_DUPFD_CLOEXEC, 0))
    os.close(settings.wire)
    client = Client(connection, protocol, device)
    confinement.confine_process(settings)
    notify_owner({})
    serve(client, device, Owner(device, cache))


if __name__ == "__main__":
    main()
