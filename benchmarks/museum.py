"""How often each bug of the museum shows where it must, and where it must not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.bugs import Case, load, repro
from testbed.bugs.kernel_tries import KernelTries
from testbed.bugs.repro import ReproJob, StopRule
from testbed.errors import UsageError
from testbed.guest.factory import open_factory
from testbed.host import paths
from testbed.progress import Silent


def pieces(names: tuple[str, ...]) -> dict[str, Case]:
    """Return the bugs of these names, or all."""
    files = sorted((paths.shipped("topologies") / "bugs").glob("*.yaml"))
    found = {file.stem: load(file) for file in files if not names or file.stem in names}
    missing = set(names) - set(found)
    if missing:
        raise UsageError(
            f"museum: expected some of {', '.join(file.stem for file in files)}, got {', '.join(sorted(missing))}"
        )
    return found


async def measure(
    names: tuple[str, ...], kernels: tuple[str, ...], tries: int, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Return a row for each bug on each of its kernels, of these or all, in the order of the museum."""
    chosen = pieces(names)
    named = dict.fromkeys(
        spec for case in chosen.values() for spec in (*case.bug.kernels.shows, *case.bug.kernels.clean)
    )
    if unknown := sorted(set(kernels) - set(named)):
        raise UsageError(f"--kernels: expected some of {', '.join(named)}, got {', '.join(unknown)}")
    wanted = set(kernels or named)
    rows: list[dict[str, Any]] = []
    async with open_factory(Silent(), kernels=tuple(sorted(wanted))) as factory:
        for name, case in chosen.items():
            limits = StopRule(tries=tries, timeout_s=case.bug.timeout_s, every=True)
            where = (folder or paths.new_run_folder(factory.folders.runs)) / name
            job = ReproJob(
                factory=factory, case=case, limits=limits, seed=1, folder=where, on_try=lambda kernel, one: None
            )
            for must_show, specs in ((True, case.bug.kernels.shows), (False, case.bug.kernels.clean)):
                for spec in specs:
                    if spec in wanted:
                        tried = await repro.try_kernel(job, await factory.kernel(spec), must_show=must_show)
                        rows.append(_row(name, case, tried))
    return rows


def _row(name: str, case: Case, tried: KernelTries) -> dict[str, Any]:
    rate, median_s = tried.rate, tried.median_hit_s
    right = rate.share >= case.bug.rate if tried.must_show else rate.hits == 0
    return {
        "bug": name,
        "kernel": tried.kernel.release,
        "must": "show" if tried.must_show else "be clean",
        "hits": f"{rate.hits} of {rate.tries}",
        "interval": f"{rate.low:.0%} to {rate.high:.0%}",
        "median": "" if median_s is None else f"{median_s:.1f} s",
        "no result": tried.troubles,
        "as it must be": "yes" if right and not tried.troubles else "NO",
        "took": f"{tried.took_s:.0f} s",
    }


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|" + "---|" * len(rows[0])
    yield from ("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows)
