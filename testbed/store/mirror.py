"""Finds the Debian mirror to use: `TESTBED_DEBIAN_MIRROR`, or the one in the host's own apt configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError
from testbed.host import process

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """`main`: URL of the archive with suites such as bookworm; `security`: of the one with bookworm-security."""

    main: str
    security: str

    def url(self, suite: str) -> str:
        return self.security if suite.endswith("-security") else self.main

    def sources(self, suites: tuple[str, ...]) -> str:
        """Return a sources.list of this mirror that accepts only what the keys of the Debian archive signed."""
        return "".join(f"deb [arch=amd64 signed-by={KEYRING}] {self.url(suite)} {suite} main\n" for suite in suites)


async def find_mirror() -> Mirror:
    """Return the mirror to use.

    :raise HostError: neither the environment nor apt's configuration names one.
    """
    if not KEYRING.is_file():
        raise HostError(f"{KEYRING}: not found; install it with: apt-get install debian-archive-keyring")
    if named := os.environ.get("TESTBED_DEBIAN_MIRROR"):
        main = named.rstrip("/")
        return Mirror(
            main=main, security=os.environ.get("TESTBED_DEBIAN_SECURITY_MIRROR", f"{main}-security").rstrip("/")
        )
    codename = _codename(Path("/etc/os-release").read_text(encoding="utf-8"))
    listed = await process.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        check=False,
    )
    return choose_mirror(listed.stdout, codename)


def choose_mirror(index_targets: str, codename: str) -> Mirror:
    """Choose the mirror among the lines `RELEASE COMPONENT URI` that apt prints of its configuration.

    :raise HostError: no line is for the host's own release.
    """
    urls: dict[str, str] = {}
    for line in index_targets.splitlines():
        match line.split():
            case [release, "main", uri]:
                urls.setdefault(release, uri.rstrip("/"))
    main = urls.get(codename)
    if not codename or main is None:
        raise HostError(
            f"apt's configuration: expected a source with `{codename or 'a Debian release'} main`, found none; "
            "set TESTBED_DEBIAN_MIRROR to the URL of a Debian mirror"
        )
    return Mirror(main=main, security=urls.get(f"{codename}-security", f"{main}-security"))


def _codename(os_release: str) -> str:
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    return ""
