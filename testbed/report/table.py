"""Results and host facts as tables for a person."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from testbed.host import Host
from testbed.report.results import by_case, gravest_attempt, spread
from testbed.runner import Result
from testbed.store.kernel_files import KernelFiles
from testbed.units import format_size
from testbed.verdict import Evidence, Measure, Verdict, gravest

_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INVALID: "bold yellow",
    Verdict.SKIP: "cyan",
    Verdict.INFRA: "bold magenta",
}


def results_table(results: tuple[Result, ...], kernels: dict[str, KernelFiles]) -> Table:
    """One row a case: its measures on each kernel, the verdict, and why. Of several attempts the gravest, with medians and pass rate."""
    table = Table(show_lines=True, title_justify="left")
    table.add_column("scenario", no_wrap=True, vertical="top")
    for side, kernel in kernels.items():
        table.add_column(f"{side}\n{escape(kernel.release)}", ratio=3, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason", ratio=2)
    for attempts in by_case(results):
        told = gravest_attempt(attempts)
        verdict = told.judgement.verdict
        shown = Text(verdict.value, style=_STYLES[verdict])
        if len(attempts) > 1:
            shown.append(f"\n{sum(result.judgement.verdict is Verdict.PASS for result in attempts)} of {len(attempts)}", style="dim")
        table.add_row(
            told.case.name,
            *(_cell(told, side, spread(attempts, side)) for side in kernels),
            shown,
            escape(told.judgement.reason.splitlines()[0]),
        )
    return table


def matrix_table(results: tuple[Result, ...], kernels: dict[str, KernelFiles]) -> Table:
    """One row a case, one column a kernel: its verdict there, and what was seen."""
    table = Table(show_lines=True, title_justify="left")
    table.add_column("scenario", no_wrap=True, vertical="top")
    for side, kernel in kernels.items():
        table.add_column(f"{side}\n{escape(kernel.release)}", ratio=1, overflow="fold")
    for attempts in by_case(results):
        row: list[RenderableType] = []
        for side in kernels:
            judgement = gravest(tuple(result.by_kernel[side] for result in attempts))
            row.append(Text.assemble((judgement.verdict.value, _STYLES[judgement.verdict]), "\n", judgement.reason.splitlines()[0]))
        table.add_row(attempts[0].case.name, *row)
    return table


def _cell(result: Result, side: str, spread: dict[str, dict[str, float]]) -> RenderableType:
    done = result.sides[side]
    outcome = done.outcome
    if not isinstance(outcome, Evidence):
        return Text("-", style="dim")
    lines = [Text(f"{measure.name}: {_value(replace(measure, value=spread[measure.name]['median']))}") for measure in outcome.measures]
    broken = [control for control in outcome.controls if not control.holds]
    kept = len(outcome.controls) - len(broken)
    if outcome.controls:
        lines.append(Text(f"controls: {kept} of {len(outcome.controls)} hold", style="yellow" if broken else "dim"))
    for balance in outcome.balances:
        if balance.is_finding:
            said = f"finding: {balance.what}: {balance.accounted} accounted, {balance.real} real ({balance.share:.1%})"
            lines.append(Text(said, style="yellow"))
    unexpected = {finding.kind.value for finding in done.findings if finding.kind not in result.case.scenario.expected_log}
    if unexpected:
        lines.append(Text(f"kernel log: {', '.join(sorted(unexpected))}", style="yellow"))
    return Group(*lines)


def _value(measure: Measure) -> str:
    if measure.unit == "bytes":
        return f"{format_size(measure.value)}B" if measure.value >= 1024 else f"{measure.value:.0f} bytes"
    number = f"{measure.value:.1f}" if isinstance(measure.value, float) else str(measure.value)
    return f"{number} {measure.unit}"


def show_losses(results: tuple[Result, ...], console: Console) -> None:
    """What did not fit into a table: the console tails of lost guests, and where their evidence is."""
    for result in results:
        if result.judgement.verdict is Verdict.INFRA:
            console.print(f"{result.case.name}: {result.judgement.reason}", markup=False, highlight=False, soft_wrap=True)


def host_table(host: Host, tools: dict[str, str]) -> Table:
    """The facts of `testbed doctor`."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row(
        "host",
        f"Linux {host.kernel}, {host.cores} cores, {format_size(host.memory_bytes)} memory ({format_size(host.memory_free_bytes)} free)",
    )
    table.add_row("disk", f"{format_size(host.disk_free_bytes)} free in the cache")
    table.add_row("QEMU", f"{host.qemu.version} ({host.qemu.path}), sandbox {'yes' if host.qemu.seccomp else 'no'}")
    table.add_row(
        "clones",
        "warm: guests are restored from a template" if host.qemu.warm_clones else f"no, guests boot cold: {host.qemu.why_not_warm}",
    )
    table.add_row("KVM", escape(f"{'works' if host.kvm.works else 'not used'}: {host.kvm.why}"))
    table.add_row("runs on", "KVM" if host.accelerator == "kvm" else "TCG, QEMU's own emulation: correct, and slower than KVM")
    for tool, where in tools.items():
        table.add_row(tool, escape(where))
    return table
