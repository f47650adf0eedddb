"""What `results.json` holds, as models; the JSON Schema that is published beside this file is made from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from testbed.report.fields import MOST_KERNELS, Below, Count, Every, KnownFields, Named, Number, Seconds, Share, Whole
from testbed.scenarios.verdict import Verdict, overall_verdict

VerdictName = Literal["PASS", "FAIL", "INVALID", "SKIP", "INFRA"]


class Measure(KnownFields):
    """One number. `source`: the file or command where it was read."""

    value: Number
    unit: str
    source: str


class Control(KnownFields):
    """A measurement whose outcome is known; one that does not hold makes the result INVALID. `excess`: it does not hold because more was
    charged than there was, which an excess of the claim explains."""

    name: str
    expected: str
    got: str
    holds: bool
    excess: bool = False


class Balance(KnownFields):
    """The same bytes counted by the kernel (`accounted`) and by the device or in memory (`real`); `share`: the difference over the
    larger of them."""

    what: str
    accounted: Whole
    real: Whole
    difference: Whole
    share: Number


class Line(KnownFields):
    """A line of the kernel's log that matters. `seconds` since boot; `expected`: it belongs to the scenario."""

    kind: str
    seconds: Number | None
    text: str
    expected: bool


class Block(KnownFields):
    """A block device of a stack. `kind`: loop, dm, md, or the type of an emulated disk; `name`: of a disk that in the topology; `number`:
    MAJ:MIN; `partitions`: bytes by /dev path; `on`: what a dm or md device stands on. What is a loop's is empty or 0 of others.
    """

    kind: str
    name: str
    device: str
    number: str
    size_bytes: Count
    read_only: bool
    logical_block_size: Count
    read_ahead_bytes: Count
    scheduler: str
    profile: str
    backing_file: str
    direct_io: bool
    offset_bytes: Count
    size_limit_bytes: Count
    partitions: Named[Count]
    on: Every[str]


class Mount(KnownFields):
    """A filesystem, as /proc/mounts has it."""

    mount_point: str
    type: str
    source: str
    options: str


class Swap(KnownFields):
    """A swap area on a file or a device."""

    on: str
    size_bytes: Count


class Group(KnownFields):
    """A control group by its path below the root. `limits`: the lines of its files that limit something, by file."""

    path: str
    limits: Named[Every[str]]


class Stack(KnownFields):
    """What stood in a guest while a claim was measured, as its kernel lists it. `cpus`: those online; `controllers`: those enabled for the
    groups below the root; `more_groups`: how many there were beyond `groups`.
    """

    cpus: str
    controllers: str
    blocks: Every[Block]
    mounts: Every[Mount]
    swaps: Every[Swap]
    groups: Every[Group]
    more_groups: Count = 0


class Side(KnownFields):
    """One case on one kernel. `evidence`: its folder, from the run's. `claim`: whether the gap was seen; None without evidence.
    `timeline_missed`: acts of its topology's timeline that never began. `stack`: None where it is not known, which `stack_unread` explains.

    `verdict` and `judgement`: this kernel's own, where it is not a pair that is judged.
    """

    took_s: Seconds
    guest_ready_after_s: Seconds
    evidence: Below
    console: Every[Line]
    claim: Literal["closed", "open", "partial", "excess", "unclear"] | None
    reason: str
    measures: Named[Measure]
    controls: Every[Control]
    balances: Every[Balance]
    timeline_missed: Every[str] = Field(default=[])
    stack: Stack | None = None
    stack_unread: str = ""
    verdict: VerdictName | None = None
    judgement: str | None = None


