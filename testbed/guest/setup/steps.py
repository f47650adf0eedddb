"""Steps that set up a guest, each with the command that undoes it, as shell scripts. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Shell commands of one step, and the command that undoes them. Every word from a topology is quoted."""

    what: str
    do: tuple[str, ...]
    undo: str | None = None


def sh(*words: str) -> str:
    """Return one shell command with each word quoted."""
    return shlex.join(words)


def do_script(steps: tuple[Step, ...]) -> str:
    """Return one shell script for all steps: an SSH command costs more than most steps.

    The script prints `done N` after each step and stops at the first failure, so that exactly the finished steps can be
    undone.
    """
    lines = []
    for number, step in enumerate(steps):
        commands = " && ".join(step.do)
        lines.append(f"{commands} || {{ echo {shlex.quote('failed: ' + step.what)} >&2; exit 1; }}\necho done {number}")
    return "\n".join([*lines, "sync"]) + "\n"


def undo_script(steps: tuple[Step, ...]) -> str:
    """Return a shell script that undoes steps in reverse order.

    It goes on after a failure, and then ends with status 1.
    """
    lines = [f"{step.undo} || failed=1" for step in reversed(steps) if step.undo is not None]
    return "\n".join(["failed=0", *lines, "exit $failed"]) + "\n"


def steps_done(output: str) -> int:
    """Return how many steps `do_script` finished, from its output."""
    return sum(line.startswith("done ") for line in output.partition("read back\n")[0].splitlines())
