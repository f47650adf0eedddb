"""Results and host facts as tables for a person."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from testbed.host import Host
from testbed.runner import Result
from testbed.store.kernel_files import KernelFiles
from testbed.units import format_size
from testbed.verdict import Evidence, Measure, Outcome, Verdict

_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INVALID: "bold yellow",
    Verdict.SKIP: "cyan",
    Verdict.INFRA: "bold magenta",
}


def results_table(results: tuple[Result, ...], kernels: dict[str, KernelFiles]) -> Table:
    """One row a scenario: its measures on each kernel, the verdict, and why."""
    table = Table(show_lines=True, title_justify="left")
    table.add_column("scenario", no_wrap=True, vertical="top")
    for side, kernel in kernels.items():
        table.add_column(f"{side}\n{escape(kernel.release)}", ratio=3, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason", ratio=2)
    for result in results:
        verdict = result.judgement.verdict
        table.add_row(
            result.scenario.name,
            *(_cell(result.sides[side].outcome) for side in kernels),
            Text(verdict.value, style=_STYLES[verdict]),
            escape(result.judgement.reason.splitlines()[0]),
        )
    return table


def _cell(outcome: Outcome) -> RenderableType:
    if not isinstance(outcome, Evidence):
        return Text("-", style="dim")
    lines: list[RenderableType] = [Text(f"{measure.name}: {_value(measure)}") for measure in outcome.measures]
    broken = [control for control in outcome.controls if not control.holds]
    kept = len(outcome.controls) - len(broken)
    lines.append(Text(f"controls: {kept} of {len(outcome.controls)} hold", style="yellow" if broken else "dim"))
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
            console.print(f"{result.scenario.name}: {result.judgement.reason}", markup=False, highlight=False, soft_wrap=True)


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
