"""What `repro.json`, `reduce.json`, `bisect.json` and `suite.json` hold, as models: one that is read may be old, or broken."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from testbed.report.schema import Partial


class _Known(BaseModel):
    """Later versions may add keys; a reader lets those pass that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Account(_Known):
    """One disk during one try: bytes, as its emulated device counted them and as the guest's kernel accounts for them; None: not known.
    `finding`: how the two contradict each other; `note`: why they cannot be compared."""

    disk: str
    device_read_bytes: int | None
    device_written_bytes: int | None
    guest_read_bytes: int | None
    guest_written_bytes: int | None
    finding: str
    note: str


class Attempt(_Known):
    """One try. `evidence`: its folder, below `guests` of the run's. Times in seconds. `last_line`: that the script printed; `uncounted`:
    lines that matched and were not the script's; `kernel_log`: what the kernel complained of, whatever the signature is, and whether
    its log was not read."""

    number: int
    seed: int
    outcome: Literal["hit", "miss", "trouble"]
    end: str
    why: str
    condition: int | None
    seen: str | None
    took_s: float
    hit_after_s: float | None
    status: int | None
    evidence: str
    dump: str
    last_line: str = ""
    uncounted: list[str] = []
    disks: list[Account] = []
    kernel_log: list[str] = []


class Kernel(_Known):
    """All tries on one kernel. `interval`: of the rate, at 95 %; `stopped` at a hit, when `cut` other tries ran. `told_apart`: of a
    kernel on which it must not show and was not seen: whether from all on which it must. `ended`: no more tries were to come."""

    name: str
    release: str
    origin: str
    sha256: str
    must_show: bool
    verdict: Literal["shows", "absent", "trouble"]
    hits: int
    tries: int
    troubles: int
    interval: tuple[float, float]
    stopped: bool
    cut: int
    first_hit: int | None
    first_hit_s: float | None
    median_hit_s: float | None
    took_s: float
    attempts: list[Attempt]
    told_apart: bool | None = None
    ended: bool = True


class Asked(Kernel):
    """A kernel of a bisection, as the list calls it."""

    kernel: str
    answer: Literal["good", "bad", "skip", "unfinished"]
    why: str


class Step(_Known):
    """A candidate of a reduction; `folder`: of its guests, from the run's, or empty."""

    what: str
    kept: bool
    hits: int
    tries: int
    why: str
    folder: str


class Bug(_Known):
    summary: str
    source: str
    signature: list[str]


class Host(_Known):
    kernel: str
    cores: int
    memory_bytes: int
    qemu: str
    accelerator: str


class Image(_Known):
    name: str
    sha256: str


class _Document(_Known):
    """A run; complete, unless it is `partial`."""

    version: Literal[1]
    run: str
    partial: Partial | None = None
    command: list[str]
    host: Host
    image: Image
    took_s: float
    reason: str


class _OfBug(_Document):
    bug: Bug
    seed: int


class Repro(_OfBug):
    what: Literal["repro"]
    result: Literal["reproduced", "not reproduced", "invalid", "not told apart", "trouble", "unfinished"]
    kernels: list[Kernel]


class Reduce(_OfBug):
    """`kernels`: the one on which it was reduced."""

    what: Literal["reduce"]
    result: Literal["reduced", "not reproduced", "unfinished"]
    kernels: tuple[Kernel]
    steps: list[Step]
    smaller: str


class Bisect(_OfBug):
    """`result`: of the search, or what the one kernel is that was asked for `git bisect run`."""

    what: Literal["bisect"]
    result: Literal["bisected", "wrong ends", "comes and goes", "good", "bad", "skip", "unfinished"]
    kernels: list[str]
    asked: list[Asked]


class SuiteKernel(_Known):
    name: str
    release: str
    origin: str
    sha256: str


class SuiteTest(_Known):
    """One test, for one of its devices or conditions. `runtime`: as it says it; `folder`: of its guest, from the run's."""

    name: str
    group: str
    status: Literal["pass", "fail", "skip", "hang", "lost", "error"]
    reason: str
    runtime: str
    details: list[str]
    measured: dict[str, str]
    folder: str


class Suite(_Document):
    """Somebody else's shell tests; `checkout`: where they came from."""

    what: Literal["suite"]
    result: Literal["passed", "failed", "no result", "skipped", "unfinished"]
    checkout: str
    kernel: SuiteKernel
    tests: list[SuiteTest]


# By the file that a run of each leaves.
MODELS: dict[str, type[BaseModel]] = {"repro.json": Repro, "reduce.json": Reduce, "bisect.json": Bisect, "suite.json": Suite}
