"""Files in the cache that boot guests: their hashes are recorded when they are made, and checked before they are used.

Hashing a guest image takes a second. A file whose times and inode are those that were seen when it was last hashed is not hashed again: a
program can set the time of a change (mtime) back, but not the time at which the inode was last touched (ctime).
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

_SEALS = "seals.json"


def verify(folder: Path, files: tuple[str, ...], known: dict[str, str] | None = None) -> None:
    """Compare files of a folder with what was recorded of them; records those that are new. `known`: hashes by name, from elsewhere.

    :raise HostError: one is another than it was, or is gone; says how to make it again.
    """
    path = folder / _SEALS
    seals, changed = _read(path), False
    for name in files:
        file = folder / name
        try:
            stamp = _stamp(file)
        except OSError as error:
            raise HostError(f"{file}: cannot be read: {error.strerror}; {_mend(folder)}") from error
        seal = seals.get(name)
        if seal is not None and seal["stamp"] == stamp:
            continue
        digest = file_sha256(file)
        expected = seal["sha256"] if seal is not None else (known or {}).get(name, digest)
        if digest != expected:
            raise HostError(
                f"{file}: expected the file that was made here (SHA-256 {expected}), got another ({digest}); {_mend(folder)}"
            )
        seals[name], changed = {"sha256": digest, "stamp": stamp}, True
    if changed:
        _write(path, seals)


def _mend(folder: Path) -> str:
    return f"remove {folder}, and the next run makes it again"


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        return {name: {"sha256": str(seal["sha256"]), "stamp": list(seal["stamp"])} for name, seal in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostError(f"{path}: expected the hashes of its files, got {error!r}; {_mend(path.parent)}") from error


def _write(path: Path, seals: dict[str, Any]) -> None:
    new = path.with_suffix(f".{os.getpid()}")  # the next process of this number writes over what a killed one leaves
    with contextlib.suppress(OSError):  # a cache that cannot be written to is hashed again each time
        new.write_text(json.dumps(seals), encoding="utf-8")
        new.replace(path)
