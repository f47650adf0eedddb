"""Makes another project's virtual environment: the built wheel and its dependencies, nothing else."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from testbed.hashing import content_key, file_sha256
from testbed.host import paths

ROOT = Path(__file__).parents[2]
# What another project installs: the wheel with its extra, and a plugin of its own choice.
_WANTED = ("loop-cgroup-testbed[pytest]", "pytest-xdist")


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """`python`: of the environment; `wheel`: what was installed there."""

    python: Path
    wheel: Path

    def run(
        self, *words: str | Path, folder: Path, timeout_s: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS` without environment variables that name this checkout."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))
        }
        return subprocess.run(
            [self.python, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=inherited | environment,
        )


def needed(wanted: tuple[str, ...] = _WANTED) -> set[str]:
    """Return the names of all packages that these need, by the metadata of the installed ones."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        key = f"{name}[{','.join(sorted(one.extras))}]"
        if key in found:
            continue
        found |= {key, name}
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            extras = one.extras or {""}
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                waiting.append(requirement)
    return {name for name in found if "[" not in name and name != "loop-cgroup-testbed"}


def locked(names: set[str]) -> str:
    """Return the lines of requirements.lock for these, with their hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    by_name: dict[str, str] = {canonicalize_name(entry.split("==")[0]): entry for entry in entries if "==" in entry}
    missing = names - by_name.keys()
    assert not missing, f"requirements.lock has no {', '.join(sorted(missing))}"
    return "\n".join(by_name[name] for name in sorted(names)) + "\n"


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def prepare(folder: Path) -> Foreign:
    """Build the wheel in `folder`, and install it into an environment that the cache keeps for each state of
    requirements.lock.

    If the same wheel is installed already, the environment is not changed: another worker may be using it.
    """
    wheel, lock = build_wheel(folder), locked(needed())
    venv = paths.folders().cache / f"foreign-{content_key(lock, sys.version, str(ROOT))}"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with venv.with_name(f"{venv.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        python = venv / "bin/python"
        if not (venv / "complete").exists():
            (folder / "foreign.lock").write_text(lock)
            _run(sys.executable, "-m", "venv", "--clear", venv)
            _run(
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--require-hashes",
                "-r",
                folder / "foreign.lock",
            )
            (venv / "complete").touch()
        # Building it again gives the same bytes (hatchling's wheels are reproducible).
        installed, this = venv / "installed", file_sha256(wheel)
        if not installed.exists() or installed.read_text() != this:
            installed.unlink(missing_ok=True)
            _run(
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--no-deps",
                "--force-reinstall",
                wheel,
            )
            installed.write_text(this)
    return Foreign(python=python, wheel=wheel)


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
