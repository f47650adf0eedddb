"""The behaviour of an exported device: when each request completes, and how.

It does nothing by itself: the caller calls `work` when it is time.
"""

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

# A delayed request waits for four wake-ups more than one that is not: the export's for its arrival and for its due
# time, that of QEMU's main loop, and that of the guest's CPU, which sleeps by then. How late the export's own wake-ups
# are is measured, and the others are assumed to be as late. A request is due earlier by their sum, but by no more than
# this share of its delay.
_WAKES = 4
_MOST_SOONER = 0.2
_STEP_S = 10e-6

# For this long after a flush, a disk's writes are made durable before they complete, where the client does not tell
# which must be.
_FORCED_S = 0.002

# The limit of what delayed requests may take of this machine's memory; more is not read from the client before some
# have completed. QEMU's client has 16 requests in flight (block/nbd.c: MAX_NBD_REQUESTS), each of up to the protocol's
# 32 MiB; a delayed write holds its data.
_MOST_WAITING, _MOST_WAITING_BYTES = 1024, 64 << 20
# The limit of the log, to which each request that meets a fault adds a line.
_MOST_LOG_BYTES = 16 << 20

# Completes a request: with an errno (0 is success), and with the data that was read.
Reply = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. `fua`: it must be durable before it completes. `data`: None for a write of zeros."""

    operation: str
    offset: int = 0
    length: int = 0
    data: bytes | None = None
    fua: bool = False


class Device:
    """Completes requests at once, or in `work` if they take time. `log`: gets a line for each failed request.

    `drops_fua`: the emulated disk does not pass on which writes must be durable before they complete (FUA). Linux sends
    those right after a flush, so the first write after each flush counts as one, as do all that arrive with it: a real
    cache may write out at any time.
    """

    def __init__(
        self, backing: Backing, *, log: TextIO, drops_fua: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backing = backing
        self._drops_fua, self._forced_until = drops_fua, 0.0
        self._chance = random.Random(0)  # noqa: S311  # the same delays each time, and no secret
        self._log, self._log_room = log, _MOST_LOG_BYTES
        self._clock = clock
        self._latency = NO_DELAY
        self._faults: list[tuple[Fault, random.Random]] = []
        self._held_until_s = 0.0
        self._powered_off = False
        self._waiting: list[tuple[float, int, Request, Reply]] = []
        self._waiting_bytes = 0
        self._numbers = itertools.count()
        self._late = 0.0  # the median delay of a wake-up, in seconds

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._backing.size

    @property
    def full(self) -> bool:
        """Whether so many requests are delayed that no more must be submitted."""
        return len(self._waiting) >= _MOST_WAITING or self._waiting_bytes >= _MOST_WAITING_BYTES

    def submit(self, request: Request, reply: Reply) -> None:
        """Accept a request."""
        due = self._clock() + self._delay(request.operation)
        if due > self._clock() or self._held_until_s or self._waiting or self._powered_off:
            heapq.heappush(self._waiting, (due, next(self._numbers), request, reply))
            self._waiting_bytes += len(request.data or b"")
        else:
            reply(*self._perform(request))

    def due(self) -> float | None:
        """Return when `work` has something to do, on the device's clock; None: not before another method is called."""
        if self._powered_off or not self._waiting:
            return None
        return max(self._waiting[0][0], self._held_until_s)

    def work(self) -> bool:
        """Complete one request whose time has come; False if there is none."""
        due = self.due()
        if due is None or due > self._clock():
            return False
        self._held_until_s = 0.0
        _, _, request, reply = heapq.heappop(self._waiting)
        self._waiting_bytes -= len(request.data or b"")
        reply(*self._perform(request))
        return True

    def measure_wakeup(self, due: float) -> None:
        """Note that the caller has slept until `due`, to measure how late it woke up."""
        self._late += _STEP_S if self._clock() > due + self._late else -_STEP_S

    def drop_waiting(self) -> None:
        """Drop all delayed requests; the client has gone."""
        self._waiting, self._waiting_bytes = [], 0

    def set_latency(self, latency: Latency) -> None:
        self._latency = latency

    def set_faults(self, faults: list[Fault]) -> None:
        # The same seed must hit the same requests.
        self._faults = [(fault, random.Random(fault.seed)) for fault in faults]  # noqa: S311 - no secret

    def hold(self, seconds: float) -> None:
        """Complete no request for that long; 0 releases them."""
        self._held_until_s = self._clock() + seconds if seconds else 0.0
        self._note(effect="hang", seconds=seconds)

    def complete_delayed(self) -> None:
        """Make all delayed requests due now, in the order in which they came."""
        self._waiting = sorted((0.0, number, request, reply) for _, number, request, reply in self._waiting)

    def power_off(self) -> None:
        """Complete no request from now on."""
        self._powered_off = True

    def _delay(self, operation: str) -> float:
        """Return the seconds until a request is due, so that it completes in time."""
        latency = self._latency
        base = {READ: latency.read_us, FLUSH: latency.flush_us}.get(operation, latency.write_us)
        delay = base / 1e6
        if base and latency.jitter_us:
            delay = max(0.0, base + self._chance.uniform(-latency.jitter_us, latency.jitter_us)) / 1e6
        return delay - min(_WAKES * self._late, _MOST_SOONER * delay)

    def _perform(self, request: Request) -> tuple[int, bytes]:
        effect, chance = self._hit(request) or ("", self._chance)
        try:
            match request.operation:
                case _ if effect in ERRORS:
                    return ERRORS[effect], b""
                case "read":
                    return 0, self._backing.read(request.offset, request.length)
                case "flush":
                    self._backing.flush()
                    self._forced_until = self._clock() + _FORCED_S
                case "discard" if effect != LOST:
                    self._backing.trim(request.offset, request.length)
                    if request.fua:
                        self._backing.flush()
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
            self._backing.trim(request.offset, length)
        else:
            self._backing.write(request.offset, request.data[:length])
        if request.fua or (self._drops_fua and self._forced_until):
            self._backing.flush()
            if self._clock() > self._forced_until:
                self._forced_until = 0.0

    def _hit(self, request: Request) -> tuple[str, random.Random] | None:
        """Return the effect of the first fault that hits this request, and the fault's source of random numbers."""
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

    def _note(self, **fields: Any) -> None:
        if self._log_room <= 0:
            return
        line = json.dumps({"monotonic_s": round(time.monotonic(), 6), **fields}) + "\n"
        self._log_room -= len(line)
        if self._log_room <= 0:
            line = json.dumps({"effect": "the log is full, the rest is left out"}) + "\n"
        self._log.write(line)
        self._log.flush()


def _hits(fault: Fault, request: Request) -> bool:
    if fault.operation != request.operation:
        return False
    return request.operation == FLUSH or (request.offset < fault.end and request.offset + request.length > fault.first)
