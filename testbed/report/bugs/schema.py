"""What `repro.json`, `reduce.json`, `bisect.json` and `suite.json` hold, as models: one that is read may be old, or broken."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from testbed.api.blktests import RESULTS
from testbed.report.fields import Below, Count, Every, KnownFields, Named, Seconds, Share, Whole
from testbed.report.schema import Partial


class Account(KnownFields):
    """One disk during one try: bytes, as its emulated device counted them and as the guest's kernel accounts for them; None: not known.
    `finding`: how the two contradict each other; `note`: why they cannot be compared."""

    disk: str
    device_read_bytes: Count | None
    device_written_bytes: Count | None
    guest_read_bytes: Count | None
    guest_written_bytes: Count | None
    finding: str
    note: str


class Attempt(KnownFields):
    """One try. `evidence`: its folder, below `guests` of the run's. Times in seconds. `last_line`: that the script printed; `uncounted`:
    lines that matched and were not the script's; `kernel_log`: what the kernel complained of, whatever the signature is, and whether
    its log was not read."""

    number: Count
    seed: Whole
    outcome: Literal["hit", "miss", "trouble"]
    end: str
    why: str
    condition: Count | None
    seen: str | None
    took_s: Seconds
    hit_after_s: Seconds | None
    status: Whole | None
    evidence: Below
    dump: str
    last_line: str = ""
    uncounted: Every[str] = Field(default=[])
    disks: Every[Account] = Field(default=[])
    kernel_log: Every[str] = Field(default=[])

    @model_validator(mode="after")
    def _a_hit_was_seen(self) -> Attempt:
        if (self.outcome == "hit") is not (self.seen is not None):
            raise ValueError("expected what was `seen` of a hit, and of nothing else")
        return self


class Kernel(KnownFields):
    """All tries on one kernel. `interval`: of the rate, at 95 %; `stopped` at a hit, when `cut` other tries ran. `told_apart`: of a
    kernel on which it must not show and was not seen: whether from all on which it must. `ended`: no more tries were to come. `cached`: its
    folder in the cache of the machine that ran it."""

    name: str
    release: str
    origin: str
    sha256: str
    must_show: bool
    verdict: Literal["shows", "absent", "trouble"]
    hits: Count
    tries: Count
    troubles: Count
    interval: tuple[Share, Share] = Field(strict=False)
    stopped: bool
    cut: Count
    first_hit: Count | None
    first_hit_s: Seconds | None
    median_hit_s: Seconds | None
    took_s: Seconds
    attempts: Every[Attempt]
    told_apart: bool | None = None
    ended: bool = True
    cached: Below = ""

    @model_validator(mode="after")
    def _counts_are_those_of_the_tries(self) -> Kernel:
        outcomes = Counter(one.outcome for one in self.attempts)
        hits, tries, troubles = outcomes["hit"], outcomes["hit"] + outcomes["miss"], outcomes["trouble"]
        if (self.hits, self.tries, self.troubles) != (hits, tries, troubles):
            raise ValueError(
                f"kernel {self.name}: expected {hits} hits in {tries} tries and {troubles} troubles, as its attempts say"
            )
        if len({said is None for said in (self.first_hit, self.first_hit_s)} | {hits == 0}) > 1:
            raise ValueError(
                f"kernel {self.name}: expected `first_hit` and `first_hit_s` where there was a hit, or neither"
            )
        verdict = "shows" if hits else "trouble" if troubles or not tries or not self.ended else "absent"
        if self.verdict != verdict:
            raise ValueError(
                f"kernel {self.name}: expected the verdict {verdict}, as its tries say, got {self.verdict}"
            )
        return self


class Asked(Kernel):
    """A kernel of a bisection, as the list calls it."""

    kernel: str
    answer: Literal["good", "bad", "skip", "unfinished"]
    why: str

    @model_validator(mode="after")
    def _its_answer_is_that_of_its_tries(self) -> Asked:
        if (self.answer == "bad" and not self.hits) or (self.answer == "good" and (self.hits or not self.tries)):
            raise ValueError(
                f"kernel {self.kernel}: expected another answer of {self.hits} hits in {self.tries} tries, got {self.answer}"
            )
        return self


class Step(KnownFields):
    """A candidate of a reduction; `folder`: of its guests, from the run's, or empty."""

    what: str
    kept: bool
    hits: Count
    tries: Count
    why: str
    folder: Below


class Bug(KnownFields):
    summary: str
    source: str
    signature: Every[str]


