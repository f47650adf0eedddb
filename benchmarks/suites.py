"""Compares several runs of `testbed suite`: the result of each test on each kernel, and which tests vary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from testbed.errors import UsageError
from testbed.host import paths
from testbed.report import results
from testbed.report.bugs import files
from testbed.report.bugs.schema import Suite
from testbed.report.markdown import cell

# The results of a test, by kernel: a status and its reason for each run.
Seen = dict[str, dict[str, list[tuple[str, str]]]]


def read(run: str) -> Suite:
    """Return the results of a run of `testbed suite`.

    :raise UsageError: the run is another kind of run.
    """
    folder = results.locate(run, paths.folders().runs)
    found = files.read(folder)
    if not isinstance(found, Suite):
        raise UsageError(f"run {run!r}: expected a run of `testbed suite`, got another: {folder}")
    return found


def markdown(documents: Sequence[Suite]) -> str:
    """Return a table of tests by kernel, the reasons of tests that did not pass, and the tests that varied on one
    kernel.
    """
    return "\n".join(_lines(documents)) + "\n"


def _lines(documents: Sequence[Suite]) -> Iterator[str]:
    seen = _seen(documents)
    kernels = list(dict.fromkeys(document.kernel.name for document in documents))
    yield from (f"| test | {' | '.join(kernels)} |", f"|---|{'---|' * len(kernels)}")
    for test, by_kernel in seen.items():
        yield f"| {cell(test)} | {' | '.join(_said(by_kernel.get(kernel, [])) for kernel in kernels)} |"
    yield from ("", "Not the same in each run:", "")
    racy = [
        f"- {cell(test)} on {kernel}: "
        + "; ".join(f"{status}: {cell(reason)}" if reason else status for status, reason in each)
        for test, by_kernel in seen.items()
        for kernel, each in by_kernel.items()
        if len({status for status, _ in each}) > 1
    ]
    yield from racy or ("none",)
    yield from ("", "| status | why | tests |", "|---|---|---|")
    for (status, reason), tests in _reasons(seen).items():
        yield f"| {status} | {cell(reason)} | {', '.join(cell(test) for test in tests)} |"
    yield ""
    for document in documents:
        end = f"{document.partial}; " if document.partial else ""
        kernel = document.kernel
        counts = f"{document.reason} in {document.took_s:.0f} s"
        yield f"- {document.run}, {kernel.name} ({kernel.release}): {end}{counts}"


def _seen(documents: Sequence[Suite]) -> Seen:
    """Collect the results. A test that runs once for each device (`block/005 (vdc)`) has one result without a device if
    it hung or lost its guest: that result then counts for each of its devices.
    """
    devices: dict[str, dict[str, None]] = {}
    for document in documents:
        for test in document.tests:
            devices.setdefault(test.name.partition(" (")[0], {})[test.name] = None
    seen: Seen = {}
    for document in documents:
        for test in document.tests:
            for name in [name for name in devices.get(test.name, {}) if name != test.name] or [test.name]:
                row = seen.setdefault(name, {})
                row.setdefault(document.kernel.name, []).append((test.status, test.reason))
    return dict(sorted(seen.items()))


def _said(each: list[tuple[str, str]]) -> str:
    """Return the status of one test on one kernel, or its statuses in turn."""
    statuses = [status for status, _ in each]
    return statuses[0] if len(set(statuses)) == 1 else ", then ".join(statuses) or "not run"


def _reasons(seen: Seen) -> dict[tuple[str, str], list[str]]:
    """Return the tests that did not pass, by status and reason; each with its kernels, unless it is all of them."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for test, by_kernel in seen.items():
        for kernel, each in by_kernel.items():
            for status, reason in dict.fromkeys(each):
                if status != "pass":
                    found.setdefault((status, reason), {}).setdefault(test, []).append(kernel)
    return {
        why: [
            test if len(kernels) == len(seen[test]) else f"{test} ({', '.join(kernels)})"
            for test, kernels in tests.items()
        ]
        for why, tests in sorted(found.items())
    }
