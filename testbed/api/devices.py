"""The devices of a guest, by their names in its topology; formatted as a string, each is its /dev path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from testbed.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk or NVMe namespace in its guest. `number`: MAJ:MIN, as in io.stat and io.max."""

    name: str
    path: str
    number: str
    serial: str
    size_bytes: int

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A loop device in its guest. `disks`: names of the disks below it."""

    name: str
    path: str
    backing_file: str
    disks: tuple[str, ...]

    def __str__(self) -> str:
        return self.path


class Named(dict[str, T]):
    """Devices by name. An unknown name raises a UsageError that lists the known ones."""

    def __init__(self, what: str, found: dict[str, T]) -> None:
        super().__init__(found)
        self._what = what

    def __missing__(self, name: str) -> T:
        there = ", ".join(self) or "none"
        raise UsageError(f"expected {self._what}, which are {there}; got {name!r}")
