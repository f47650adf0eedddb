"""Shows progress: bars on a terminal, plain lines elsewhere, and for programs JSON objects, one on each line.

All of it goes to standard error. A JSON event has `event`, `monotonic_s` and `time_s` (since 1970), and by its kind:
    task      `title` and `state`: started, going on (with `fraction`, 0 to 1, or None, and `detail`), done
    note      `text`
    stage     of a guest: `guest`, `case`, `kernel` (its key in the results) and `stage`, what it does or waits for
    result    of a case: `case`, `attempt`, `verdict`, `reason`
    end       the last event: `verdict`, `folder`, `exit_code`
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from testbed.progress import Progress, Silent, Task
from testbed.scenarios.verdict import Verdict


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
    """Shows a bar for each running task, and a line for each task that took more than 2 seconds."""

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
    """Prints one line for each event."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        started = time.monotonic()
        self._console.print(f"{title}: started", markup=False, highlight=False, soft_wrap=True)
        yield _Lines(self._console, title)
        self._console.print(
            f"{title}: done in {time.monotonic() - started:.1f} s", markup=False, highlight=False, soft_wrap=True
        )

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Events:
    """Writes one JSON object on each line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, event: str, **fields: object) -> None:
        line = {"event": event, "monotonic_s": round(time.monotonic(), 6), "time_s": round(time.time(), 3), **fields}
        self._console.file.write(json.dumps(line) + "\n")
        self._console.file.flush()

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        self.write("task", title=title, state="started")
        yield _EventTask(self, title)
        self.write("task", title=title, state="done")

    def note(self, text: str) -> None:
        self.write("note", text=text)


class _EventTask:
    def __init__(self, events: Events, title: str) -> None:
        self._events, self._title = events, title

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        self._events.write("task", title=self._title, state="going on", fraction=fraction, detail=detail)


class RunDisplay:
    """Shows what the guests of a run do, and each case's verdict. `total`: how many results there will be."""

    def __init__(self, progress: Progress, console: Console, total: int) -> None:
        self._progress, self._console, self._total = progress, console, total
        self._events = progress if isinstance(progress, Events) else None
        self._open = contextlib.ExitStack()
        self._guests: dict[tuple[str, str], tuple[contextlib.ExitStack, Task]] = {}
        self._cases_task: Task | None = None
        self._count = 0

    def __enter__(self) -> RunDisplay:
        if isinstance(self._progress, Terminal):
            self._cases_task = self._open.enter_context(self._progress.task("cases"))
            self._cases_task.update(fraction=0.0, detail=f"0 of {self._total}")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, case: str, side: str, step: str) -> None:
        """Show what one of the run's guests does now; `done` ends it."""
        guest = f"{case} on {side}"
        if self._events is not None:
            self._events.write("stage", guest=guest, case=case, kernel=side, stage=step)
            return
        key = (case, side)
        if key not in self._guests:
            guest_stack = self._open.enter_context(contextlib.ExitStack())
            self._guests[key] = (guest_stack, guest_stack.enter_context(self._progress.task(guest)))
        guest_stack, task = self._guests[key]
        if step == "done":
            guest_stack.close()
            del self._guests[key]
        else:
            task.update(detail=step)

    def result(self, case: str, attempt: int, verdict: Verdict, reason: str) -> None:
        """Show the verdict of a case."""
        self._count += 1
        first = reason.partition("\n")[0]
        if self._events is not None:
            self._events.write("result", case=case, attempt=attempt, verdict=verdict.value, reason=reason)
        elif not isinstance(self._progress, Silent):
            line = Text.assemble((f"{verdict.value:7}", STYLES[verdict]), f" {case}: {first}")
            self._console.print(line, highlight=False, soft_wrap=True)
        if self._cases_task is not None:
            self._cases_task.update(fraction=self._count / self._total, detail=f"{self._count} of {self._total}")

    def end(self, verdict: Verdict, folder: Path, exit_code: int) -> None:
        """Write the last event, if events are written."""
        if self._events is not None:
            self._events.write("end", verdict=verdict.value, folder=str(folder), exit_code=exit_code)


STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INVALID: "bold yellow",
    Verdict.SKIP: "cyan",
    Verdict.INFRA: "bold magenta",
}


def last_line(verdict: str, folder: Path) -> str:
    """Return the last line of a run, and of a report of it."""
    return f"verdict: {verdict} {folder}"


@contextmanager
def progress(console: Console, *, quiet: bool = False, as_json: bool = False) -> Iterator[Progress]:
    """Show progress in the form that suits `console` and the options."""
    if quiet:
        yield Silent()
    elif as_json:
        yield Events(console)
    elif console.is_terminal:
        with Terminal(console).running() as terminal:
            yield terminal
    else:
        yield Plain(console)
