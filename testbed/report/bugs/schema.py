"""Models of `repro.json`, `reduce.json`, `bisect.json` and `suite.json`.

A reader validates them: a file may be old or damaged. A writer makes them with `model_construct`, without validation.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from testbed.api.blktests import RESULTS
from testbed.report.fields import Below, Count, DocumentModel, Every, Named, Seconds, Share, Whole
from testbed.report.partial import Partial
from testbed.report.schema import ImageFacts


class Account(DocumentModel):
    """The bytes of one disk during one try, as counted by its emulated device and by the guest's kernel; None: not
    known. `finding`: how the two contradict each other; `note`: why they cannot be compared."""

    disk: str
    device_read_bytes: Count | None
    device_written_bytes: Count | None
    guest_read_bytes: Count | None
    guest_written_bytes: Count | None
    finding: str
    note: str


class Attempt(DocumentModel):
    """One try. `evidence`: the folder of its logs, below `guests` in the run's folder. Times in seconds. `last_line`:
    the last line that the script printed; `uncounted`: lines that matched but that the script did not print;
    `kernel_log`: what the kernel complained of, whatever the signature is, and whether its log could not be read."""

    number: Count
    seed: Whole
    outcome: Literal["hit", "miss", "trouble"]
    end: str
    why: str
    condition: Count | None
    seen: str | None
    ready_s: Seconds = 0.0
    took_s: Seconds
    hit_after_s: Seconds | None
    status: Whole | None
    console_bytes: Count = 0
    evidence: Below
    dump: str
    disks: Every[Account] = Field(default=[])
    last_line: str = ""
    uncounted: Every[str] = Field(default=[])
    kernel_log: Every[str] = Field(default=[])

    @model_validator(mode="after")
    def _only_a_hit_has_seen(self) -> Attempt:
        if (self.outcome == "hit") is not (self.seen is not None):
            raise ValueError("expected what was `seen` of a hit, and of nothing else")
        return self


class _Answer(DocumentModel):
    """`kernel`: as the list of the bisection names it."""

    kernel: str
    answer: Literal["good", "bad", "skip", "unfinished"]
    why: str


class Kernel(DocumentModel):
    """All tries on one kernel. `interval`: of the rate, at 95 %. `stopped`: at a hit, while `cut` other tries ran.
    `ended`: no more tries were to come. `told_apart`: of a kernel on which the bug must not show and did not: whether
    from all kernels on which it must. `cached`: the kernel's folder in the cache of the machine that ran it."""

    name: str
    release: str
    origin: str
    sha256: str
    cached: Below = ""
    must_show: bool
    verdict: Literal["shows", "absent", "trouble"]
    hits: Count
    tries: Count
    troubles: Count
    rate: Share | None = None
    interval: Every[Share] = Field(min_length=2, max_length=2)
    stopped: bool
    cut: Count
    ended: bool = True
    first_hit: Count | None
    first_hit_s: Seconds | None
    median_hit_s: Seconds | None
    took_s: Seconds
    attempts: Every[Attempt]
    told_apart: bool | None = None

    @model_validator(mode="after")
    def _counts_follow_from_the_tries(self) -> Kernel:
        outcomes = Counter(attempt.outcome for attempt in self.attempts)
        hits, tries, troubles = outcomes["hit"], outcomes["hit"] + outcomes["miss"], outcomes["trouble"]
        if (self.hits, self.tries, self.troubles) != (hits, tries, troubles):
            raise ValueError(
                f"kernel {self.name}: expected {hits} hits in {tries} tries and {troubles} troubles, "
                "as its attempts say"
            )
        if len({field is None for field in (self.first_hit, self.first_hit_s)} | {hits == 0}) > 1:
            raise ValueError(
                f"kernel {self.name}: expected `first_hit` and `first_hit_s` where there was a hit, or neither"
            )
        verdict = "shows" if hits else "trouble" if troubles or not tries or not self.ended else "absent"
        if self.verdict != verdict:
            raise ValueError(
                f"kernel {self.name}: expected the verdict {verdict}, as its tries say, got {self.verdict}"
            )
        return self


class Asked(Kernel, _Answer):
    """A kernel of a bisection, with the answer that its tries gave."""

    @model_validator(mode="after")
    def _the_answer_follows_from_the_tries(self) -> Asked:
        if (self.answer == "bad" and not self.hits) or (self.answer == "good" and (self.hits or not self.tries)):
            raise ValueError(
                f"kernel {self.kernel}: expected another answer of {self.hits} hits in {self.tries} tries, "
                f"got {self.answer}"
            )
        return self


class Step(DocumentModel):
    """A candidate of a reduction. `folder`: the logs of its guests, relative to the run's folder; empty for none."""

    what: str
    kept: bool
    hits: Count
    tries: Count
    why: str
    folder: Below


class Bug(DocumentModel):
    summary: str
    source: str
    signature: Every[str]


class Host(DocumentModel):
    kernel: str
    cores: Count
    memory_bytes: Count
    qemu: str
    qemu_identity: str = ""
    accelerator: str


class _Document(DocumentModel):
    """A run; complete unless it has `partial`."""

    version: Literal[1]
    what: str
    run: str
    partial: Partial | None = None
    command: Every[str]
    host: Host
    image: ImageFacts
    took_s: Seconds

    @property
    def file_name(self) -> str:
        """The name of its file in the run's folder."""
        return f"{self.what}.json"


