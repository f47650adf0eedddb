"""Values of a comparison of two runs: what `testbed report --diff --json` prints. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A number of one case on one kernel in both runs: a measure, or how often the case passed. `kernel` is "" where a
    pair of kernels is judged.

    `attempts`: how many values each run has; `before` and `after`: their medians, or rates; `shift`: how much greater
    the second run's values are, with its `interval` at 95 %; `change`: the shift over `before`; `p` and `adjusted_p`:
    the probability of such a difference by chance. These are None where there are too few values. `changed`: None where
    that is not known; `why`: the reason in words.
    """

    case: str
    kernel: str
    measure: str
    unit: str
    attempts: tuple[int, int]
    before: float
    after: float
    shift: float | None = None
    interval: tuple[float, float] | None = None
    change: float | None = None
    p: float | None = None
    adjusted_p: float | None = None
    changed: bool | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """One of the two runs. `cases`: how many."""

    run: str
    verdict: str
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupChange:
    """A part of the setup that differs between the runs."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """A verdict that differs between the runs. `reason`: of the second one."""

    case: str
    kernel: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs compared. `added` and `gone`: cases of the second and the first run only; `one_sided`: measures that
    were not compared, with the reason. `needed`: how many attempts in each run can show a change of one measure.
    `same`: how many measures are equal in all attempts. Of the others `measures` changed, `ignored` did not beyond
    chance, and of `untold` it is not known."""

    before: RunHead
    after: RunHead
    setup: tuple[SetupChange, ...]
    added: tuple[str, ...]
    gone: tuple[str, ...]
    kernels_not_in_both: tuple[str, ...]
    verdicts: tuple[VerdictChange, ...]
    one_sided: tuple[str, ...]
    level: float
    needed: int
    same: int
    measures: tuple[Row, ...]
    ignored: tuple[Row, ...]
    untold: tuple[Row, ...]
    result: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return values for `json.dumps`."""
        return asdict(self)
