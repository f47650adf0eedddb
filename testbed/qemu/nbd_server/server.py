"""The main loop: one thread serves one client, and carries out its owner's commands from standard input, until that is
closed.

The memory that the client can make it use is limited: the loop does not read from the client while too many requests
are delayed, or while the client does not read its replies.
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
# No request completes while the client has not read this much of earlier replies; the last reply may have
# `nbd.MOST_BYTES`.
_MOST_UNREAD_BYTES = 1 << 20
# Requests that are accepted, and completed, before the owner and the clock are checked again.
_STEPS = 64
_NEGOTIATION_S = 60.0


class BadClient(Exception):
    """The client has broken the protocol; the text says how."""


class Client:
    """The one client of a device. It is `gone` once it has closed the connection; its requests are dropped then."""

    def __init__(self, connection: socket.socket, protocol: Protocol, device: Device) -> None:
        self._socket, self._protocol, self._device = connection, protocol, device
        self._replies = bytearray(nbd.GREETING)
        self._read = memoryview(bytearray(_READ_BYTES))
        self._wants_bytes = True
        self._since: float | None = None  # when its first byte came
        self.gone = False
        connection.setblocking(False)

    @property
    def reads(self) -> tuple[socket.socket, ...]:
        """The sockets to wait for until they are readable."""
        return () if self.gone or not self._wants_bytes else (self._socket,)

    @property
    def writes(self) -> tuple[socket.socket, ...]:
        """The sockets to wait for until they are writable."""
        return () if self.gone or not self._replies else (self._socket,)

    @property
    def has_room(self) -> bool:
        """Whether the client reads its replies, so that another request may complete."""
        return len(self._replies) < _MOST_UNREAD_BYTES

    @property
    def deadline(self) -> float | None:
        """When the negotiation must be over, on the clock of `time.monotonic`."""
        return None if self._since is None or self._protocol.transmitting or self.gone else self._since + _NEGOTIATION_S

    @property
    def is_ready(self) -> bool:
        """Whether `step` has received requests to process."""
        return not self.gone and not self._wants_bytes and self.has_room and not self._device.full

    def step(self) -> None:
        """Process some of the received requests, as long as there is room for them.

        :raise BadClient: the client has broken the protocol.
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
                    self._replies += data
                case NbdRequest(cookie, request):
                    self._device.submit(request, functools.partial(self._reply, cookie))
                case ConnectionEnded(why):
                    if why:
                        raise BadClient(why)
                    self.send()
                    self._leave()

    def _reply(self, cookie: int, error: int, data: bytes) -> None:
        if not self.gone:
            self._replies += nbd.reply(cookie, error)
            self._replies += data

    def receive(self) -> None:
        """Read the available bytes, or notice that the client has closed the connection."""
        try:
            length = self._socket.recv_into(self._read)
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
        """Send pending replies, as much as the socket takes."""
        try:
            while self._replies and not self.gone:
                with memoryview(self._replies) as view:
                    sent = self._socket.send(view[:_READ_BYTES])
                del self._replies[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._leave()

    def _leave(self) -> None:
        self.gone = True
        self._replies.clear()
        self._device.drop_waiting()
        self._socket.close()


class Owner:
    """The process that has started this one: it sends commands as lines of JSON on standard input, and each is answered
    by one.
    """

    def __init__(self, device: Device, cache: VolatileCache | None) -> None:
        self._device, self._cache = device, cache
        self._pending = b""

    def receive(self) -> bool:
        """Carry out the commands that have arrived; False at the end of the input."""
        data = os.read(0, _READ_BYTES)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            number = None
            try:
                command = parse_json(line)
                number = command.pop("number", None)
                answer = self._carry_out(command)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                answer = {"error": repr(error)}
            notify_owner({**answer, "number": number})
        return bool(data)

    def _carry_out(self, command: dict[str, Any]) -> dict[str, Any]:
        device = self._device
        match command.pop("verb", None):
            case "latency":
                device.set_latency(Latency(**command))
            case "faults":
                device.set_faults([Fault(**fault) for fault in command["faults"]])
            case "hold":
                device.hold(float(command["seconds"]))
            case "hurry":
                device.complete_delayed()
            case "lose":
                if command["end"]:
                    device.power_off()
                return {"lost_blocks": self._cache.settle(command["share"], command["seed"]) if self._cache else 0}
            case other:
                return {"error": f"expected a verb, got {other!r}"}
        return {}


def notify_owner(answer: dict[str, Any]) -> None:
    """Write a line of JSON for the owner."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def serve(client: Client, device: Device, owner: Owner) -> None:
    """Serve the client until the owner closes its end.

    :raise BadClient: the client has broken the protocol.
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
