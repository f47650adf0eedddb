"""Asks interpreters of this machine whether scripts can be read, without running any of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from testbed.bugs.load import Place, problem
from testbed.bugs.model import Bug
from testbed.bugs.script_files import Script
from testbed.errors import Problem

# `bash: line 4: syntax error: ...`, `bash: -c: line 4: ...`, `sh: 4: Syntax error: ...`
_SAID = re.compile(r"[^:]+: (?:-c: )?(?:line )?(?P<line>\d+): (?P<said>.+)")
# A document whose end is missing takes the rest of the script with it, and is a warning only.
_WARNED = re.compile(r"warning: here-document .*")
_LIMIT_S = 20.0


def find_problems(bug: Bug, places: Mapping[str, Place]) -> list[Problem]:
    """What of a bug's scripts cannot be read. `places`: where they stand, by the bug's keys."""
    named = (("prepare", bug.preparation), ("script", bug.main))
    return [
        problem(places.get(key), key, line, said)
        for key, script in named
        if script is not None
        for line, said in syntax_mistakes(script)
    ]


def syntax_mistakes(script: Script) -> list[tuple[int, str]]:
    """What is wrong with a script, each with its line; nothing where no interpreter here knows."""
    match script.language:
        case "bash":
            # A script that sets extglob may have patterns that bash, which only reads it, does not know.
            return _asked_shell(script, "bash") and _asked_shell(script, "bash", "-O", "extglob")
        case "sh":
            found = _asked_shell(script, "dash" if shutil.which("dash") else "sh")
            return found or [one for one in _asked_shell(script, "bash", "--posix") if _WARNED.fullmatch(one[1])]
        case "python":
            return _asked_python(script)
        case _:
            return []


def _asked_shell(script: Script, shell: str, *options: str) -> list[tuple[int, str]]:
    """What a shell of this machine says to a script that it only reads (-n)."""
    program = shutil.which(shell)
    if program is None:
        return []
    status, errors = _asked(script, program, *options, "-n")
    said = [found for line in errors.splitlines() if (found := _SAID.fullmatch(line)) is not None]
    # Bash says what is wrong, and quotes the line after it.
    told = [(int(one["line"]), one["said"]) for one in said if not one["said"].startswith("`")]
    return [one for one in told if status != 0 or _WARNED.fullmatch(one[1])]


def _asked_python(script: Script) -> list[tuple[int, str]]:
    """What Python says that only compiles it; in a process of its own, which a script nested too deeply may end."""
    status, errors = _asked(
        script, sys.executable, "-ISWignore", "-c", "import sys; compile(sys.stdin.buffer.read(), 'script', 'exec')"
    )
    lines = errors.strip().splitlines()
    if status == 0 or not lines:
        return []
    numbers = re.findall(r'^  File "script", line (\d+)', errors, re.MULTILINE)
    return [(int(numbers[-1]) if numbers else 1, lines[-1])]


def _asked(script: Script, *command: str) -> tuple[int, str]:
    """Status and errors of a command that reads a script; 0 and none where it cannot be asked."""
    own = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}  # a BASH_ENV would be run
    try:
        words = script.text.encode()
        done = subprocess.run(command, input=words, capture_output=True, env=own, timeout=_LIMIT_S, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired):
        return 0, ""
    return done.returncode, done.stderr.decode(errors="replace")
