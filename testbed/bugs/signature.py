"""Decides whether a bug shows: compares what a guest does with the conditions of the bug's signature. Pure: takes lines
and numbers.

A condition holds once each of its keys has matched, at any time; the first condition that holds is the hit.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from testbed.bugs.model import Condition
from testbed.bugs.script_files import Script
from testbed.bugs.shell_messages import CannotRun, NotCounted, Source, Stream
from testbed.guest.channels.kernel_log import clean
from testbed.regex import LONGEST_LINE, Pattern, compile_user_regex
from testbed.units import format_duration, is_digits

# Patterns over several lines search the last of the output, up to this size.
_KEPT_CHARACTERS = 1 << 20
# At most this many ignored lines and failed commands are remembered.
_MOST_NOTED = 50
# The exit status of a shell that found a command but cannot execute it, and of one that found none.
UNABLE = (126, 127)


class End(enum.Enum):
    """How a try ended, in the words of its report."""

    DONE = "the script ended"
    STOPPED = "stopped at the signature"
    TIMED_OUT = "the script did not end in time; the guest answers"
    HANG = "the guest hangs: neither SSH nor its agent answers"
    SSH = "its SSH connection broke while the guest goes on"
    PANIC = "the kernel panicked"
    OOPS = "the kernel oopsed"
    POWER_OFF = "the guest powered itself off"
    REBOOT = "the guest rebooted"
    QEMU = "QEMU ended"
    UNTRIED = "it was not tried"

    @property
    def of_guest(self) -> str | None:
        """The word for it in a condition's `guest` key; None where the guest lives."""
        return _GUEST_WORDS.get(self)


