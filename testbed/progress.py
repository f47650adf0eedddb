"""How the lower floors say what they are doing, without printing: the faces hand them a `Progress`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One long step."""

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        """`fraction` is what is done, 0 to 1; None leaves it as it was."""


class Progress(Protocol):
    """Where steps and remarks go."""

    def task(self, title: str) -> AbstractContextManager[Task]:
        """A context manager around one long step."""

    def note(self, text: str) -> None:
        """A remark that stays on the screen."""


class _SilentTask:
    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        del fraction, detail


class Silent:
    """A `Progress` that says nothing: for tests and for callers that print themselves."""

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        del title
        yield _SilentTask()

    def note(self, text: str) -> None:
        del text
