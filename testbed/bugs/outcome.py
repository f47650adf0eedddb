"""The outcome of a try, as values and as JSON."""

from __future__ import annotations

import contextlib
import enum
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.bugs.io_accounting import Account
from testbed.bugs.signature import End, Match
from testbed.guest.channels.kernel_log import Finding, Kind


class Outcome(enum.Enum):
    """HIT: the signature showed. MISS: the script ended without it. TROUBLE: neither can be told; `Try.why` has the
    reason."""

    HIT = "hit"
    MISS = "miss"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """A try that has ended. Times in seconds: until the guest was ready, of the script, and from the script's start
    to the hit.

    `logs`: folder of the guest's logs. `accounts`: I/O of each disk, unless the guest was held. `last_line`: the
    last line that the script printed. `uncounted`: lines that matched but were not printed by the script, each with
    the reason.
    """

    number: int
    seed: int
    outcome: Outcome
    end: End
    why: str
    match: Match | None
    ready_s: float
    took_s: float
    hit_after_s: float | None
    status: int | None
    console_bytes: int
    findings: tuple[Finding, ...]
    logs: Path
    dump: str = ""
    accounts: tuple[Account, ...] = ()
    last_line: str = ""
    uncounted: tuple[str, ...] = ()


def record(one: Try) -> None:
    """Write the outcome into the folder of the guest's logs."""
    with contextlib.suppress(OSError):
        (one.logs / "try.json").write_text(json.dumps(describe(one)) + "\n", encoding="utf-8")


def describe(one: Try) -> dict[str, Any]:
    """Return a try as JSON, with the name of its folder only."""
    return {
        "number": one.number,
        "seed": one.seed,
        "outcome": one.outcome.value,
        "end": one.end.name.lower(),
        "why": one.why,
        "condition": one.match.condition if one.match else None,
        "seen": one.match.seen if one.match else None,
        "ready_s": round(one.ready_s, 3),
        "took_s": round(one.took_s, 3),
        "hit_after_s": None if one.hit_after_s is None else round(one.hit_after_s, 3),
        "status": one.status,
        "console_bytes": one.console_bytes,
        "evidence": one.logs.name,
        "dump": one.dump,
        "disks": [account.to_json() for account in one.accounts],
        "last_line": one.last_line,
        "uncounted": list(one.uncounted),
        "kernel_log": _complaints(one.findings),
    }


def _complaints(findings: tuple[Finding, ...]) -> list[str]:
    """The kernel's complaints: the first line of each kind with their number; last, that the kernel log was not
    read."""
    counted = Counter(finding.kind for finding in findings if finding.kind.splat or finding.kind is Kind.UNREAD)
    first = {finding.kind: finding.text for finding in reversed(findings)}
    return [
        f"{kind.value}: {first[kind]}" + (f" (and {count - 1} more)" if count > 1 else "")
        for kind, count in counted.items()
    ]
