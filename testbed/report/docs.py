"""Makes generated pages of docs/ from the code: scenarios.md, errors.md and hardware.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.errors import TestbedError, error_classes
from testbed.hardware import commands
from testbed.hardware.profiles import PROFILES

if TYPE_CHECKING:
    # Pages of errors and devices need no scenario.
    from testbed.scenarios.scenario import Scenario

_SCENARIOS = """\
# Scenarios

Made by `./tb scenarios --markdown >docs/scenarios.md`; a test keeps it equal to the code.

Each scenario runs on a fresh guest. A kernel without the series must show the gap, a kernel with it must close the
gap, and the scenario's controls must hold on both; otherwise the verdict is not PASS. "Patch" counts the series: 1 a
worker for each cgroup, 2 nested active memcg, 3 the active memcg where no mm is set, 4 charge memory and I/O to the
issuer. Points are `scenario/disk/filesystem`; the first is the one of `--quick`.
"""


def scenarios_markdown(scenarios: tuple[Scenario, ...]) -> str:
    """Return the text of docs/scenarios.md."""
    return "\n".join([_SCENARIOS, *(_scenario(scenario) for scenario in scenarios)])


def _scenario(scenario: Scenario) -> str:
    points = ", ".join(
        f"`{'/'.join(word for word in (scenario.name, point.name) if word)}`" for point in scenario.points
    )
    rows = [
        ("patch", ", ".join(str(number) for number in scenario.patches)),
        ("without the series", scenario.predicted_base),
        ("with it", scenario.predicted_patched),
        ("steps", scenario.what),
        ("needs", "; ".join(need.what for need in scenario.needs) or "nothing"),
        ("runs", scenario.cores.value),
        ("source", scenario.source),
        ("points", points),
    ]
    if scenario.found:
        rows.append(("found", scenario.found))
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return f"## {scenario.name}\n\n{scenario.claim}.\n\n| | |\n|---|---|\n{table}\n"


_ERRORS = """\
# Errors

Made by `./tb errors --markdown >docs/errors.md`; a test keeps it equal to the code.

A message says where, what was expected, what was got, and what to do. `testbed --debug VERB` (or `TESTBED_DEBUG=1`)
also prints the log, a traceback and the code; for a guest of `up` they go into its `supervisor.log`. With `--json`
the last line on standard error is `{"event": "error", "code": ...}`. `log.jsonl` in a run's folder holds the log of
that run. The meaning of a code does not change; `testbed errors CODE` prints its row.

The command exits with 2, unless it has a verdict: PASS 0, FAIL 1, INVALID 3, everything skipped 4, and INFRA 2 where
a guest was lost. If a signal stops it, it exits with 128 and the signal's number; 141 means that the reader of its
output closed the pipe early. `validate` exits with 1 if a file is wrong or cannot be read, `testbed ssh` with the
status of the command in the guest, and `testbed cp` with that of scp.

| code | class | what it means | who acts | how |
|---|---|---|---|---|
"""


def errors_markdown() -> str:
    """Return the text of docs/errors.md."""
    return _ERRORS + "".join(
        f"| {kind.code} | `{kind.__name__}` | {_meaning(kind)} | {kind.who} | {kind.act} |\n"
        for kind in error_classes()
    )


def _meaning(kind: type[TestbedError]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").removesuffix(".")


_PROFILES = """\
# Named devices

Made by `./tb profiles --markdown >docs/hardware.md`; a test keeps it equal to the code. A disk of a topology takes
one with `profile:`, a disk of a running guest with `testbed throttle VM DISK NAME` (its limits) and `testbed delay VM
DISK NAME` (its delay). `scale: 0.1` is the same device at a tenth of its speed, for a host that is too slow for it.
`testbed bench disks` measures how fast this host is; from then on the testbed warns of profiles that are faster.

| name | device | limits | delay | source |
|---|---|---|---|---|
"""


def profiles_markdown() -> str:
    """Return the text of docs/hardware.md."""
    return _PROFILES + "".join(f"{row}\n" for row in _profile_rows())


def _profile_rows() -> Iterator[str]:
    for name, profile in PROFILES.items():
        delay = " ".join(commands.format_latency(profile.latency)) if not profile.latency.none else "none"
        limits = " ".join(commands.format_throttle(profile.throttle))
        yield f"| `{name}` | {profile.title} | {limits} | {delay} | {profile.source} |"
