"""What a person sees while something runs: progress bars on a terminal, plain lines elsewhere. All of it goes to standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from testbed.progress import Progress, Silent, Task


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        if fraction is not None:
            self._bars.update(self._task, total=1.0, completed=fraction)
        if detail:
            self._bars.update(self._task, detail=escape(detail[:70]))


class Terminal:
    """Bars that move, gone when they are done, and a line for each step that took a while."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            transient=True,
        )

    @contextmanager
    def running(self) -> Iterator[Terminal]:
        with self._bars:
            yield self

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        started = time.monotonic()
        task = self._bars.add_task(escape(title), total=None, detail="")
        try:
            yield _Bar(self._bars, task)
            took_s = time.monotonic() - started
            if took_s > 2:
                self._console.print(f"[dim]{escape(title)}: done in {took_s:.0f} s[/dim]")
        finally:
            self._bars.remove_task(task)

    def note(self, text: str) -> None:
        self._console.print(escape(text), style="yellow")


class _Lines:
    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._last = ""

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        if detail and detail != self._last:
            self._last = detail
            percent = f" {fraction:4.0%}" if fraction is not None else ""
            self._console.print(f"{self._title}:{percent} {detail}", markup=False, highlight=False, soft_wrap=True)


class Plain:
    """One line for each thing that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        started = time.monotonic()
        self._console.print(f"{title}: started", markup=False, highlight=False, soft_wrap=True)
        yield _Lines(self._console, title)
        self._console.print(f"{title}: done in {time.monotonic() - started:.1f} s", markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, *, quiet: bool = False) -> Iterator[Progress]:
    """The right one of them for where `console` goes."""
    if quiet:
        yield Silent()
    elif console.is_terminal:
        with Terminal(console).running() as terminal:
            yield terminal
    else:
        yield Plain(console)
