"""What `results.json` holds, as models; the JSON Schema that is published beside this file is made from them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

VerdictName = Literal["PASS", "FAIL", "INVALID", "SKIP", "INFRA"]


class _Known(BaseModel):
    """Later versions may add keys; a reader lets those pass that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Measure(_Known):
    """One number. `source`: the file or command where it was read."""

    value: FiniteFloat
    unit: str
    source: str


class Control(_Known):
    """A measurement whose outcome is known; one that does not hold makes the result INVALID. `excess`: it does not hold because more was
    charged than there was, which an excess of the claim explains."""

    name: str
    expected: str
    got: str
    holds: bool
    excess: bool = False


class Balance(_Known):
    """The same bytes counted by the kernel (`accounted`) and by the device or in memory (`real`); `share`: the difference, 0 to 1."""

    what: str
    accounted: int
    real: int
    difference: int
    share: float


class Line(_Known):
    """A line of the kernel's log that matters. `seconds` since boot; `expected`: it belongs to the scenario."""

    kind: str
    seconds: float | None
    text: str
    expected: bool


class Block(_Known):
    """A block device of a stack. `kind`: loop, dm, md, or the type of an emulated disk; `name`: of a disk that in the topology; `number`:
    MAJ:MIN; `partitions`: bytes by /dev path; `on`: what a dm or md device stands on. What is a loop's is empty or 0 of others.
    """

    kind: str
    name: str
    device: str
    number: str
    size_bytes: int
    read_only: bool
    logical_block_size: int
    read_ahead_bytes: int
    scheduler: str
    profile: str
    backing_file: str
    direct_io: bool
    offset_bytes: int
    size_limit_bytes: int
    partitions: dict[str, int]
    on: list[str]


class Mount(_Known):
    """A filesystem, as /proc/mounts has it."""

    mount_point: str
    type: str
    source: str
    options: str


class Swap(_Known):
    """A swap area on a file or a device."""

    on: str
    size_bytes: int


class Group(_Known):
    """A control group by its path below the root. `limits`: the lines of its files that limit something, by file."""

    path: str
    limits: dict[str, list[str]]


class Stack(_Known):
    """What stood in a guest while a claim was measured, as its kernel lists it. `cpus`: those online; `controllers`: those enabled for the
    groups below the root; `more_groups`: how many there were beyond `groups`.
    """

    cpus: str
    controllers: str
    blocks: list[Block]
    mounts: list[Mount]
    swaps: list[Swap]
    groups: list[Group]
    more_groups: int = 0


class Side(_Known):
    """One case on one kernel. `evidence`: its folder, from the run's. `claim`: whether the gap was seen; None without evidence.
    `timeline_missed`: acts of its topology's timeline that never began. `stack`: None where it is not known, which `stack_unread` explains.

    `verdict` and `judgement`: this kernel's own, where it is not a pair that is judged.
    """

    took_s: float
    guest_ready_after_s: float
    evidence: str
    console: list[Line]
    claim: Literal["closed", "open", "partial", "excess", "unclear"] | None
    reason: str
    measures: dict[str, Measure]
    controls: list[Control]
    balances: list[Balance]
    timeline_missed: list[str] = []
    stack: Stack | None = None
    stack_unread: str = ""
    verdict: VerdictName | None = None
    judgement: str | None = None


class Attempt(BaseModel):
    """One run of a case: its verdict, and each kernel's side by what `kernels` of the document calls it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Side]

    verdict: VerdictName
    reason: str


class Predicted(_Known):
    base: str
    patched: str


class Spread(_Known):
    min: float
    median: float
    max: float


class Case(Attempt):
    """A scenario at one of its points. Of several attempts it is the gravest; `spread`: by kernel and measure over all of them."""

    name: str
    scenario: str
    claim: str
    patches: list[int]
    predicted: Predicted
    source: str
    pass_rate: float | None = None
    spread: dict[str, dict[str, Spread]] | None = None
    attempts: list[Attempt] | None = None


class Kernel(_Known):
    name: str
    release: str
    origin: str
    sha256: str
    series: Literal["before", "after", "unknown"]


class HostFacts(_Known):
    kernel: str
    cores: int
    memory_bytes: int
    qemu: str
    qemu_sha256: str = ""
    accelerator: Literal["kvm", "tcg"]


class ImageFacts(_Known):
    name: str
    sha256: str


class Partial(_Known):
    """How far a run came that has not ended, or that something ended early: `ended` of `wanted` results (`what`, such as cases) are known;
    `wanted` is None where only its end tells, and a limit if `at_most`. `why`: what ended it, or empty.
    """

    ended: int
    wanted: int | None
    at_most: bool
    what: str
    why: str


class Document(_Known):
    """A run; complete, unless it is `partial`. `took_s`: of all scenarios; `guest_seconds`: the sum of their guests' times. `topology`:
    what scenarios used of the file, as YAML would say it; `topology_unused`: the places of the file that they did not use.
    """

    version: Literal[1]
    testbed: str = ""
    run: str
    verdict: VerdictName
    partial: Partial | None = None
    command: list[str]
    host: HostFacts
    image: ImageFacts
    kernels: dict[str, Kernel] = Field(min_length=1)
    topology: dict[str, Any] | None = None
    topology_unused: list[str] = []
    took_s: float
    guest_seconds: float
    scenarios: list[Case]

    @model_validator(mode="after")
    def _every_case_has_every_kernel(self) -> Document:
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
        attempts = [attempt for case in self.scenarios for attempt in (case, *(case.attempts or ()))]
        sides = [(attempt.__pydantic_extra__ or {})[name] for attempt in attempts for name in self.kernels]
        if len({said is None for side in sides for said in (side.verdict, side.judgement)}) > 1:
            raise ValueError("expected a verdict and a judgement of each kernel in each case, or of none")
        return self


def json_schema() -> str:
    """The schema as it is published in `results.schema.json`."""
    schema = Document.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
