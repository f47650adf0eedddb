"""Describes why a case or a try has no result, whatever the error: even an unexpected one affects only its own case,
and the others go on.
"""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path

from testbed.errors import TestbedError, first_error
from testbed.host import eventlog
from testbed.text import printable

TRACEBACK = "traceback.txt"
_MOST_CHARACTERS = 300


def describe(error: Exception, folder: Path) -> str:
    """Describe why there is no result.

    The traceback of an error that is not ours is saved as `TRACEBACK` in the folder of the guest's logs.
    """
    one = first_error(error) if isinstance(error, BaseExceptionGroup) else error
    why = one_line(one)
    if isinstance(one, TestbedError) or (isinstance(one, OSError) and one.strerror):
        return why
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACEBACK).write_text(
            "".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace"
        )
    eventlog.log_event(why, logs=folder.name, failed=True)
    return f"{why}; see {TRACEBACK} in {folder.name}"


def one_line(error: BaseException) -> str:
    """Describe an error in one line, for places where no traceback is kept."""
    if isinstance(error, TestbedError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return printable(f"this machine: {error.filename or 'a file'}: {error.strerror}")
    frames = traceback.extract_tb(error.__traceback__)
    where = f", raised in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return printable(f"a mistake of the testbed: {type(error).__name__}: {error}")[:_MOST_CHARACTERS] + where
