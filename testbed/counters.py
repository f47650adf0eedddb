"""cgroup counters: the text of the kernel's files to numbers. Formats: Documentation/admin-guide/cgroup-v2.rst."""

from __future__ import annotations


def parse_flat(text: str) -> dict[str, int]:
    """A flat keyed file such as memory.stat: one `name number` a line."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if number.strip().isdigit():
            found[name] = int(number)
    return found


def parse_io_stat(text: str) -> dict[str, dict[str, int]]:
    """io.stat: `MAJ:MIN rbytes=N wbytes=N ...` a line, to numbers by device; a device without I/O has no line."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        numbers = {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs) if value.isdigit()}
        if ":" in device:
            found[device] = numbers
    return found


def sections(text: str) -> dict[str, str]:
    """Output of several files, each after a line `== NAME`, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("== "):
            name = line[3:].strip()
            found[name] = ""
        elif name:
            found[name] += line
    return found


def by_file(text: str) -> dict[str, str]:
    """Output of `grep "" FILE FILE ...`, `FILE:LINE` a line, to each file's text."""
    found: dict[str, str] = {}
    for line in text.splitlines(keepends=True):
        path, colon, rest = line.partition(":")
        if colon and path.startswith("/"):
            found[path] = found.get(path, "") + rest
    return found
