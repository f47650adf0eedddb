"""The catalogue of named devices, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.hardware import commands
from testbed.hardware.profiles import PROFILES

_HEAD = """\
# Named devices

Written by `./tb profiles --markdown`; do not edit. A disk of a topology gets one with `profile:`, a running one with
`testbed throttle VM DISK NAME` (its limits) and `testbed delay VM DISK NAME` (its delay). `scale: 0.1` is the same device a tenth as
fast, for a host that cannot reach it; `testbed bench disks` measures how fast this one is, and from then on profiles beyond it are
warned of.

| name | device | limits | delay | source |
|---|---|---|---|---|
"""


def profiles_markdown() -> str:
    """The whole page."""
    return _HEAD + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for name, profile in PROFILES.items():
        delay = " ".join(commands.format_latency(profile.latency)) if not profile.latency.none else "none"
        limits = " ".join(commands.format_throttle(profile.throttle))
        yield f"| `{name}` | {profile.title} | {limits} | {delay} | {profile.source} |"
