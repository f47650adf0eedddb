"""Keeps the names of built kernels, a file for each, with the folder of its kernel. Several names may share one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError
from testbed.store.kernels.table import BuiltKernel, Series
from testbed.text import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedBuild:
    """`folder`: of its files; `origin`: what it was built from; `series`: whether the patch series is in it."""

    folder: Path
    origin: str
    series: Series


def _file(root: Path, kernel: BuiltKernel) -> Path:
    return root / "built" / kernel.name


def save_name(root: Path, kernel: BuiltKernel, named: NamedBuild) -> None:
    """Give a kernel its name; another kernel that has it loses it."""
    path = _file(root, kernel)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(
        json.dumps({"folder": named.folder.name, "origin": named.origin, "series": named.series.value}),
        encoding="utf-8",
    )
    new.replace(path)


def find_name(root: Path, kernel: BuiltKernel) -> NamedBuild | None:
    """Return the build that has a name, None if there is none.

    :raise HostError: the file of the name is damaged.
    """
    path = _file(root, kernel)
    if not path.is_file():
        return None
    try:
        read = parse_json(path.read_text(encoding="utf-8"))
        return NamedBuild(
            folder=root / "kernels" / read["folder"], origin=str(read["origin"]), series=Series(read["series"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{path}: cannot be read ({error}); remove it, and build the kernel again") from error


def list_names(root: Path) -> tuple[BuiltKernel, ...]:
    """List all names whose kernel files exist, sorted."""
    kernels = (BuiltKernel(name=path.name) for path in sorted((root / "built").glob("[!.]*")))
    return tuple(
        kernel for kernel in kernels if (named := find_name(root, kernel)) is not None and named.folder.is_dir()
    )


def remove_name(root: Path, kernel: BuiltKernel) -> None:
    """Remove a name."""
    _file(root, kernel).unlink()
