"""Formats results and host facts as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from testbed.host.facts import Host
from testbed.qemu import jail
from testbed.report.live import STYLES
from testbed.report.results import by_case, spread, worst_attempt
from testbed.report.schema import Spread
from testbed.scenarios.runner import Result
from testbed.scenarios.verdict import Evidence, Judgement, Measure, Verdict, worst
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.units import format_size

# On a narrower terminal the columns are too narrow for a reason: each case is a paragraph instead of a row.
_TABLE_FROM = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One case. `cells`: by kernel; `passed`: of several attempts, such as `9 of 10`."""

    name: str
    cells: dict[str, RenderableType]
    judgement: Judgement | None = None
    passed: str = ""

    @property
    def verdict(self) -> Text:
        assert self.judgement is not None
        return Text.assemble(_styled(self.judgement.verdict), *([f"\n{self.passed}"] if self.passed else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cases:
    """Cases by kernel: a table if the terminal is wide enough, else paragraphs."""

    lines: tuple[_Line, ...]
    kernels: dict[str, KernelFiles]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield (
            self._table()
            if options.max_width >= _TABLE_FROM
            else Group(*(self._paragraph(line) for line in self.lines))
        )

    def _table(self) -> Table:
        table = Table(show_lines=True, title_justify="left")
        table.add_column("scenario", no_wrap=True, vertical="top")
        for side, kernel in self.kernels.items():
            table.add_column(f"{side}\n{escape(kernel.release)}", ratio=3, overflow="fold")
        judged = any(line.judgement is not None for line in self.lines)
        if judged:
            table.add_column("verdict", no_wrap=True)
            table.add_column("reason", ratio=2)
        for line in self.lines:
            more = (line.verdict, escape(_reason(line.judgement))) if line.judgement is not None else ()
            table.add_row(line.name, *line.cells.values(), *more)
        return table

    def _paragraph(self, line: _Line) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for side, cell in line.cells.items():
            grid.add_row(Text(f"  {side}\n  {self.kernels[side].release}", style="dim"), cell)
        if line.judgement is None:
            return Group(Text(line.name, style="bold"), grid)
        grid.add_row(Text("  reason", style="dim"), escape(_reason(line.judgement)))
        return Group(
            Text.assemble(_styled(line.judgement.verdict), f" {line.name}", f"  {line.passed}" if line.passed else ""),
            grid,
        )


def results_table(results: tuple[Result, ...], kernels: dict[str, KernelFiles]) -> RenderableType:
    """Show for each case its measures on each kernel, the verdict and its reason. Several attempts are shown as the
    gravest one, with medians and the pass rate."""
    lines = []
    for attempts in by_case(results):
        worst_one = worst_attempt(attempts)
        passed = sum(result.judgement.verdict is Verdict.PASS for result in attempts)
        cells = {side: _cell(worst_one, side, spread(attempts, side)) for side in kernels}
        rate = f"{passed} of {len(attempts)}" if len(attempts) > 1 else ""
        lines.append(_Line(name=worst_one.case.name, cells=cells, judgement=worst_one.judgement, passed=rate))
    return _Cases(lines=tuple(lines), kernels=kernels)


def matrix_table(results: tuple[Result, ...], kernels: dict[str, KernelFiles]) -> RenderableType:
    """Show for each case its verdict and reason on each kernel."""
    lines = []
    for attempts in by_case(results):
        cells: dict[str, RenderableType] = {}
        for side in kernels:
            judgement = worst(tuple(result.by_kernel[side] for result in attempts))
            cells[side] = Text.assemble(_styled(judgement.verdict), "\n", _reason(judgement))
        lines.append(_Line(name=attempts[0].case.name, cells=cells))
    return _Cases(lines=tuple(lines), kernels=kernels)


def _styled(verdict: Verdict) -> tuple[str, str]:
    return verdict.value, STYLES[verdict]


def _reason(judgement: Judgement) -> str:
    return judgement.reason.splitlines()[0]


def _cell(result: Result, side: str, spread: dict[str, Spread]) -> RenderableType:
    done = result.sides[side]
    outcome = done.outcome
    if not isinstance(outcome, Evidence):
        return Text("-", style="dim")
    lines = [
        Text(f"{measure.name}: {_value(replace(measure, value=spread[measure.name].median))}")
        for measure in outcome.measures
    ]
    broken = [control for control in outcome.controls if not control.holds]
    kept = len(outcome.controls) - len(broken)
    if outcome.controls:
        lines.append(Text(f"controls: {kept} of {len(outcome.controls)} hold", style="yellow" if broken else "dim"))
    for balance in outcome.balances:
        if balance.is_finding:
            text = f"finding: {balance.what}: {balance.accounted} accounted, {balance.real} real ({balance.share:.1%})"
            lines.append(Text(text, style="yellow"))
    unexpected = {
        finding.kind.value for finding in done.findings if finding.kind not in result.case.scenario.expected_log
    }
    if unexpected:
        lines.append(Text(f"kernel log: {', '.join(sorted(unexpected))}", style="yellow"))
    lines += (Text(f"timeline: never began: {act}", style="yellow") for act in done.missed)
    return Group(*lines)


def _value(measure: Measure) -> str:
    if measure.unit == "bytes":
        return f"{format_size(measure.value)}iB" if measure.value >= 1024 else f"{measure.value:.0f} bytes"
    number = f"{measure.value:.1f}" if isinstance(measure.value, float) else str(measure.value)
    return f"{number} {measure.unit}"


def show_losses(results: tuple[Result, ...], console: Console) -> None:
    """Print what does not fit into a table: the last console lines of lost guests, and where their logs are."""
    for result in results:
        if result.judgement.verdict is Verdict.INFRA:
            console.print(
                f"{result.case.name}: {result.judgement.reason}", markup=False, highlight=False, soft_wrap=True
            )


def host_table(host: Host, tools: dict[str, str]) -> Table:
    """Make the table of `testbed doctor`."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row(
        "host",
        f"Linux {host.kernel}, {host.cores} cores, {format_size(host.memory_bytes)} memory "
        f"({format_size(host.memory_free_bytes)} free)",
    )
    table.add_row("disk", f"{format_size(host.disk_free_bytes)} free in the cache")
    table.add_row("QEMU", f"{host.qemu.version} ({host.qemu.path}), sandbox {'yes' if host.qemu.seccomp else 'no'}")
    table.add_row(
        "QEMU is",
        f"uid {host.account.uid}" if host.account else f"who you are: {host.why_own_account}",
    )
    table.add_row(
        "it may",
        escape("; ".join(jail.unconfined_parts(host.jail)) or "open what it is handed, and connect to nothing else"),
    )
    table.add_row(
        "clones",
        "warm: guests are restored from a template"
        if host.qemu.warm_clones
        else f"no, guests boot cold: {host.qemu.why_not_warm}",
    )
    table.add_row("KVM", escape(f"{'works' if host.kvm.works else 'not used'}: {host.kvm.why}"))
    table.add_row(
        "runs on", "KVM" if host.accelerator == "kvm" else "TCG, QEMU's own emulation: correct, and slower than KVM"
    )
    for tool, where in tools.items():
        table.add_row(tool, escape(where))
    return table