class Host(KnownFields):
    kernel: str
    cores: Count
    memory_bytes: Count
    qemu: str
    accelerator: str


class Image(KnownFields):
    name: str
    sha256: str


class _Document(KnownFields):
    """A run; complete, unless it is `partial`."""

    version: Literal[1]
    run: str
    partial: Partial | None = None
    command: Every[str]
    host: Host
    image: Image
    took_s: Seconds
    reason: str


class _OfBug(_Document):
    bug: Bug
    seed: Whole


class Repro(_OfBug):
    what: Literal["repro"]
    result: Literal["reproduced", "not reproduced", "invalid", "not told apart", "trouble", "unfinished"]
    kernels: Every[Kernel]

    @model_validator(mode="after")
    def _its_result_is_that_of_the_kernels(self) -> Repro:
        if len({one.name for one in self.kernels}) < len(self.kernels):
            raise ValueError("expected kernels of different names")
        _same(self.result, _said(self.kernels), partial=self.partial is not None)
        return self


class Reduce(_OfBug):
    """`kernels`: the one on which it was reduced."""

    what: Literal["reduce"]
    result: Literal["reduced", "not reproduced", "unfinished"]
    kernels: tuple[Kernel] = Field(strict=False)
    steps: Every[Step]
    smaller: str

    @model_validator(mode="after")
    def _what_was_reduced_shows(self) -> Reduce:
        if self.result == "reduced" and not self.kernels[0].hits:
            raise ValueError("expected `not reproduced` of a bug that did not show, got `reduced`")
        return self


class Bisect(_OfBug):
    """`result`: of the search, or what the one kernel is that was asked for `git bisect run`."""

    what: Literal["bisect"]
    result: Literal["bisected", "wrong ends", "comes and goes", "good", "bad", "skip", "unfinished"]
    kernels: Every[str]
    asked: Every[Asked]

    @model_validator(mode="after")
    def _its_result_is_that_of_the_answers(self) -> Bisect:
        answers = {one.answer for one in self.asked}
        if not {"bisected": {"good", "bad"}, "good": {"good"}, "bad": {"bad"}}.get(self.result, set()) <= answers:
            raise ValueError(
                f"expected another result of {', '.join(sorted(answers)) or 'no answers'}, got {self.result}"
            )
        return self


class SuiteKernel(KnownFields):
    name: str
    release: str
    origin: str
    sha256: str


class SuiteTest(KnownFields):
    """One test, for one of its devices or conditions. `runtime`: as it says it; `folder`: of its guest, from the run's."""

    name: str
    group: str
    status: Literal["pass", "fail", "skip", "hang", "lost", "error"]
    reason: str
    runtime: str
    details: Every[str]
    measured: Named[str]
    folder: Below


class Suite(_Document):
    """Somebody else's shell tests; `checkout`: where they came from."""

    what: Literal["suite"]
    result: Literal["passed", "failed", "no result", "skipped", "unfinished"]
    checkout: str
    kernel: SuiteKernel
    tests: Every[SuiteTest]

    @model_validator(mode="after")
    def _its_result_is_that_of_the_tests(self) -> Suite:
        found = {one.status for one in self.tests}
        said = next((result for status, result in RESULTS.items() if status.value in found), "unfinished")
        _same(self.result, said, partial=self.partial is not None)
        return self


def _said(kernels: list[Kernel]) -> str:
    """What the tries on several kernels say together, as `claims.result` does."""
    clean = [one for one in kernels if not one.must_show]
    if any(one.verdict == "shows" for one in clean):
        return "invalid"
    if any(one.verdict == "trouble" for one in kernels) or len(clean) == len(kernels):
        return "trouble"
    if any(one.verdict == "absent" for one in kernels if one.must_show):
        return "not reproduced"
    return "not told apart" if any(one.told_apart is False for one in clean) else "reproduced"


def _same(result: str, said: str, *, partial: bool) -> None:
    """:raise ValueError: the result is not what the cases say; of a partial run only what is to come takes nothing back."""
    expected = said if not partial or said in ("invalid", "failed") else "unfinished"
    if result != expected:
        raise ValueError(f"expected the result `{expected}`, as its parts say, got `{result}`")


# By the file that a run of each leaves.
MODELS: dict[str, type[BaseModel]] = {
    "repro.json": Repro,
    "reduce.json": Reduce,
    "bisect.json": Bisect,
    "suite.json": Suite,
}
