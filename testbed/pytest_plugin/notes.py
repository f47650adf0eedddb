"""What takes long is told on the terminal: what is made or fetched the first time, and what a worker waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from testbed.pytest_plugin.session import STATE

_EVERY_S = 5.0


class _Step:
    def __init__(self, notes: PluginNotes, title: str) -> None:
        self._notes, self._title, self._said_at = notes, title, time.monotonic()

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        if time.monotonic() >= self._said_at + _EVERY_S:
            self._said_at = time.monotonic()
            done = f" {fraction:.0%}" if fraction is not None else ""
            self._notes.note(f"{self._title}{done}{f': {detail}' if detail else ''}")


class PluginNotes:
    """A `Progress` that says when a step begins, and every few seconds how far it is."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @contextmanager
    def task(self, title: str) -> Iterator[_Step]:
        self.note(f"{title} ...")
        yield _Step(self, title)

    def note(self, text: str) -> None:
        self._config.stash[STATE].say(text)
