"""Fetches Debian packages without root, with a private apt state, cache and sources list below the testbed's cache.

apt itself verifies the signatures of suites and the checksums of packages; the host's apt configuration (proxies and
the like) stays in force.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError
from testbed.host import process
from testbed.progress import Task
from testbed.store.mirror import Mirror


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One version of a package, as the signed index of its suite describes it."""

    name: str
    version: str
    depends: tuple[str, ...]
    sha256: str


class PrivateApt:
    """A private apt for some suites; `folder` holds its state and may be removed afterwards."""

    def __init__(self, folder: Path, mirror: Mirror, suites: tuple[str, ...]) -> None:
        self._suites = suites
        self._mirror = mirror
        self._folder = folder
        # apt and its signature checkers leave temporary files when they are killed: they go into this folder.
        self._environment = {"TMPDIR": str(folder)}
        self._options = (
            f"-oDir::State={folder}/state",
            f"-oDir::State::status={folder}/status",
            f"-oDir::Cache={folder}/cache",
            f"-oDir::Etc::sourcelist={folder}/sources.list",
            "-oDir::Etc::sourceparts=-",
            "-oDir::Etc::preferences=-",
            "-oDir::Etc::preferencesparts=-",
            "-oAPT::Architecture=amd64",
            "-oAPT::Architectures=amd64",
            "-oAPT::Sandbox::User=",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=3",
        )

    async def update(self, task: Task) -> None:
        """Fetch the indices of the suites.

        :raise HostError: the mirror cannot be reached, no longer has a suite, or a signature is wrong.
        """
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        (self._folder / "sources.list").write_text(self._mirror.sources(self._suites), encoding="utf-8")
        task.update(detail=f"index of {', '.join(self._suites)}")
        done = await process.run(
            ["apt-get", *self._options, "-oAPT::Update::Error-Mode=any", "update"],
            timeout_s=600,
            check=False,
            env=self._environment,
        )
        if done.status != 0:
            errors = "\n    ".join(line for line in done.stderr.splitlines() if line.startswith(("E:", "W:")))
            raise HostError(
                f"the Debian mirror does not serve {', '.join(self._suites)} with a good signature:\n    {errors}\n  "
                "If the suite has left this mirror, name another with TESTBED_DEBIAN_MIRROR, or give FILE.deb or "
                "BZIMAGE:MODULES"
            )

    async def show(self, name: str) -> Package:
        """Return the newest version of a package.

        :raise HostError: no suite has it.
        """
        done = await process.run(
            ["apt-cache", *self._options, "--no-all-versions", "show", name], check=False, env=self._environment
        )
        fields = dict(re.findall(r"^(Package|Version|Depends|SHA256): (.*)$", done.stdout, re.MULTILINE))
        if not {"Package", "Version", "SHA256"} <= fields.keys():
            raise HostError(f"{name}: expected in {', '.join(self._suites)}, found in none of them")
        return Package(
            name=fields["Package"],
            version=fields["Version"],
            sha256=fields["SHA256"],
            depends=_names(fields.get("Depends", "")),
        )

    async def download(self, packages: tuple[Package, ...], folder: Path, task: Task) -> tuple[Path, ...]:
        """Download the .deb files of packages into `folder`; apt compares them with the signed index.

        :raise HostError: a download fails or its checksum is wrong.
        """
        for number, package in enumerate(packages):
            task.update(fraction=number / len(packages), detail=f"{package.name} {package.version}")
            words = ["apt-get", *self._options, "download", f"{package.name}={package.version}"]
            await process.run(words, timeout_s=1800, folder=folder, env=self._environment)
        return tuple(sorted(folder.glob("*.deb")))


def _names(depends: str) -> tuple[str, ...]:
    """Return the names in a Depends field, of alternatives the first."""
    first = (clause.split("|")[0].strip() for clause in depends.split(","))
    return tuple(re.split(r"[\s(:]", clause, maxsplit=1)[0] for clause in first if clause)
