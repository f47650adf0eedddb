"""Reads the results in a run's folder, which may be a stranger's: bounded, of the models' form, and with nothing that steers a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from testbed.errors import UsageError
from testbed.host import untrusted_files
from testbed.report import runs as store
from testbed.report import schema
from testbed.report.bugs import schema as bug_schema
from testbed.text import parse_printable_json

# An attempt of a case takes 1 to 7 KB for each kernel.
_MOST_BYTES = 64 << 20
MODELS: dict[str, type[BaseModel]] = {"results.json": schema.Document, **bug_schema.MODELS}


def read_document(folder: Path) -> dict[str, Any] | None:
    """The results of a run, whatever it was; None where it has left none. Texts are as `printable` leaves them.

    :raise UsageError: they are not what they should be, or cannot be read.
    """
    name = store.results(folder)
    if name is None:
        return None
    path = folder / name
    try:
        found = parse_printable_json(untrusted_files.read_below(folder, name, _MOST_BYTES))
        MODELS[name].model_validate(found)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        said = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"{step}." for step in said["loc"]).removesuffix(".")
        why = f"{where}: {said['msg']}" if where else said["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: expected the results of a run, version 1: {why}") from error
    except ValueError as error:
        raise UsageError(f"{path}: expected JSON: {error}") from error
    return _told(found, folder)


def _told(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, where they are partial with what ended the run: it could not write that down itself if it was killed."""
    if found.get("partial") is None or found["partial"]["why"] or store.is_locked(folder):
        return found
    return found | {
        "partial": found["partial"]
        | {"why": "its process ended without a word: it was killed, or this machine went down"}
    }
