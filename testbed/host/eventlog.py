"""Logs what the testbed does: one file per run, lines of JSON with both clocks and, for events of a guest, its name and
stage.

    {"time": "2026-01-31T12:00:00.123Z", "monotonic_s": 81.5, "level": "info",
     "guest": "g0", "stage": "ready", "event": "SSH answered"}

It is built on Python's logging: all code calls `log_event`, and a run or a terminal adds a handler.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from testbed.host.logfile import Log
from testbed.text import printable

FILE = "log.jsonl"
_LOGGER = logging.getLogger("testbed")
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False  # keep out of the logs of programs that import the testbed
_LOGGER.addHandler(logging.NullHandler())


def log_event(event: str, *, guest: str = "", logs: str = "", stage: str = "", failed: bool = False) -> None:
    """Log an event of a guest or of the testbed.

    `logs`: the folder of the guest's logs, which tells it from other guests of its name; `failed`: the event makes
    something else fail.
    """
    level = logging.ERROR if failed else logging.INFO
    _LOGGER.log(level, "%s", event, extra={"guest": guest, "logs": logs, "stage": stage})


class _JsonHandler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        where = {name: record.__dict__[name] for name in ("guest", "logs", "stage")}
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": when, "monotonic_s": round(time.monotonic(), 6), "level": record.levelname.lower()}
        self._log.note(line | {key: value for key, value in where.items() if value} | {"event": record.getMessage()})


class _TextHandler(logging.StreamHandler[TextIO]):
    def format(self, record: logging.LogRecord) -> str:
        where = ": ".join(word for word in (record.__dict__[name] for name in ("logs", "guest", "stage")) if word)
        return printable(f"debug: {time.monotonic():.3f} {where}{': ' if where else ''}{record.getMessage()}")


@contextlib.contextmanager
def write_events_to(folder: Path) -> Iterator[None]:
    """Write the events that happen meanwhile to `log.jsonl` in the folder of a run."""
    handler = _JsonHandler(Log(folder / FILE, lambda why: None))  # a full disk is reported elsewhere
    _LOGGER.addHandler(handler)
    try:
        yield
    except BaseException as error:
        log_event(f"{type(error).__name__}: {error}", failed=True)
        raise
    finally:
        _LOGGER.removeHandler(handler)


def print_events_to(stream: TextIO) -> None:
    """Print events to a terminal as well, until this process ends."""
    _LOGGER.addHandler(_TextHandler(stream))
