"""Delays of a disk's requests."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The additional time of each request, in microseconds, by direction; `jitter_us` adds or subtracts up to that
    much, evenly distributed. Discards and writes of zeros count as writes. A request without a delay has no jitter.
    """

    read_us: int = 0
    write_us: int = 0
    flush_us: int = 0
    jitter_us: int = 0

    @property
    def none(self) -> bool:
        return not (self.read_us or self.write_us or self.flush_us)

    def scaled(self, factor: float) -> Latency:
        """Return the delays of a device that is `factor` times as fast."""
        return replace(self, **{name: round(getattr(self, name) / factor) for name in self.__slots__})


NO_DELAY = Latency()