_GUEST_WORDS = {
    End.HANG: "hang",
    End.SSH: "ssh",
    End.PANIC: "panic",
    End.OOPS: "oops",
    End.POWER_OFF: "power-off",
    End.REBOOT: "reboot",
    End.QEMU: "qemu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The condition that holds, by its number in the file (from 1), and the text that matched."""

    condition: int
    seen: str


# A key of a condition, such as `console`.
_Key = str


@dataclass(slots=True)
class _Lines:
    """Splits bytes that arrive in pieces into lines, without control characters."""

    pending: bytes = b""

    def split(self, data: bytes) -> Iterator[str]:
        *lines, pending = (self.pending + data).split(b"\n")
        self.pending = pending[:LONGEST_LINE]
        return (_line(line) for line in lines)

    def rest(self) -> str:
        rest, self.pending = self.pending, b""
        return _line(rest)


def _line(raw: bytes) -> str:
    return clean(raw[:LONGEST_LINE].decode(errors="replace").rstrip("\r"), LONGEST_LINE)


@dataclass(slots=True)
class _Progress:
    """One condition, and which of its keys have matched so far (`seen`)."""

    number: int
    condition: Condition
    patterns: dict[_Key, Pattern]
    seen: dict[_Key, str] = field(default_factory=dict)
    from_script: set[_Key] = field(default_factory=set)  # keys that only the script itself has shown

    @property
    def wanted(self) -> tuple[_Key, ...]:
        keys = ("console", "output", "expect", "status", "counter", "hang", "guest")
        return tuple(key for key in keys if getattr(self.condition, key) is not None)

    @property
    def rests_on_script(self) -> bool:
        """Whether it is shown only by the script: by what it prints, how it ends, or that it does not end."""
        return all(key in self.from_script for key in self.wanted) and self.condition.status not in UNABLE


class SignatureMatcher:
    """Matches one try against a bug's signature. Feed it everything that the try shows; `hit` is the first condition
    that holds.

    `script`: the script that runs; messages of its interpreter do not count as its output. `failed_commands`: commands
    that the script could not run; with any of them, the script's output and exit status prove nothing, but console,
    counters and the guest's end still do. `uncounted`: lines that matched but were not printed by the script.
    `last_line`: the last line that the script printed.
    """

    def __init__(self, signature: Sequence[Condition], script: Script | None = None) -> None:
        self._conditions = [
            _Progress(
                number,
                one,
                {
                    key: compile_user_regex(text)
                    for key in ("console", "output", "expect")
                    if (text := getattr(one, key)) is not None
                },
            )
            for number, one in enumerate(signature, 1)
        ]
        self._console, self._stdout, self._stderr = _Lines(), _Lines(), _Lines()
        self._source = None if script is None else Source(script)
        self._streams = (
            None if self._source is None else (Stream(self._source, errors=False), Stream(self._source, errors=True))
        )
        # The lines of the output, if a pattern spans several.
        self._output: deque[str] = deque()
        self._output_characters = 0
        self._spans = any(pattern.spans_lines for one in self._conditions for pattern in one.patterns.values())
        self.hit: Match | None = None
        self._shown: _Progress | None = None  # the condition of the hit
        self.failed_commands: list[CannotRun] = []
        self.uncounted: list[NotCounted] = []
        self.last_line = ""
        self.undecidable = ""  # why it cannot be decided whether matching lines are the script's

    @property
    def counters(self) -> tuple[tuple[str, str], ...]:
        """The cgroup and counter of each condition that has them."""
        found = ((one.condition.cgroup, one.condition.counter) for one in self._conditions)
        return tuple(dict.fromkeys((str(cgroup), str(counter)) for cgroup, counter in found if counter is not None))

    @property
    def uses_counters(self) -> bool:
        """Whether a counter at the end of the script can decide a condition."""
        return any(one.condition.counter is not None or one.condition.expect is not None for one in self._conditions)

    @property
    def hang_limits_s(self) -> tuple[float, ...]:
        """The `hang` times of the conditions, in seconds, sorted."""
        return tuple(sorted({one.condition.hang / 1e6 for one in self._conditions if one.condition.hang is not None}))

    def feed_console(self, data: bytes) -> None:
        for line in self._console.split(data):
            self._search(line, "console", "expect")

    def feed_output(self, data: bytes) -> None:
        """Take a piece of the script's standard output."""
        for line in self._stdout.split(data):
            if self._is_own(line, errors=False):
                self._keep(line)

    def _keep(self, line: str) -> None:
        """Remember a line of the output; drop the oldest lines where they exceed the limit."""
        if not self._spans:
            return
        self._output.append(line)
        self._output_characters += len(line) + 1
        while self._output_characters > _KEPT_CHARACTERS:
            self._output_characters -= len(self._output.popleft()) + 1

    def feed_errors(self, data: bytes) -> None:
        """Take a piece of the script's standard error."""
        for line in self._stderr.split(data):
            self._is_own(line, errors=True)

    def _is_own(self, line: str, *, errors: bool) -> bool:
        """Match a line of the script's outputs; returns whether the script itself printed it."""
        if not line:
            return True
        why = None
        if self._streams is not None:
            stream = self._streams[errors]
            if len(self.failed_commands) < _MOST_NOTED and (failed := stream.failed_command(line)) is not None:
                self.failed_commands.append(failed)
            why = stream.why_not_output(line)
        if why is None:
            self.last_line = line
        self._search(line, "output", "expect", script=True, why=why)
        return why is None

    def feed_counter(self, cgroup: str, counter: str, value: int) -> None:
        for one in self._conditions:
            wanted = one.condition
            if (wanted.cgroup, wanted.counter) != (cgroup, counter):
                continue
            above = wanted.above is not None and value > wanted.above
            if above or (wanted.below is not None and value < wanted.below):
                self._record(one, "counter", f"{cgroup}/{counter} is {value}")

    def feed_counters(self, lines: Sequence[str]) -> None:
        """Take all counters at the end of the script, one line `CGROUP/FILE NAME VALUE` each."""
        for line in lines:
            self._search(line[:LONGEST_LINE], "expect")

    def feed_runtime(self, after_s: float) -> None:
        """The script still runs after this time."""
        for one in self._conditions:
            if one.condition.hang is not None and one.condition.hang / 1e6 <= after_s:
                self._record(one, "hang", f"no end after {format_duration(one.condition.hang)}", script=True)

    def script_ended(self, status: int) -> None:
        """The script has ended with this status (128 plus the signal number if a signal killed it)."""
        self.flush()
        for one in self._conditions:
            wanted = one.condition.status
            if wanted is not None and (status not in (0, *UNABLE) if wanted == "failure" else status == wanted):
                self._record(one, "status", f"status {status}", script=True)

    def why_unknown(self, status: int | None) -> str:
        """Why the script proves neither that the bug shows nor that it is absent; empty where it does. `status`: its
        exit status."""
        if any(one.condition.status == status and status in UNABLE for one in self._conditions):
            return ""
        if self.undecidable:
            return self.undecidable
        if self.failed_commands:
            more = f"; and {len(self.failed_commands) - 1} more" if len(self.failed_commands) > 1 else ""
            return (
                f"{self.failed_commands[0]}{more}; what the script can do without is asked for with `command -v`,"
                " or has no error output"
            )
        if status in UNABLE:
            return f"status {status}: the shell could not run a command; the last line: {self.last_line or 'none'}"
        return ""

    def describe_exit(self, status: int) -> str:
        """Describe the end of a script that does not show the bug."""
        said = f"status {status}, " + (
            f"last line: {self.last_line[:200]}" if self.last_line else "and it printed nothing"
        )
        return said + (f"; {self.uncounted[0]}" if self.uncounted else "")

    def flush(self) -> None:
        """Match what is left, since nothing more will be printed."""
        self._search(self._console.rest(), "console", "expect")
        if (rest := self._stdout.rest()) and self._is_own(rest, errors=False):
            self._keep(rest)
        self._is_own(self._stderr.rest(), errors=True)
        output = "\n".join(("", *self._output))
        for one in self._conditions:
            for key in ("output", "expect"):
                pattern = one.patterns.get(key)
                if pattern is not None and pattern.spans_lines and (found := pattern.search(output)) is not None:
                    self._record(one, key, found, script=True)

    @property
    def rests_on_script(self) -> bool:
        """Whether the hit is shown by the script alone."""
        return self._shown is not None and self._shown.rests_on_script

    def drop_doubtful_hit(self) -> None:
        """Drop a hit that rests on the script alone if the script turns out to lack a command, whose message came
        later."""
        if (self.failed_commands or self.undecidable) and self.rests_on_script:
            self.hit = self._shown = None

    def guest_ended(self, end: End) -> None:
        """The guest has ended, or does not answer."""
        word = end.of_guest
        for one in self._conditions:
            if one.condition.guest is not None and word is not None and one.condition.guest in ("lost", word):
                self._record(one, "guest", end.value)

    def _search(self, line: str, *keys: _Key, script: bool = False, why: str | None = None) -> None:
        """Search a line for the patterns of `keys`. `script`: the script printed it. `why`: the reason if the line does
        not count."""
        if not line:
            return
        for one in self._conditions:
            for key in keys:
                pattern = one.patterns.get(key)
                if pattern is None or key in one.seen or pattern.search(line) is None:
                    continue
                is_quoted = script and why is None and self._is_quoted(line, pattern)
                if why is not None or is_quoted:
                    if len(self.uncounted) < _MOST_NOTED:
                        self.uncounted.append(
                            NotCounted(line=line[:300], why=why or "it holds a piece of the script's own source")
                        )
                    continue
                self._record(one, key, line, script=script)

    def _is_quoted(self, line: str, pattern: Pattern) -> bool:
        """Whether each match in a line is a quotation from the script's source."""
        plain = " ".join(line.split())
        found = pattern.spans(plain)
        try:
            return (
                self._source is not None
                and bool(found)
                and all(self._source.is_quoted(plain, start, end) for start, end in found)
            )
        except OverflowError:
            # Neither a hit nor a miss.
            self.undecidable = (
                "the script prints pieces of its own source more often than they can be told from its output"
            )
            return True

    def _record(self, one: _Progress, key: _Key, said: str, *, script: bool = False) -> None:
        one.seen.setdefault(key, said.strip()[:300])
        if script:
            one.from_script.add(key)
        if self.hit is None and all(key in one.seen for key in one.wanted):
            if (self.failed_commands or self.undecidable) and one.rests_on_script:
                return
            self._shown = one
            self.hit = Match(condition=one.number, seen="; ".join(one.seen[key] for key in one.wanted))


def render(texts: Mapping[str, str]) -> tuple[str, ...]:
    """Format counters as lines `CGROUP/FILE NAME VALUE`. `texts`: the content of cgroup files by their paths below the
    cgroup root."""
    found: list[str] = []
    for path, text in sorted(texts.items()):
        for line in text.splitlines():
            words = line.split()
            if len(words) == 2 and is_digits(words[1].removeprefix("-")):
                found.append(f"{path} {words[0]} {words[1]}")
            elif len(words) == 1 and is_digits(words[0].removeprefix("-")):
                found.append(f"{path} {words[0]}")
    return tuple(found)
