"""Types of the fields of a run's results. The file may be a stranger's: every list and number is bounded, and no type is converted."""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, FiniteFloat, Strict

T = TypeVar("T")

# Far beyond what anybody measures; sums, differences and products of two of them are finite.
_MOST = 1e30
# A guest's counters are below 2^64, and a size is one of them in sectors.
_LARGEST = 1 << 80
# Of a survey of a guest, which has no more lines.
_MOST_NAMES = 3000
MOST_KERNELS = 100


class _FailFast(FailFast):
    """Pydantic's own cannot be a part of a union, which asks for a hash."""

    __hash__ = object.__hash__


class KnownFields(BaseModel):
    """Later versions may add keys; a reader lets those pass that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)


def _not_too_many(found: object) -> object:
    """Count the entries before pydantic looks at each of them and gathers its mistakes."""
    if isinstance(found, Sized) and len(found) > _MOST_NAMES:
        raise ValueError(f"expected at most {_MOST_NAMES} of them, got {len(found)}")
    return found


def _below(path: str) -> str:
    if path and (path.startswith("/") or "\0" in path or any(step in ("", ".", "..") for step in path.split("/"))):
        raise ValueError("expected a path below the run's folder")
    return path


Whole = Annotated[int, Field(gt=-_LARGEST, lt=_LARGEST)]
Count = Annotated[int, Field(ge=0, lt=_LARGEST)]
Number = Annotated[FiniteFloat, Field(ge=-_MOST, le=_MOST)]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=_MOST)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
# Of a folder, from the run's; empty for none.
Below = Annotated[str, AfterValidator(_below)]
# One mistake is enough: a message shows the first, and a million of them would take gigabytes.
# Results that are yet to be written have tuples.
Every = Annotated[list[T], _FailFast(), Strict(False)]
Named = Annotated[dict[str, T], BeforeValidator(_not_too_many), Field(max_length=_MOST_NAMES)]