class _OfBug(_Document):
    bug: Bug
    seed: Whole


class Limits(DocumentModel):
    """The limits of a reproduction. `until`: the rate that the interval must be above; `jobs`: guests at once."""

    tries: Count
    timeout_s: Seconds
    until: Share | None
    jobs: Count | None


class Repro(_OfBug):
    what: Literal["repro"]
    result: Literal["reproduced", "not reproduced", "invalid", "not told apart", "trouble", "unfinished"]
    reason: str
    limits: Limits | None = None
    kernels: Every[Kernel]

    @property
    def part_count(self) -> int:
        return len(self.kernels)

    @model_validator(mode="after")
    def _the_result_follows_from_the_kernels(self) -> Repro:
        if len({kernel.name for kernel in self.kernels}) < len(self.kernels):
            raise ValueError("expected kernels of different names")
        _check_result(self.result, _result_of(self.kernels), partial=self.partial is not None)
        return self


class Reduce(_OfBug):
    """`kernels`: the one on which the bug was reduced. `smaller`: the text of the reduced bug."""

    what: Literal["reduce"]
    result: Literal["reduced", "not reproduced", "unfinished"]
    reason: str
    kernels: Every[Kernel] = Field(min_length=1, max_length=1)
    steps: Every[Step]
    dropped: Every[str] = Field(default=[])
    guests: Count = 0
    smaller: str

    @property
    def part_count(self) -> int:
        return len(self.steps)

    @model_validator(mode="after")
    def _a_reduced_bug_shows(self) -> Reduce:
        if self.result == "reduced" and not self.kernels[0].hits:
            raise ValueError("expected `not reproduced` of a bug that did not show, got `reduced`")
        return self


class Bisect(_OfBug):
    """`result`: of the search, or the answer of the one kernel that was asked for `git bisect run`; that one has no
    ends."""

    what: Literal["bisect"]
    result: Literal["bisected", "wrong ends", "comes and goes", "good", "bad", "skip", "unfinished"]
    reason: str
    kernels: Every[str]
    not_kernels: Every[str] = Field(default=[])
    good: str = ""
    bad: str = ""
    skipped: Every[str] = Field(default=[])
    wrong: str = ""
    rate: Share | None = None
    asked: Every[Asked]
    guests: Count = 0

    @property
    def part_count(self) -> int:
        return len(self.asked)

    @model_validator(mode="after")
    def _the_result_follows_from_the_answers(self) -> Bisect:
        answers = {asked.answer for asked in self.asked}
        if not {"bisected": {"good", "bad"}, "good": {"good"}, "bad": {"bad"}}.get(self.result, set()) <= answers:
            raise ValueError(
                f"expected another result of {', '.join(sorted(answers)) or 'no answers'}, got {self.result}"
            )
        return self


class SuiteKernel(DocumentModel):
    name: str
    release: str
    origin: str
    sha256: str


class SuiteTest(DocumentModel):
    """One test, for one of its devices or conditions. `runtime`: as the test reports it; `folder`: the logs of its
    guest, relative to the run's folder."""

    name: str
    group: str
    status: Literal["pass", "fail", "skip", "hang", "lost", "error"]
    reason: str
    runtime: str
    details: Every[str]
    measured: Named[str]
    folder: Below


class Suite(_Document):
    """A foreign suite of shell tests. `checkout`: the folder of its source."""

    what: Literal["suite"]
    result: Literal["passed", "failed", "no result", "skipped", "unfinished"]
    reason: str
    checkout: str
    kernel: SuiteKernel
    tests: Every[SuiteTest]

    @property
    def part_count(self) -> int:
        return len(self.tests)

    @model_validator(mode="after")
    def _the_result_follows_from_the_tests(self) -> Suite:
        statuses = {test.status for test in self.tests}
        result = next((result for status, result in RESULTS.items() if status.value in statuses), "unfinished")
        _check_result(self.result, result, partial=self.partial is not None)
        return self


def _result_of(kernels: list[Kernel]) -> str:
    """Return the result of the tries on several kernels, by the rules of `bugs.conclusion`."""
    clean = [kernel for kernel in kernels if not kernel.must_show]
    if any(kernel.verdict == "shows" for kernel in clean):
        return "invalid"
    if any(kernel.verdict == "trouble" for kernel in kernels) or len(clean) == len(kernels):
        return "trouble"
    if any(kernel.verdict == "absent" for kernel in kernels if kernel.must_show):
        return "not reproduced"
    return "not told apart" if any(kernel.told_apart is False for kernel in clean) else "reproduced"


def _check_result(result: str, of_parts: str, *, partial: bool) -> None:
    """:raise ValueError: the result is not that of its parts. Of a partial run only what later parts cannot undo
    counts."""
    expected = of_parts if not partial or of_parts in ("invalid", "failed") else "unfinished"
    if result != expected:
        raise ValueError(f"expected the result `{expected}`, as its parts say, got `{result}`")


BugDocument = Repro | Reduce | Bisect | Suite
# By the file that a run of each writes.
MODELS: dict[str, type[BugDocument]] = {
    "repro.json": Repro,
    "reduce.json": Reduce,
    "bisect.json": Bisect,
    "suite.json": Suite,
}