class Attempt(BaseModel):
    """One run of a case: its verdict, and each kernel's side by what `kernels` of the document calls it."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, Side]

    verdict: VerdictName
    reason: str

    @model_validator(mode="before")
    @classmethod
    def _not_too_many_kernels(cls, found: Any) -> Any:
        if isinstance(found, dict) and len(found) > MOST_KERNELS + len(Case.model_fields):
            raise ValueError(f"expected at most {MOST_KERNELS} kernels, got {len(found)} keys")
        return found

    def side(self, kernel: str) -> Side:
        return (self.__pydantic_extra__ or {})[kernel]


class Predicted(KnownFields):
    base: str
    patched: str


class Spread(KnownFields):
    min: Number
    median: Number
    max: Number


class Case(Attempt):
    """A scenario at one of its points. Of several attempts it is the gravest; `spread`: by kernel and measure over all of them."""

    name: str
    scenario: str
    claim: str
    patches: Every[Whole]
    predicted: Predicted
    source: str
    pass_rate: Share | None = None
    spread: Named[Named[Spread]] | None = None
    attempts: Every[Attempt] | None = None


# What no kernel can be called, whose results are beside them.
KEYS_OF_CASES = frozenset(Case.model_fields)


class Kernel(KnownFields):
    name: str
    release: str
    origin: str
    sha256: str
    series: Literal["before", "after", "unknown"]


class HostFacts(KnownFields):
    kernel: str
    cores: Count
    memory_bytes: Count
    qemu: str
    qemu_sha256: str = ""
    accelerator: Literal["kvm", "tcg"]


class ImageFacts(KnownFields):
    name: str
    sha256: str


class Partial(KnownFields):
    """How far a run came that has not ended, or that something ended early: `ended` of `wanted` results (`what`, such as cases) are known;
    `wanted` is None where only its end tells, and a limit if `at_most`. `why`: what ended it, or empty.
    """

    ended: Count
    wanted: Count | None
    at_most: bool
    what: str
    why: str


class Document(KnownFields):
    """A run; complete, unless it is `partial`. `took_s`: of all scenarios; `guest_seconds`: the sum of their guests' times. `topology`:
    what scenarios used of the file, as YAML would say it; `topology_unused`: the places of the file that they did not use.
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

    @model_validator(mode="after")
    def _every_case_has_every_kernel(self) -> Document:
        if taken := self.kernels.keys() & KEYS_OF_CASES:
            raise ValueError(f"expected names of kernels that are no keys of a case, got {', '.join(sorted(taken))}")
        for case in self.scenarios:
            for attempt in (case, *(case.attempts or ())):
                if lacking := self.kernels.keys() - (attempt.__pydantic_extra__ or {}).keys():
                    raise ValueError(f"case {case.name}: expected a result on {', '.join(sorted(lacking))}")
        return self

    @model_validator(mode="after")
    def _kernels_are_all_judged_alone_or_none(self) -> Document:
        for case in self.scenarios:
            if (case.pass_rate is None) is not (case.attempts is None):
                raise ValueError(f"case {case.name}: expected `pass_rate` and `attempts`, or neither")
        sides = [
            attempt.side(name)
            for case in self.scenarios
            for attempt in (case, *(case.attempts or ()))
            for name in self.kernels
        ]
        if len({said is None for side in sides for said in (side.verdict, side.judgement)}) > 1:
            raise ValueError("expected a verdict and a judgement of each kernel in each case, or of none")
        return self

    @model_validator(mode="after")
    def _verdicts_are_what_they_rest_on(self) -> Document:
        """Nobody is told PASS by a file whose cases say something else, whoever has changed it or how it was damaged."""
        for case in self.scenarios:
            for attempt in (case, *(case.attempts or ())):
                if said := _unfounded(attempt, {name: attempt.side(name) for name in self.kernels}):
                    raise ValueError(f"case {case.name}: {said}")
            if case.attempts is not None:
                verdicts = [attempt.verdict for attempt in case.attempts]
                _same(f"those of the attempts of case {case.name}", case.verdict, _gravest(verdicts))
                if not verdicts or abs(verdicts.count("PASS") / len(verdicts) - (case.pass_rate or 0)) > 1e-3:
                    raise ValueError(
                        f"case {case.name}: expected a pass rate as its attempts have it, got {case.pass_rate}"
                    )
        _same(
            "those of its cases",
            self.verdict,
            _gravest([case.verdict for case in self.scenarios], partial=self.partial is not None),
        )
        return self


def _gravest(verdicts: Iterable[str], *, partial: bool = False) -> str:
    return overall_verdict(tuple(map(Verdict, verdicts)), partial=partial).value


def _same(what: str, verdict: str, expected: str) -> None:
    """:raise ValueError: a verdict is not that of what it sums up."""
    if verdict != expected:
        raise ValueError(f"expected the verdict {expected} by {what}, got {verdict}")


# What each side of a pair shows where its case passes.
_PAIR: dict[str, tuple[str, ...]] = {"base": ("open",), "patched": ("closed",)}


def _unfounded(attempt: Attempt, sides: Mapping[str, Side]) -> str:
    """Why an attempt's verdict cannot be what its kernels showed, or nothing. Only PASS needs reasons."""
    alone = [side.verdict for side in sides.values() if side.verdict is not None]
    if alone and attempt.verdict != (gravest := _gravest(alone)):
        return f"expected the verdict {gravest} by those of its kernels, got {attempt.verdict}"
    for name, side in sides.items():
        if (side.verdict or attempt.verdict) != "PASS":
            continue
        shows = ("open", "closed") if alone else _PAIR.get(name, ())
        if side.claim not in shows or not all(control.holds for control in side.controls):
            return f"{name}: expected {' or '.join(shows) or 'a verdict of its own'} and controls that hold for a PASS, got {side.claim}"
    return ""


def json_schema() -> str:
    """The schema as it is published in `results.schema.json`."""
    schema = Document.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
