"""Reads the results in a run's folder, which a stranger may have written: bounded in size, validated by the models, and
without control characters."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from testbed.errors import UsageError
from testbed.host import untrusted_files
from testbed.report import runs, schema
from testbed.report.bugs import schema as bug_schema
from testbed.report.bugs.schema import BugDocument
from testbed.report.runs import RunSummary
from testbed.report.schema import Document
from testbed.text import parse_printable_json

# An attempt of a case takes 1 to 7 KB for each kernel.
_MOST_BYTES = 64 << 20
MODELS: dict[str, type[Document] | type[BugDocument]] = {"results.json": schema.Document, **bug_schema.MODELS}


def read_document(folder: Path) -> Document | BugDocument | None:
    """Read the results of a run of any kind; None if it has left none. Texts are as `printable` leaves them.

    :raise UsageError: the file is not valid, or cannot be read.
    """
    name = runs.result_file(folder)
    if name is None:
        return None
    path = folder / name
    try:
        read = untrusted_files.read_below(folder, name, _MOST_BYTES)
        document = MODELS[name].model_validate(parse_printable_json(read))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"{step}." for step in first["loc"]).removesuffix(".")
        why = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: expected the results of a run, version 1: {why}") from error
    except ValueError as error:
        raise UsageError(f"{path}: expected JSON: {error}") from error
    if document.partial is None or document.partial.why or runs.is_locked(folder):
        return document
    # A killed process cannot write down why its run ended.
    killed = "its process ended without writing why: it was killed, or this machine went down"
    return document.model_copy(update={"partial": document.partial.model_copy(update={"why": killed})})


def summarize(folder: Path) -> RunSummary | None:
    """Read the results of a run of any kind for the list of runs; None if it has left none.

    :raise UsageError: the file is not valid, or cannot be read.
    """
    document = read_document(folder)
    if document is None:
        return None
    return RunSummary(
        verdict=document.verdict if isinstance(document, Document) else document.result,
        command=tuple(document.command[1:]),
        cases=document.part_count,
        partial=document.partial,
    )
