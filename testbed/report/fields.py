"""Types of the fields of result files. A stranger may have written the file: every list and number is bounded, and no
value is converted to another type."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    Strict,
    WrapValidator,
)

T = TypeVar("T")

# Far beyond any measurement; sums, differences and products of two of them are finite.
_MOST = 1e30
# A guest's counters are below 2^64, and a size is a counter times the sector size.
_LARGEST = 1 << 80
# A survey of a guest has at most as many lines.
_MOST_NAMES = 3000
MOST_KERNELS = 100


class _FailFast(FailFast):
    """FailFast with a hash, which a member of a union needs and pydantic's own lacks."""

    __hash__ = object.__hash__


def _omit_additional_properties(schema: dict[str, Any]) -> None:
    """Leave out of a JSON Schema what is its default."""
    schema.pop("additionalProperties", None)


class DocumentModel(BaseModel):
    """Base of the models of result files. It keeps unknown keys, which a later version of the testbed may have
    added."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        allow_inf_nan=False,
        strict=True,
        json_schema_extra=_omit_additional_properties,
    )

    def as_json(self) -> dict[str, Any]:
        """Return the keys that were given, with values for `json.dumps`."""
        return self.model_dump(exclude_unset=True, warnings=False)


def _check_number_of_names(value: object) -> object:
    """Count the entries before pydantic validates each of them and collects its errors."""
    if isinstance(value, Sized) and len(value) > _MOST_NAMES:
        raise ValueError(f"expected at most {_MOST_NAMES} of them, got {len(value)}")
    return value


def _check_path(path: str) -> str:
    if path and (path.startswith("/") or "\0" in path or any(step in ("", ".", "..") for step in path.split("/"))):
        raise ValueError("expected a path below the run's folder")
    return path


def _keep_type(value: Any, validate: Callable[[Any], object]) -> Any:
    """Validate a number, and keep a whole one whole: it is written again as it was."""
    validate(value)
    return value


Whole = Annotated[int, Field(gt=-_LARGEST, lt=_LARGEST)]
Count = Annotated[int, Field(ge=0, lt=_LARGEST)]
Number = Annotated[FiniteFloat, Field(ge=-_MOST, le=_MOST), WrapValidator(_keep_type)]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=_MOST), WrapValidator(_keep_type)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1), WrapValidator(_keep_type)]
# A folder, relative to the run's folder; empty for none.
Below = Annotated[str, AfterValidator(_check_path)]
# Stop at the first error: only one is shown, and a million of them would take gigabytes.
# Documents that are yet to be written have tuples.
Every = Annotated[list[T], _FailFast(), Strict(False)]
Named = Annotated[dict[str, T], BeforeValidator(_check_number_of_names), Field(max_length=_MOST_NAMES)]
