"""The process: serves one device on a unix socket, and does what it is told on standard input, until that ends.

python -m testbed.export '{"socket": "/run/x", "file": "/tmp/disk.raw"}'
{"verb": "latency", "read_us": 5000}
{}
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from typing import Any

from testbed import jsons
from testbed.export.device import Device
from testbed.export.nbd import Connection
from testbed.export.store import File, Nowhere, Store, VolatileCache
from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency


def main() -> None:
    settings: dict[str, Any] = jsons.parsed(sys.argv[1])
    read_only = bool(settings.get("read_only"))
    file, room_bytes = settings.get("file"), settings.get("room_bytes", 0)
    store: Store = File(file, read_only=read_only, room_bytes=room_bytes) if file else Nowhere(room_bytes)
    cache = None
    if settings.get("cache"):
        store = cache = VolatileCache(store, **settings["cache"])
    device = Device(store, log=sys.stderr, drops_fua=bool(settings.get("drops_fua")))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(settings["socket"])
        listener.listen(4)
        threading.Thread(target=_accept, args=(listener, device, read_only), daemon=True).start()
        _say({})
        for line in sys.stdin:
            try:
                answer = _told(jsons.parsed(line), device, cache)
            except (TypeError, ValueError, KeyError) as error:
                answer = {"error": repr(error)}
            _say(answer)
    # Nothing is written out: that is what a power cut, or a kill, leaves.
    os._exit(0)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _accept(listener: socket.socket, device: Device, read_only: bool) -> None:
    while True:
        wire, _ = listener.accept()
        threading.Thread(target=Connection(wire, device, read_only=read_only).serve, daemon=True).start()


def _told(asked: dict[str, Any], device: Device, cache: VolatileCache | None) -> dict[str, Any]:
    match asked.pop("verb", None):
        case "latency":
            device.set_latency(Latency(**asked))
        case "faults":
            device.set_faults([Fault(**fault) for fault in asked["faults"]])
        case "hold":
            device.hold(float(asked["seconds"]))
        case "hurry":
            device.hurry()
        case "lose":
            with device.still(end=asked["end"]):
                return {"lost_blocks": cache.settle(asked["share"], asked["seed"]) if cache else 0}
        case other:
            return {"error": f"expected a verb, got {other!r}"}
    return {}


if __name__ == "__main__":
    main()
