"""How an exported device behaves: when each request ends, and how. Does nothing by itself: whoever has it calls `work` when it is time."""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TextIO

from testbed.hardware.faults import ERRORS, FLUSH, LOST, READ, TORN, Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.qemu.nbd_server.backing import Backing

# A request that is delayed waits for four wake-ups more than one that is not: the export's for its arrival and for its time, that of QEMU's
# main loop, and that of the guest's CPU, which sleeps by then. What the export's is late by is measured, and the others are taken to be as
# late; so much sooner a request is due, but for most of its time it waits in any case.
_WAKES = 4
_MOST_SOONER = 0.2
_STEP_S = 10e-6

# For how long after a flush a disk's writes are on the medium before they end, where the export is not told which must be.
_FORCED_S = 0.002

# What waits may take of this machine's memory; more is not taken from the client before some has ended. QEMU's own client has 16 requests
# under way (block/nbd.c: MAX_NBD_REQUESTS), each up to the protocol's 32 MiB, of which a write is here with its data.
_MOST_WAITING, _MOST_WAITING_BYTES = 1024, 64 << 20
# Of the log, to which a guest adds a line with each request that meets a fault.
_MOST_LOG_BYTES = 16 << 20

# Ends a request: with an errno (0 is success), and with what was read.
Reply = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`fua`: it must be on the medium before it ends. `data` is None for zeros that are to be written."""

    operation: str
    offset: int = 0
    length: int = 0
    data: bytes | None = None
    fua: bool = False


class Device:
    """Requests end when they come, or, where they take time, in `work`. `log`: a line for all that goes wrong.

    `drops_fua`: the emulated disk before it does not pass on which writes must be on the medium before they end (FUA). Linux sends those
    right after a flush, so the first write after each is taken for one, and all that come with it: a true cache may write out at any time.
    """

    def __init__(
        self, store: Backing, *, log: TextIO, drops_fua: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._drops_fua, self._forced_until = drops_fua, 0.0
        self._chance = random.Random(0)  # noqa: S311  # the same delays each time, and no secret
        self._log, self._log_room = log, _MOST_LOG_BYTES
        self._clock = clock
        self._latency = NO_DELAY
        self._faults: list[tuple[Fault, random.Random]] = []
        self._held_until = 0.0
        self._ended = False
        self._waiting: list[tuple[float, int, Request, Reply]] = []
        self._waiting_bytes = 0
        self._numbers = itertools.count()
        self._late = 0.0  # the median of what a wait ends late by, seconds

    @property
    def size(self) -> int:
        """In bytes."""
        return self._store.size

    @property
    def full(self) -> bool:
        """Whether so much waits that no more must be submitted."""
        return len(self._waiting) >= _MOST_WAITING or self._waiting_bytes >= _MOST_WAITING_BYTES

    def submit(self, request: Request, reply: Reply) -> None:
        """Take a request."""
        due = self._clock() + self._delay(request.operation)
        if due > self._clock() or self._held_until or self._waiting or self._ended:
            heapq.heappush(self._waiting, (due, next(self._numbers), request, reply))
            self._waiting_bytes += len(request.data or b"")
        else:
            reply(*self._carried_out(request))

    def due(self) -> float | None:
        """When `work` has something to do, on the clock's time; None: not before somebody calls another method."""
        if self._ended or not self._waiting:
            return None
        return max(self._waiting[0][0], self._held_until)

    def work(self) -> bool:
        """End one request whose time has come; False: there is none."""
        due = self.due()
        if due is None or due > self._clock():
            return False
        self._held_until = 0.0
        _, _, request, reply = heapq.heappop(self._waiting)
        self._waiting_bytes -= len(request.data or b"")
        reply(*self._carried_out(request))
        return True

    def measure_wakeup(self, due: float) -> None:
        """Somebody has slept until then, and measures how late he is."""
        self._late += _STEP_S if self._clock() > due + self._late else -_STEP_S

    def drop_waiting(self) -> None:
        """Drop all requests that wait: nobody wants to hear of them."""
        self._waiting, self._waiting_bytes = [], 0

    def set_latency(self, latency: Latency) -> None:
        self._latency = latency

    def set_faults(self, faults: list[Fault]) -> None:
        self._faults = [(fault, random.Random(fault.seed)) for fault in faults]  # noqa: S311  # the same seed must hit the same requests

    def hold(self, seconds: float) -> None:
        """Let no request end for so long; 0 lets them go."""
        self._held_until = self._clock() + seconds if seconds else 0.0
        self._note(effect="hang", seconds=seconds)

    def complete_delayed(self) -> None:
        """All requests that wait for their time are due, in the order in which they came."""
        self._waiting = sorted((0.0, number, request, reply) for _, number, request, reply in self._waiting)

    def power_off(self) -> None:
        """No request ends from now on."""
        self._ended = True

    def _delay(self, operation: str) -> float:
        """Seconds until a request shall be due, so that it ends when it should."""
        latency = self._latency
        base = {READ: latency.read_us, FLUSH: latency.flush_us}.get(operation, latency.write_us)
        delay = base / 1e6
        if base and latency.jitter_us:
            delay = max(0.0, base + self._chance.uniform(-latency.jitter_us, latency.jitter_us)) / 1e6
        return delay - min(_WAKES * self._late, _MOST_SOONER * delay)

    def _carried_out(self, request: Request) -> tuple[int, bytes]:
        effect, chance = self._hit(request) or ("", self._chance)
        try:
            match request.operation:
                case _ if effect in ERRORS:
                    return ERRORS[effect], b""
                case "read":
                    return 0, self._store.read(request.offset, request.length)
                case "flush":
                    self._store.flush()
                    self._forced_until = self._clock() + _FORCED_S
                case "discard" if effect != LOST:
                    self._store.trim(request.offset, request.length)
                    if request.fua:
                        self._store.flush()
                case "write" if effect != LOST:
                    self._write(request, torn=chance if effect == TORN else None)
        except OSError as error:
            self._note(effect=str(error), operation=request.operation, offset=request.offset, length=request.length)
            return error.errno or errno.EIO, b""
        return 0, b""

    def _write(self, request: Request, *, torn: random.Random | None) -> None:
        length = request.length
        if torn is not None:
            length = 512 * torn.randrange(0, max(1, length // 512))
        if not length:
            pass  # torn before its first sector
        elif request.data is None:
            self._store.trim(request.offset, length)
        else:
            self._store.write(request.offset, request.data[:length])
        if request.fua or (self._drops_fua and self._forced_until):
            self._store.flush()
            if self._clock() > self._forced_until:
                self._forced_until = 0.0

    def _hit(self, request: Request) -> tuple[str, random.Random] | None:
        """The effect of the first fault that this request meets, and where its chance comes from."""
        for number, (fault, chance) in enumerate(self._faults):
            if not _hits(fault, request) or (fault.probability < 1.0 and chance.random() >= fault.probability):
                continue
            if fault.count is not None:
                self._faults[number] = replace(fault, count=fault.count - 1), chance
                if fault.count <= 1:
                    del self._faults[number]
            self._note(effect=fault.effect, operation=request.operation, offset=request.offset, length=request.length)
            return fault.effect, chance
        return None

    def _note(self, **words: Any) -> None:
        if self._log_room <= 0:
            return
        line = json.dumps({"monotonic_s": round(time.monotonic(), 6), **words}) + "\n"
        self._log_room -= len(line)
        if self._log_room <= 0:
            line = json.dumps({"effect": "the log is full, the rest is left out"}) + "\n"
        self._log.write(line)
        self._log.flush()


def _hits(fault: Fault, request: Request) -> bool:
    if fault.operation != request.operation:
        return False
    return request.operation == FLUSH or (request.offset < fault.end and request.offset + request.length > fault.first)
