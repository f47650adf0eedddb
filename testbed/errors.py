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
    │   ├── DeviceMismatch the guest's devices are not those of its topology
    │   └── ReadingError  a number of the guest was not read, or is none
    └── TemplateError     a saved template does not load, or its clone does not wake up (mended by making it again, once)

A message says where, what was expected, what was got, and what to do. Each class has a `code` that stays, `who` must act, and `act`: how;
docs/errors.md is made from them and from the docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.text import printable


class TestbedError(Exception):
    """Base of all errors that the testbed raises on purpose; raised itself where none of the others fits.

    What a message quotes, a guest may have said: whatever could steer a terminal is taken out.
    """

    __test__ = False  # no class of tests, whatever pytest thinks of its name
    code = "TB000"
    who = "whoever the message names"
    act = "do what the message says"

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(TestbedError):
    """The command line, or a call, asks for something that does not exist."""

    code = "TB100"
    who = "whoever typed or wrote it"
    act = "say it as the message expects; `testbed VERB --help` lists what a verb takes"


class BuildError(TestbedError):
    """A kernel cannot be built as asked for: its source, a patch, its configuration, or what the compiler says of them."""

    code = "TB120"
    who = "whoever wrote the patch or the configuration, or chose the source"
    act = "correct what the message shows; `testbed kernel build --help` lists what a build takes"


class HostError(TestbedError):
    """This machine cannot do what is needed: a tool, the network, the disk, QEMU itself."""

    code = "TB200"
    who = "whoever looks after this machine"
    act = "do what the message says; `testbed doctor` looks for everything that is missing, and says how to mend it"


class ToolMissing(HostError):
    """A program is not installed; `package` is the Debian package that has it."""

    code = "TB210"
    who = "whoever looks after this machine"
    act = "install the package that the message names"

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool}: not found on this machine; install it with: apt-get install {package}")
        self.tool = tool
        self.package = package


class TemplateError(TestbedError):
    """A template's saved state does not load, or its clone does not wake up."""

    code = "TB300"
    who = "nobody at first: the template is made again, once"
    act = "where it comes up again, boot with `--cold`, and look into the guest's `qemu.log` and `console.log`"


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
    """A topology or bug file is wrong; `problems` holds every mistake found, in the order of the file."""

    code = "TB110"
    who = "whoever wrote the file"
    act = "correct each place that the message names; `testbed validate FILE` looks for all mistakes and runs nothing"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class GuestError(TestbedError):
    """The guest did not do what it was asked."""

    code = "TB400"
    who = "whoever made the kernel under test, or what runs on it"
    act = "look into the guest's logs, in the folder that the run names last: `console.log`, `dmesg.txt`, `ssh.log`"


class GuestLost(GuestError):
    """The guest is gone or silent. `stage` names what was waited for, `console_tail` holds its last words."""

    code = "TB410"
    who = "whoever made the kernel under test"
    act = "read the last lines of its console; for a guest that was silent, see whether the host was busy (`log.jsonl`, `stages.jsonl`)"

    def __init__(self, guest: str, stage: str, why: str, console_tail: tuple[str, ...] = ()) -> None:
        tail = "".join(f"\n    | {line}" for line in console_tail)
        super().__init__(f"guest {guest}: {stage}: {why}" + (f"\n  last lines of its console:{tail}" if tail else ""))
        self.guest = guest
        self.stage = stage
        self.why = why
        self.console_tail = console_tail


class WireBroken(GuestError):
    """A connection to the guest or to its QEMU broke: often the first sign that the guest ends, and seldom the reason."""

    code = "TB420"
    who = "whoever made the kernel under test; where QEMU ended, whoever looks after this machine"
    act = "look for what ended first: `console.log` for the guest, `qemu.log` for QEMU"


class CommandFailed(GuestError):
    """A command in the guest ended with another status than 0, or not in time."""

    code = "TB430"
    who = "whoever made the command, or the kernel that it runs on"
    act = "read what it printed, in the message and in `ssh.log`"

    def __init__(self, guest: str, command: str, status: str, output: str) -> None:
        super().__init__(
            f"guest {guest}: `{command}`: expected status 0, got {status}: {output.strip() or '(no output)'}"
        )
        self.guest = guest
        self.command = command
        self.status = status
        self.output = output


class DeviceMismatch(GuestError):
    """The guest shows other devices than its topology asks for, so nothing measured on it would mean anything."""

    code = "TB440"
    who = "whoever made the kernel under test, or the file"
    act = "see whether the kernel has a driver for each kind of disk of the topology"

    def __init__(self, guest: str, differences: tuple[str, ...]) -> None:
        super().__init__(
            f"guest {guest} differs from its topology and is refused:" + "".join(f"\n  {d}" for d in differences)
        )
        self.differences = differences


# Of what was got a message shows so much.
_MOST_SHOWN = 120


class ReadingError(GuestError):
    """A number of the guest could not be read, or is none that a kernel prints: what it would have shown is unknown, and not zero."""

    code = "TB450"
    who = "whoever made the kernel under test, or what runs on it"
    act = "look at the file that the message names, in the guest; where it is as it should be, the guest was short of memory or time"

    def __init__(self, where: str, expected: str, got: str) -> None:
        shown = got if len(got) <= _MOST_SHOWN else f"{got[:_MOST_SHOWN]}... ({len(got)} characters)"
        super().__init__(f"{where}: expected {expected}, got {shown!r}")
        self.where = where


def flatten() -> tuple[type[TestbedError], ...]:
    """All classes of errors, by code."""
    found: list[type[TestbedError]] = []
    waiting = [TestbedError]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].__subclasses__()
    return tuple(sorted(found, key=lambda kind: kind.code))


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of failures at the same time the one to tell: the first stops the others."""
    found = group.exceptions[0]
    return first_error(found) if isinstance(found, BaseExceptionGroup) else found


def one_line(message: str, code: str) -> TestbedError:
    """An error that another process of the testbed tells of: of its class, as far as this one knows that, and without its attributes."""
    kind = next((one for one in flatten() if one.code == code), TestbedError)
    error = kind.__new__(kind)
    TestbedError.__init__(error, message)
    return error
