"""Models of `results.json`. `results.schema.json` beside this file is their published JSON Schema.

A reader validates them. A writer makes them with `model_construct`, without validation: a run must be able to write its
results whatever its guests have reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from testbed.report.fields import (
    MOST_KERNELS,
    Below,
    Count,
    DocumentModel,
    Every,
    Named,
    Number,
    Seconds,
    Share,
    Whole,
)
from testbed.report.partial import Partial
from testbed.report.stack_model import Stack
from testbed.scenarios.verdict import PAIR_GAPS, Verdict, overall_verdict

VerdictName = Literal["PASS", "FAIL", "INVALID", "SKIP", "INFRA"]


class Measure(DocumentModel):
    """One number. `source`: the file or command where it was read."""

    value: Number
    unit: str
    source: str


class Control(DocumentModel):
    """A measurement whose outcome is known in advance. One that does not hold makes the result INVALID. `excess`: it
    does not hold because more was charged than there was; where the claim shows an excess too, that explains it."""

    name: str
    expected: str
    got: str
    holds: bool
    excess: bool = False


class Balance(DocumentModel):
    """The same bytes counted twice: by the kernel (`accounted`), and by the emulated device or in memory (`real`).
    `share`: the difference over the larger of the two."""

    what: str
    accounted: Whole
    real: Whole
    difference: Whole
    share: Number


class Line(DocumentModel):
    """A notable line of the kernel's log. `seconds` since boot; `expected`: the scenario expects lines of this kind."""

    kind: str
    seconds: Number | None
    text: str
    expected: bool


class Side(DocumentModel):
    """One case on one kernel. `evidence`: the folder of its logs, relative to the run's folder. `claim`: what the
    kernel showed of the gap; None without evidence. `timeline_missed`: timed actions of the topology that never began.
    `stack`: None where it is unknown; `stack_unread` is the reason.

    `verdict` and `judgement`: of this kernel alone; absent where a pair of kernels is judged.
    """

    took_s: Seconds
    guest_ready_after_s: Seconds
    evidence: Below
    timeline_missed: Every[str] = Field(default=[])
    stack: Stack | None = None
    stack_unread: str = ""
    console: Every[Line]
    claim: Literal["closed", "open", "partial", "excess", "unclear"] | None
    reason: str
    measures: Named[Measure]
    controls: Every[Control]
    balances: Every[Balance]
    verdict: VerdictName | None = None
    judgement: str | None = None


