"""Make a run folder that can be packed into a bundle, and bundles with changed entries."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUG = "version: 1\nsummary: it breaks\nkernels: {shows: [debian-6.1]}\nscript: 'true'\nsignature: [{status: 0}]\n"


RESULTS: dict[str, Any] = {
    "run": "r1",
    "seed": 5,
    "host": {"qemu": "7.2", "qemu_identity": "abc", "accelerator": "tcg", "kernel": "6.1", "cores": 2},
    "image": {"name": "bookworm", "sha256": "11"},
    "kernels": [{"name": "debian-6.1", "release": "6.1.0-1", "origin": "x", "sha256": "22", "must_show": True}],
}


def entry(name: str, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info, data = tarfile.TarInfo(name), more.pop("data", b"x")
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def rewritten(
    source: Path,
    target: Path,
    *extra: tuple[tarfile.TarInfo, bytes],
    change: Callable[[str, bytes], bytes] | None = None,
    last: Callable[[str, bytes], bytes] = lambda _, data: data,
) -> Path:
    """Write a bundle with added or changed entries. Its manifest lists these, but not what `last` changes."""
    import hashlib

    with tarfile.open(source) as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]  # every entry is a file
    if change is not None:
        files = {name: change(name, data) for name, data in files.items()}
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(target, "w") as archive:
        for name, data in files.items():
            info, data = entry(name, data=last(name, data))
            archive.addfile(info, io.BytesIO(data))
        for info, data in extra:
            archive.addfile(info, io.BytesIO(data))
    return target
