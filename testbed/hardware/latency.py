"""Delays of a disk's requests."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What each request takes longer, in microseconds, by direction; `jitter_us` more or less, evenly. Discards and writes of zeros are
    writes. What has no delay has no jitter either.
    """

    read_us: int = 0
    write_us: int = 0
    flush_us: int = 0
    jitter_us: int = 0

    @property
    def none(self) -> bool:
        return not (self.read_us or self.write_us or self.flush_us)

    def scaled(self, factor: float) -> Latency:
        """The same device so many times as fast."""
        return replace(self, **{name: round(getattr(self, name) / factor) for name in self.__slots__})


NO_DELAY = Latency()
