"""Options and jobs that `reduce` and `bisect` share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from testbed.bugs import Case
from testbed.bugs.repro import OnTry, ReproJob, StopRule
from testbed.guest.factory import GuestFactory
from testbed.host import paths

BugFile = Annotated[Path, typer.Argument(help="Bug file.")]
ErrorChance = Annotated[float, typer.Option("--error", min=0.0001, max=0.3, help="The probability of a wrong answer.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Guests at once; by default as many as fit.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Options of a search that tries a bug many times, as they were given. `error`: the chance of a wrong answer."""

    file: Path
    error: float
    jobs: int | None
    as_json: bool
    quiet: bool


def make_job(factory: GuestFactory, case: Case, jobs: int | None, on_try: OnTry) -> ReproJob:
    """Return a job in a new run folder, with a random seed and the limits of the bug file."""
    limits = StopRule(tries=case.bug.tries, timeout_s=case.bug.timeout_s, jobs=jobs)
    folder = paths.new_run_folder(factory.folders.runs)
    return ReproJob(
        factory=factory, case=case, limits=limits, seed=secrets.randbelow(1 << 31), folder=folder, on_try=on_try
    )
