"""Verifies the cached files that boot guests: hashes are recorded when a file is made, and compared before it is used.

Hashing a guest image takes a second. A file is not hashed again while its inode and times are the ones of its last
hashing: a program can set the modification time back (mtime), but not the time of the last inode change (ctime).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.hashing import file_sha256
from testbed.text import parse_json

_RECORD = "seals.json"


def verify(folder: Path, files: tuple[str, ...], known: dict[str, str] | None = None) -> None:
    """Compare files of a folder with their recorded hashes; record the hashes of new files.

    `known`: expected hashes of files without a record, by name.

    :raise HostError: a file has changed or is gone; the message says how to make it again.
    """
    path = folder / _RECORD
    records, changed = _read(path), False
    for name in files:
        file = folder / name
        try:
            stamp = _stamp(file)
        except OSError as error:
            raise HostError(f"{file}: cannot be read: {error.strerror}; {_mend(folder)}") from error
        record = records.get(name)
        if record is not None and record["stamp"] == stamp:
            continue
        digest = file_sha256(file)
        expected = record["sha256"] if record is not None else (known or {}).get(name, digest)
        if digest != expected:
            raise HostError(
                f"{file}: expected the file that was made here (SHA-256 {expected}), got another ({digest}); "
                f"{_mend(folder)}"
            )
        records[name], changed = {"sha256": digest, "stamp": stamp}, True
    if changed:
        _write(path, records)


def _mend(folder: Path) -> str:
    return f"remove {folder}, and the next run makes it again"


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        return {
            name: {"sha256": str(record["sha256"]), "stamp": list(record["stamp"])} for name, record in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostError(f"{path}: expected the hashes of its files, got {error!r}; {_mend(path.parent)}") from error


def _write(path: Path, records: dict[str, Any]) -> None:
    new = path.with_suffix(f".{os.getpid()}")  # a later process with the same pid overwrites what a killed one leaves
    with contextlib.suppress(OSError):  # in a cache that cannot be written to, files are hashed again each time
        new.write_text(json.dumps(records), encoding="utf-8")
        new.replace(path)
