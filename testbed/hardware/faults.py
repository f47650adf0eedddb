"""Faults of a disk's requests.

QEMU's blkdebug injects errors of whole disks, except for flushes; the export injects everything else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

READ, WRITE, FLUSH, DISCARD = "read", "write", "flush", "discard"
OPERATIONS = (READ, WRITE, FLUSH, DISCARD)
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "ENOMEM": errno.ENOMEM}
LOST, TORN = "lost", "torn"
EFFECTS = (*ERRORS, LOST, TORN)
# The longest list of rules that blkdebug gets; the export injects faults with a larger count.
MOST_RULES = 256
END = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Which requests fail, and how: requests of one operation that touch bytes from `first` up to, not including,
    `end`, `count` times or always.

    Each fails with a `probability`; the same `seed` hits the same requests again. `effect`: the name of an errno,
    `lost` (acknowledged, but never written) or `torn` (only its beginning is written).
    """

    operation: str
    effect: str
    first: int = 0
    end: int = END
    count: int | None = None
    probability: float = 1.0
    seed: int = 0

    def mistakes(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.operation not in OPERATIONS:
            yield f"operation: expected one of {', '.join(OPERATIONS)}, got {self.operation!r}"
        if self.effect not in EFFECTS:
            yield f"effect: expected one of {', '.join(EFFECTS)}, got {self.effect!r}"
        if self.effect in (LOST, TORN) and self.operation not in (WRITE, DISCARD):
            yield f"effect: expected an error for a {self.operation}, which writes nothing, got {self.effect!r}"
        if self.effect == TORN and self.operation == DISCARD:
            yield "effect: expected lost or an error for a discard, got 'torn'"
        if self.operation == FLUSH and (self.first, self.end) != (0, END):
            yield "range: expected none for a flush, which is of the whole disk"
        if not 0 <= self.first < self.end:
            yield f"range: expected an end after its beginning, got {self.first} to {self.end}"
        if self.count is not None and self.count < 1:
            yield f"count: expected 1 or more, got {self.count}"
        if not 0.0 < self.probability <= 1.0:
            yield f"probability: expected more than 0, and at most 1, got {self.probability}"

    @property
    def in_qemu(self) -> bool:
        """Whether blkdebug can inject it: its rules support neither probabilities nor ranges of many sectors.

        Nor can it make flushes fail usefully: QEMU flushes a disk itself before it changes its nodes, and could never
        remove the fault.
        """
        everywhere = (self.first, self.end) == (0, END)
        return (
            self.operation != FLUSH
            and self.effect in ERRORS
            and self.probability == 1.0
            and everywhere
            and (self.count or 1) <= MOST_RULES
        )

    def rules(self) -> list[dict[str, Any]]:
        """Return QEMU's `BlkdebugInjectErrorOptions`.

        A rule of the event `none` holds from the start; one with `once` is removed after its use.
        """
        rule = {"event": "none", "iotype": self.operation, "errno": ERRORS[self.effect]}
        return [rule] if self.count is None else [{**rule, "once": True}] * self.count


# A disk that fails every request, and one that can only be read.
DEAD = tuple(Fault(operation=operation, effect="EIO") for operation in OPERATIONS)
WORN = tuple(Fault(operation=operation, effect="EIO") for operation in (WRITE, DISCARD))
