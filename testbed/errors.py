"""Error classes, by who must act.

    TestbedError
    ├── UsageError        the command line asks for something that does not exist
    ├── TopologyError     the user's YAML file is wrong; carries every problem at once
    ├── BuildError        the kernel to be built: its source, patches, configuration, or what the compiler reports
    ├── HostError         this machine: a tool, the network, the disk, QEMU itself
    │   └── ToolMissing   a program is not installed
    ├── GuestError        the kernel under test or what runs on it
    │   ├── GuestLost     the guest ended, panicked, or did not answer in time
    │   ├── WireBroken    a connection to the guest broke; the guest may be ending too
    │   ├── CommandFailed a command in the guest exited with another status than 0
    │   ├── DeviceMismatch the guest's devices are not those of its topology
    │   └── ReadingError  a number from the guest was not read, or is malformed
    └── TemplateError     a saved template does not load, or its clone does not wake up (made again, once)

A message has the place, what was expected, what was got, and what to do. Each class has a stable `code`, `who` must
act, and how (`act`); docs/errors.md is generated from them and from the docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.text import printable


class TestbedError(Exception):
    """Base of all errors that the testbed raises on purpose; raised itself if no other class fits.

    A message may quote a guest: everything that could control a terminal is removed.
    """

    __test__ = False  # not a test class, although its name begins with Test
    code = "TB000"
    who = "the person whom the message names"
    act = "do what the message says"

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(TestbedError):
    """A command line or a call asks for something that does not exist."""

    code = "TB100"
    who = "the author of the command or the call"
    act = "correct it as the message says; `testbed VERB --help` lists the options of a command"


class BuildError(TestbedError):
    """A kernel cannot be built as requested: its source, a patch, its configuration, or what the compiler reports."""

    code = "TB120"
    who = "the author of the patch or the configuration, or who chose the source"
    act = "correct what the message shows; `testbed kernel build --help` lists the options of a build"


class HostError(TestbedError):
    """This machine cannot do what is needed: a tool, the network, the disk, QEMU itself."""

    code = "TB200"
    who = "the administrator of this machine"
    act = "do what the message says; `testbed doctor` finds everything that is missing, and how to fix it"


class ToolMissing(HostError):
    """A program is not installed; `package` is the Debian package that contains it."""

    code = "TB210"
    who = "the administrator of this machine"
    act = "install the package that the message names"

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool}: not found on this machine; install it with: apt-get install {package}")
        self.tool = tool
        self.package = package


class TemplateError(TestbedError):
    """A template's saved state does not load, or its clone does not wake up."""

    code = "TB300"
    who = "nobody the first time: the template is made again, once"
    act = "if it happens again, boot with `--cold`, and look into the guest's `qemu.log` and `console.log`"


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
        return printable(f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}")


class TopologyError(TestbedError):
    """A topology or bug file is wrong; `problems` has every mistake, in the order of the file."""

    code = "TB110"
    who = "the author of the file"
    act = "correct each place that the message names; `testbed validate FILE` finds all mistakes and runs nothing"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class GuestError(TestbedError):
    """The guest did not do what was requested."""

    code = "TB400"
    who = "the author of the kernel under test, or of what runs on it"
    act = "look into the guest's logs, in the folder that the run prints last: `console.log`, `dmesg.txt`, `ssh.log`"


class GuestLost(GuestError):
    """The guest has ended or does not answer. `stage` names what was waited for, `console_tail` has its last lines."""

    code = "TB410"
    who = "the author of the kernel under test"
    act = (
        "read the last lines of its console; if the guest did not answer, see whether the host was busy "
        "(`log.jsonl`, `stages.jsonl`)"
    )

    def __init__(self, guest: str, stage: str, why: str, console_tail: tuple[str, ...] = ()) -> None:
        tail = "".join(f"\n    | {line}" for line in console_tail)
        super().__init__(f"guest {guest}: {stage}: {why}" + (f"\n  last lines of its console:{tail}" if tail else ""))
        self.guest = guest
        self.stage = stage
        self.why = why
        self.console_tail = console_tail


class WireBroken(GuestError):
    """A connection to the guest or to its QEMU broke: often the first sign of the guest's end, rarely the cause."""

    code = "TB420"
    who = "the author of the kernel under test; if QEMU ended, the administrator of this machine"
    act = "find out which ended first: `console.log` for the guest, `qemu.log` for QEMU"


class CommandFailed(GuestError):
    """A command in the guest exited with another status than 0, or did not end in time."""

    code = "TB430"
    who = "the author of the command, or of the kernel that it runs on"
    act = "read its output, in the message and in `ssh.log`"

    def __init__(self, guest: str, command: str, status: str, output: str) -> None:
        super().__init__(
            f"guest {guest}: `{command}`: expected status 0, got {status}: {output.strip() or '(no output)'}"
        )
        self.guest = guest
        self.command = command
        self.status = status
        self.output = output


class DeviceMismatch(GuestError):
    """The guest has other devices than its topology asks for, so no measurement on it would be valid."""

    code = "TB440"
    who = "the author of the kernel under test, or of the file"
    act = "check that the kernel has a driver for each disk type of the topology"

    def __init__(self, guest: str, differences: tuple[str, ...]) -> None:
        super().__init__(
            f"guest {guest} differs from its topology and is refused:" + "".join(f"\n  {d}" for d in differences)
        )
        self.differences = differences


# A message shows at most this many characters of a value.
_MOST_SHOWN = 120


class ReadingError(GuestError):
    """A number from the guest was not read, or is not one that a kernel prints: its value is unknown, and not zero."""

    code = "TB450"
    who = "the author of the kernel under test, or of what runs on it"
    act = (
        "look at the file in the guest that the message names; if it is as it should be, the guest was short of memory "
        "or time"
    )

    def __init__(self, where: str, expected: str, got: str) -> None:
        shown = got if len(got) <= _MOST_SHOWN else f"{got[:_MOST_SHOWN]}... ({len(got)} characters)"
        super().__init__(f"{where}: expected {expected}, got {shown!r}")
        self.where = where


def error_classes() -> tuple[type[TestbedError], ...]:
    """Return all error classes, by code."""
    classes: list[type[TestbedError]] = []
    waiting = [TestbedError]
    while waiting:
        classes.append(waiting.pop())
        waiting += classes[-1].__subclasses__()
    return tuple(sorted(classes, key=lambda kind: kind.code))


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group: it caused the cancellation of the others, and is the one to report."""
    error = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error


def from_code(message: str, code: str) -> TestbedError:
    """Make an error that another process of the testbed reported: of the class with this code, but without its
    attributes.
    """
    kind = next((kind for kind in error_classes() if kind.code == code), TestbedError)
    error = kind.__new__(kind)
    TestbedError.__init__(error, message)
    return error
