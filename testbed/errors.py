"""What can go wrong, named by who must act.

    TestbedError
    ├── UsageError        the command line asks for something that does not exist
    ├── TopologyError     the user's YAML file is wrong; carries every problem at once
    ├── BuildError        the kernel to be built: its source, patches, configuration, or what the compiler says of them
    ├── HostError         this machine: a tool, the network, the disk, QEMU itself
    │   └── ToolMissing   a program is not installed
    ├── GuestError        the kernel under test or what runs on it
    │   ├── GuestLost     the guest ended, panicked, or did not answer in time
    │   ├── WireBroken    a connection to the guest ended in the middle; the guest may be ending too
    │   ├── CommandFailed a command in the guest ended with another status than 0
    │   └── DeviceMismatch the guest's devices are not those of its topology
    └── TemplateError     a saved template does not load, or its clone does not wake up (mended by making it again, once)

A message says where, what was expected, what was got, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass


class TestbedError(Exception):
    """Base of all errors that the testbed raises on purpose; the command line prints them without a traceback."""

    __test__ = False  # no class of tests, whatever pytest thinks of its name


class UsageError(TestbedError):
    """The command line names something that does not exist."""


class BuildError(TestbedError):
    """A kernel cannot be built as asked for: its source, a patch, its configuration, or what the compiler says of them."""


class HostError(TestbedError):
    """This machine cannot do what is needed."""


class ToolMissing(HostError):
    """A program is not installed; `package` is the Debian package that has it."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool}: not found on this machine; install it with: apt-get install {package}")
        self.tool = tool
        self.package = package


class TemplateError(TestbedError):
    """A template's saved state does not load, or its clone does not wake up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in a file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class TopologyError(TestbedError):
    """A topology file is wrong; `problems` holds every mistake found, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class GuestError(TestbedError):
    """The guest did not do what it was asked."""


class GuestLost(GuestError):
    """The guest is gone or silent. `stage` names what was waited for, `console_tail` holds its last words."""

    def __init__(self, guest: str, stage: str, why: str, console_tail: tuple[str, ...] = ()) -> None:
        tail = "".join(f"\n    | {line}" for line in console_tail)
        super().__init__(f"guest {guest}: {stage}: {why}" + (f"\n  last lines of its console:{tail}" if tail else ""))
        self.guest = guest
        self.stage = stage
        self.why = why
        self.console_tail = console_tail


class WireBroken(GuestError):
    """A connection to the guest or to its QEMU broke: often the first sign that the guest ends, and seldom the reason."""


class CommandFailed(GuestError):
    """A command in the guest failed."""

    def __init__(self, guest: str, command: str, status: str, output: str) -> None:
        super().__init__(f"guest {guest}: `{command}`: expected status 0, got {status}: {output.strip() or '(no output)'}")
        self.guest = guest
        self.command = command
        self.status = status
        self.output = output


class DeviceMismatch(GuestError):
    """The guest shows other devices than its topology asks for, so nothing measured on it would mean anything."""

    def __init__(self, guest: str, differences: tuple[str, ...]) -> None:
        super().__init__(f"guest {guest} differs from its topology and is refused:" + "".join(f"\n  {d}" for d in differences))
        self.differences = differences