class Attempt(DocumentModel):
    """One run of a case: its verdict, and a `Side` for each kernel, under the kernel's key in `kernels` of the
    document."""

    model_config = ConfigDict(json_schema_extra=None)
    __pydantic_extra__: dict[str, Side]

    verdict: VerdictName
    reason: str

    @model_validator(mode="before")
    @classmethod
    def _not_too_many_kernels(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_KERNELS + len(Case.model_fields):
            raise ValueError(f"expected at most {MOST_KERNELS} kernels, got {len(value)} keys")
        return value

    @property
    def sides(self) -> Mapping[str, Side]:
        """Each kernel's results."""
        return self.__pydantic_extra__ or {}


class Predicted(DocumentModel):
    base: str
    patched: str


class Spread(DocumentModel):
    min: Number
    median: Number
    max: Number


class Case(Attempt):
    """A scenario at one of its points. With several attempts it repeats the attempt with the gravest verdict. `spread`:
    by kernel and measure, over all attempts."""

    name: str
    scenario: str
    claim: str
    patches: Every[Whole]
    predicted: Predicted
    source: str
    pass_rate: Share | None = None
    spread: Named[Named[Spread]] | None = None
    attempts: Every[Attempt] | None = None

    @property
    def all_attempts(self) -> Sequence[Attempt]:
        """Its attempts; of a case that ran once the case itself."""
        return self.attempts or (self,)

    @model_serializer(mode="wrap")
    def _in_the_order_of_the_file(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dict(sorted(serialize(self).items(), key=lambda item: _CASE_ORDER.get(item[0], len(_BEFORE_SIDES))))


# Keys of a case before those of its kernels, and after them.
_BEFORE_SIDES = ("name", "scenario", "claim", "patches", "predicted", "source", "verdict", "reason")
_AFTER_SIDES = ("pass_rate", "spread", "attempts")
_CASE_ORDER = {name: at for at, name in enumerate(_BEFORE_SIDES)} | {
    name: at for at, name in enumerate(_AFTER_SIDES, len(_BEFORE_SIDES) + 1)
}
# Names that a kernel cannot have, because its results stand beside these keys.
KEYS_OF_CASES = frozenset(Case.model_fields)


class Kernel(DocumentModel):
    name: str
    release: str
    origin: str
    sha256: str
    series: Literal["before", "after", "unknown"]


class HostFacts(DocumentModel):
    kernel: str
    cores: Count
    memory_bytes: Count
    qemu: str
    qemu_sha256: str = ""
    accelerator: Literal["kvm", "tcg"]


class ImageFacts(DocumentModel):
    name: str
    sha256: str


class Document(DocumentModel):
    """A run of scenarios; complete unless it has `partial`. `took_s`: of all scenarios; `guest_seconds`: the sum of
    their guests' times. `topology`: the part of the file that scenarios used, as YAML would have it; `topology_unused`:
    places of the file that they did not use.
    """

    version: Literal[1]
    testbed: str = ""
    run: str
    verdict: VerdictName
    partial: Partial | None = None
    command: Every[str]
    host: HostFacts
    image: ImageFacts
    kernels: Named[Kernel] = Field(min_length=1)
    topology: dict[str, Any] | None = None
    topology_unused: Every[str] = Field(default=[])
    took_s: Seconds
    guest_seconds: Seconds
    scenarios: Every[Case]

    @property
    def file_name(self) -> str:
        """The name of its file in the run's folder."""
        return "results.json"

    @property
    def part_count(self) -> int:
        """How many cases it has."""
        return len(self.scenarios)

    @model_validator(mode="after")
    def _every_case_has_every_kernel(self) -> Document:
        if taken := self.kernels.keys() & KEYS_OF_CASES:
            raise ValueError(f"expected names of kernels that are no keys of a case, got {', '.join(sorted(taken))}")
        for case in self.scenarios:
            for attempt in (case, *(case.attempts or ())):
                if missing := self.kernels.keys() - attempt.sides.keys():
                    raise ValueError(f"case {case.name}: expected a result on {', '.join(sorted(missing))}")
        return self

    @model_validator(mode="after")
    def _kernels_are_all_judged_alone_or_none(self) -> Document:
        for case in self.scenarios:
            if (case.pass_rate is None) is not (case.attempts is None):
                raise ValueError(f"case {case.name}: expected `pass_rate` and `attempts`, or neither")
        sides = [
            attempt.sides[name]
            for case in self.scenarios
            for attempt in (case, *(case.attempts or ()))
            for name in self.kernels
        ]
        if len({field is None for side in sides for field in (side.verdict, side.judgement)}) > 1:
            raise ValueError("expected a verdict and a judgement of each kernel in each case, or of none")
        return self

    @model_validator(mode="after")
    def _verdicts_follow_from_their_parts(self) -> Document:
        """Refuse a file that says PASS where its cases do not, whether somebody has changed it or it was damaged."""
        for case in self.scenarios:
            for attempt in (case, *(case.attempts or ())):
                if mistake := _contradiction(attempt, {name: attempt.sides[name] for name in self.kernels}):
                    raise ValueError(f"case {case.name}: {mistake}")
            if case.attempts is not None:
                verdicts = [attempt.verdict for attempt in case.attempts]
                _check_verdict(f"those of the attempts of case {case.name}", case.verdict, _gravest(verdicts))
                if not verdicts or abs(verdicts.count("PASS") / len(verdicts) - (case.pass_rate or 0)) > 1e-3:
                    raise ValueError(
                        f"case {case.name}: expected a pass rate as its attempts have it, got {case.pass_rate}"
                    )
        _check_verdict(
            "those of its cases",
            self.verdict,
            _gravest([case.verdict for case in self.scenarios], partial=self.partial is not None),
        )
        return self


def _gravest(verdicts: Iterable[str], *, partial: bool = False) -> str:
    return overall_verdict(tuple(map(Verdict, verdicts)), partial=partial).value


def _check_verdict(what: str, verdict: str, expected: str) -> None:
    """:raise ValueError: the verdict does not follow from its parts."""
    if verdict != expected:
        raise ValueError(f"expected the verdict {expected} by {what}, got {verdict}")


_PAIR = {name: (gap.name.lower(),) for name, gap in PAIR_GAPS.items()}


def _contradiction(attempt: Attempt, sides: Mapping[str, Side]) -> str:
    """Return why an attempt's verdict cannot follow from its kernels' results, or "". Only PASS needs reasons."""
    alone = [side.verdict for side in sides.values() if side.verdict is not None]
    if alone and attempt.verdict != (gravest := _gravest(alone)):
        return f"expected the verdict {gravest} by those of its kernels, got {attempt.verdict}"
    for name, side in sides.items():
        if (side.verdict or attempt.verdict) != "PASS":
            continue
        shows = ("open", "closed") if alone else _PAIR.get(name, ())
        if side.claim not in shows or not all(control.holds for control in side.controls):
            expected = " or ".join(shows) or "a verdict of its own"
            return f"{name}: expected {expected} and controls that hold for a PASS, got {side.claim}"
    return ""


def json_schema() -> str:
    """Return the text of `results.schema.json`."""
    schema = Document.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
