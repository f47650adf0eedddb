"""How far a run came that has not ended, or that something has ended early. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """`ended` of `wanted` results are known; `wanted` is None where only the run's end tells, and a limit if `at_most`. `what`: what each
    is of, in the plural. `why`: what ended the run, or empty while it goes on.
    """

    ended: int
    wanted: int | None
    at_most: bool = False
    what: str
    why: str

    def __str__(self) -> str:
        """Such as `3 of 12 cases ended; interrupted by SIGINT`."""
        of = "" if self.wanted is None else f" of at most {self.wanted}" if self.at_most else f" of {self.wanted}"
        return f"{self.ended}{of} {self.what} ended; {self.why or 'the run goes on'}"


def read_partial(document: Mapping[str, Any]) -> Partial | None:
    """What a run's results have below `partial`; None where they are complete, as all of earlier versions are."""
    said = document.get("partial")
    return None if said is None else Partial(**{name: said[name] for name in Partial.__slots__})
