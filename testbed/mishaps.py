"""What went wrong with one case or try, in words, whatever it was: an error that nobody expected is that case's, and the others go on."""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path

from testbed import journal
from testbed.errors import TestbedError, first
from testbed.printable import printable

TRACEBACK = "traceback.txt"
_MOST_CHARACTERS = 300


def told(error: Exception, folder: Path) -> str:
    """Why there is no result. The traceback of an error that is none of ours goes to `TRACEBACK` in the folder of the guest's logs."""
    one = first(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(one, TestbedError):
        return str(one)
    if isinstance(one, OSError) and one.strerror:
        return printable(f"this machine: {one.filename or 'a file'}: {one.strerror}")
    frames = traceback.extract_tb(one.__traceback__)
    where = f", raised in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    why = printable(f"a mistake of the testbed: {type(one).__name__}: {one}")[:_MOST_CHARACTERS]
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    journal.say(f"{why}{where}", logs=folder.name, failed=True)
    return f"{why}{where}; see {TRACEBACK} in {folder.name}"
