"""Interface by which lower layers report progress without printing; the command line and the plugin implement it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One long step."""

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        """Report how much is done, 0 to 1; None leaves it unchanged."""


class Progress(Protocol):
    """Receives steps and remarks."""

    def task(self, title: str) -> AbstractContextManager[Task]:
        """Return a context manager around one long step."""

    def note(self, text: str) -> None:
        """Show a remark that stays on the screen."""


class _SilentTask:
    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        del fraction, detail


class Silent:
    """A `Progress` without output: for tests, and for callers that print themselves."""

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        del title
        yield _SilentTask()

    def note(self, text: str) -> None:
        del text
