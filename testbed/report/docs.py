"""The catalogue of scenarios as Markdown: what docs/scenarios.md holds."""

from __future__ import annotations

from testbed.scenarios.scenario import Scenario

_HEAD = """\
# Scenarios

Made by `./tb scenarios --markdown >docs/scenarios.md`; a test keeps it equal to the code.

Each scenario runs on a fresh guest. On a kernel without the series it must show the gap, on one with it the gap must be closed, and its
controls must hold on both; anything else is no PASS. "Patch" counts the series: 1 a worker for each cgroup, 2 nested active memcg, 3 the
active memcg where no mm is set, 4 charge memory and I/O to the issuer. Points are `scenario/disk/filesystem`; the first is the one of
`--quick`.
"""


def markdown(scenarios: tuple[Scenario, ...]) -> str:
    """The whole file."""
    return "\n".join([_HEAD, *(_section(scenario) for scenario in scenarios)])


def _section(scenario: Scenario) -> str:
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
