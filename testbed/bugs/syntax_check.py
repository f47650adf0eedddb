"""Checks the syntax of a bug's scripts with interpreters of this machine, without running the scripts."""

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
# A here-document without its end swallows the rest of the script, but bash only warns about it.
_WARNED = re.compile(r"warning: here-document .*")
_LIMIT_S = 20.0


def find_problems(bug: Bug, places: Mapping[str, Place]) -> list[Problem]:
    """Find the syntax errors of a bug's scripts. `places`: where the scripts are, by the bug's keys."""
    named = (("prepare", bug.preparation), ("script", bug.main))
    return [
        problem(places.get(key), key, line, said)
        for key, script in named
        if script is not None
        for line, said in syntax_mistakes(script)
    ]


def syntax_mistakes(script: Script) -> list[tuple[int, str]]:
    """Return the syntax errors of a script with their lines; none if this machine has no interpreter that can check
    it."""
    match script.language:
        case "bash":
            # A script that sets extglob may have patterns that bash -n, which does not run that, takes for errors.
            return _asked_shell(script, "bash") and _asked_shell(script, "bash", "-O", "extglob")
        case "sh":
            found = _asked_shell(script, "dash" if shutil.which("dash") else "sh")
            return found or [one for one in _asked_shell(script, "bash", "--posix") if _WARNED.fullmatch(one[1])]
        case "python":
            return _asked_python(script)
        case _:
            return []


def _asked_shell(script: Script, shell: str, *options: str) -> list[tuple[int, str]]:
    """Return the errors that a shell of this machine reports for a script that it only parses (-n)."""
    program = shutil.which(shell)
    if program is None:
        return []
    status, errors = _asked(script, program, *options, "-n")
    said = [found for line in errors.splitlines() if (found := _SAID.fullmatch(line)) is not None]
    # Bash prints the error, and then quotes the line.
    told = [(int(one["line"]), one["said"]) for one in said if not one["said"].startswith("`")]
    return [one for one in told if status != 0 or _WARNED.fullmatch(one[1])]


def _asked_python(script: Script) -> list[tuple[int, str]]:
    """Return the errors of Python's compiler, in a separate process, which too deeply nested code may crash."""
    status, errors = _asked(
        script, sys.executable, "-ISWignore", "-c", "import sys; compile(sys.stdin.buffer.read(), 'script', 'exec')"
    )
    lines = errors.strip().splitlines()
    if status == 0 or not lines:
        return []
    numbers = re.findall(r'^  File "script", line (\d+)', errors, re.MULTILINE)
    return [(int(numbers[-1]) if numbers else 1, lines[-1])]


def _asked(script: Script, *command: str) -> tuple[int, str]:
    """Run a checker on a script; returns its status and standard error, or 0 and nothing if it cannot be run."""
    own = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}  # a BASH_ENV would be run
    try:
        text = script.text.encode()
        done = subprocess.run(  # noqa: S603 - our own command
            command, input=text, capture_output=True, env=own, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0, ""
    return done.returncode, done.stderr.decode(errors="replace")
