"""The loop of the process: one thread serves one client, and does what its owner says on standard input, until that ends.

What the client makes it hold is bounded: it is not read from while as much waits as may, or while answers wait for it to read them.
"""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import sys
import time
from typing import Any

from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency
from testbed.qemu.nbd_server import protocol as nbd
from testbed.qemu.nbd_server.backing import VolatileCache
from testbed.qemu.nbd_server.device import Device
from testbed.qemu.nbd_server.protocol import ConnectionEnded, NbdRequest, Protocol, SendBytes
from testbed.text import parse_json

_READ_BYTES = 1 << 18
# No request is ended while so much of earlier ones was not read by the client; the last of them may be of `nbd.MOST_BYTES`.
_MOST_UNREAD_BYTES = 1 << 20
# Requests that come, and that end, before the owner and the clock are looked at again.
_STEPS = 64
_NEGOTIATION_S = 60.0


class BadClient(Exception):
    """The client says what no client says; its text is what."""


class Client:
    """The one client of a device. It is `gone` when it has ended the connection; what it had asked for is dropped then."""

    def __init__(self, wire: socket.socket, protocol: Protocol, device: Device) -> None:
        self._wire, self._protocol, self._device = wire, protocol, device
        self._unread = bytearray(nbd.GREETING)
        self._read = memoryview(bytearray(_READ_BYTES))
        self._wants_bytes = True
        self._since: float | None = None  # its first byte came
        self.gone = False
        wire.setblocking(False)

    @property
    def reads(self) -> tuple[socket.socket, ...]:
        """What to wait for until it can be read."""
        return () if self.gone or not self._wants_bytes else (self._wire,)

    @property
    def writes(self) -> tuple[socket.socket, ...]:
        """What to wait for until it can be written to."""
        return () if self.gone or not self._unread else (self._wire,)

    @property
    def has_room(self) -> bool:
        """Whether it reads its answers, so that another request may end."""
        return len(self._unread) < _MOST_UNREAD_BYTES

    @property
    def deadline(self) -> float | None:
        """When it must have negotiated, on the clock of `time.monotonic`."""
        return None if self._since is None or self._protocol.transmitting or self.gone else self._since + _NEGOTIATION_S

    @property
    def is_ready(self) -> bool:
        """Whether `step` has something to do with what was read."""
        return not self.gone and not self._wants_bytes and self.has_room and not self._device.full

    def step(self) -> None:
        """Take some of the requests that were read, as long as there is room for them.

        :raise BadClient: it is no client.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise BadClient(f"expected an end of its negotiation within {_NEGOTIATION_S:.0f} s, got none")
        for _ in range(_STEPS):
            if not self.is_ready:
                return
            match self._protocol.next_event():
                case None:
                    self._wants_bytes = True
                case SendBytes(data):
                    self._unread += data
                case NbdRequest(cookie, request):
                    self._device.submit(request, functools.partial(self._reply, cookie))
                case ConnectionEnded(why):
                    if why:
                        raise BadClient(why)
                    self.send()
                    self._leave()

    def _reply(self, cookie: int, error: int, data: bytes) -> None:
        if not self.gone:
            self._unread += nbd.reply(cookie, error)
            self._unread += data

    def receive(self) -> None:
        """Read what there is, or notice its end."""
        try:
            length = self._wire.recv_into(self._read)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if not length:
            self._leave()
            return
        if self._since is None:
            self._since = time.monotonic()
        self._protocol.receive(self._read[:length])
        self._wants_bytes = False

    def send(self) -> None:
        """Send what waits for it, as much as it takes."""
        try:
            while self._unread and not self.gone:
                with memoryview(self._unread) as view:
                    sent = self._wire.send(view[:_READ_BYTES])
                del self._unread[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._leave()

    def _leave(self) -> None:
        self.gone = True
        self._unread.clear()
        self._device.drop_waiting()
        self._wire.close()


class Owner:
    """Who has started the process: says a line of JSON on standard input, and is answered by one."""

    def __init__(self, device: Device, cache: VolatileCache | None) -> None:
        self._device, self._cache = device, cache
        self._said = b""

    def receive(self) -> bool:
        """Do what was said; False: nobody says anything any more."""
        data = os.read(0, _READ_BYTES)
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            number = None
            try:
                asked = parse_json(line)
                number = asked.pop("number", None)
                said = self._done(asked)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                said = {"error": repr(error)}
            notify_owner({**said, "number": number})
        return bool(data)

    def _done(self, asked: dict[str, Any]) -> dict[str, Any]:
        device = self._device
        match asked.pop("verb", None):
            case "latency":
                device.set_latency(Latency(**asked))
            case "faults":
                device.set_faults([Fault(**fault) for fault in asked["faults"]])
            case "hold":
                device.hold(float(asked["seconds"]))
            case "hurry":
                device.complete_delayed()
            case "lose":
                if asked["end"]:
                    device.power_off()
                return {"lost_blocks": self._cache.settle(asked["share"], asked["seed"]) if self._cache else 0}
            case other:
                return {"error": f"expected a verb, got {other!r}"}
        return {}


def notify_owner(said: dict[str, Any]) -> None:
    """A line for the owner."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def serve(client: Client, device: Device, owner: Owner) -> None:
    """Until the owner has nothing more to say.

    :raise BadClient: the client is none.
    """
    while True:
        client.step()
        for _ in range(_STEPS):
            if not client.has_room or not device.work():
                break
        client.send()
        due = device.due() if client.has_room else None
        until = min((at for at in (due, client.deadline) if at is not None), default=None)
        wait_s = 0.0 if client.is_ready else None if until is None else max(0.0, until - time.monotonic())
        watched: tuple[int | socket.socket, ...] = (0, *client.reads)
        readable, writable, _ = select.select(watched, client.writes, (), wait_s)
        if until is not None and until == due and wait_s and not readable and not writable:
            device.measure_wakeup(until)
        if 0 in readable and not owner.receive():
            return
        if any(one != 0 for one in readable):
            client.receive()
