"""Tells messages of interpreters apart from the output of a script: about jobs, traces, and commands that cannot be
run. Pure.

Errors of programs and messages of the shell arrive through the same file descriptor. A message begins with the path of
the script, which is ours (`script_files.HOME`), with the name of a shell, or with PS4; it goes on over further lines
while a quote or a here-document of its first line is open. Tested with bash 5.2 and dash 0.5.12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from testbed.bugs.model import Bug
from testbed.bugs.script_files import HOME, Script
from testbed.regex import LONGEST_LINE, compile_linear, compile_user_regex, escape

_SHELL = r"-?(?:\S*/)?(?:bash|sh|dash|ash)"
_STATES = (
    r"Hangup|Interrupt|Quit|Illegal instruction|Trace/breakpoint trap|Aborted|Bus error|Floating point exception|Killed"
    r"|Segmentation fault|"
    r"User defined signal [12]|Broken pipe|Alarm clock|Terminated|Stack fault|Stopped|Bad system call|Done|Exit \d+"
)
# Bash prints `PID STATE` and the source of the job; dash prints only the state.
_JOB_PATTERN = rf"\s*\d+ (?:{_STATES})(?: \(core dumped\))?\b"
_JOB = compile_linear(_JOB_PATTERN)
_BARE_JOB = compile_linear(rf"(?:{_STATES})(?: \(core dumped\))?")
_MISSING_PATTERN = r"(?:exec: |\.: |source: )?(?P<program>[^:]+): (?:command not found|not found)"
_MISSING = compile_linear(_MISSING_PATTERN)
_NO_PROGRAM = compile_linear(r"(?P<program>[^:]+): (?:cannot execute|\S+: bad interpreter).*")
# Said of a program or of a file in a redirection; the line of the script shows which.
_EITHER = compile_linear(
    r"(?P<program>[^:]+): (?P<why>No such file or directory|Permission denied|Exec format error|Is a directory)"
)
_SYNTAX = compile_linear(r"(?:\S+: )?(?:[Ss]yntax error|unexpected EOF|[Bb]ad substitution|EOF in backquote).*")
_LAUNCHERS = (
    r"(?:\S*/)?(?:env|timeout|nice|nohup|chroot|setsid|taskset|chrt|ionice|xargs|unshare|setpriv|stdbuf"
    r"|nsenter|flock|time|busybox)"
)
_NOT_LAUNCHED = compile_linear(
    rf"{_LAUNCHERS}: (?P<failed>(?:failed to (?:execute|run command)|cannot run command) )?(?P<program>[^:]+): "
    r"(?P<why>No such file or directory|Permission denied|Exec format error)"
)
# Quotes around names in messages, in the C locale or in a UTF-8 locale.
_QUOTES_OF_NAMES = "'\"\u2018\u2019"
_OF_LANGUAGE = {
    "python": compile_linear(
        r"(?:ModuleNotFoundError|ImportError|SyntaxError|IndentationError|TabError|NameError): .*"
    ),
    "perl": compile_linear(r"Can't locate \S+ in @INC.*|(?:syntax error|Execution of \S+ aborted|BEGIN failed).*"),
}
# The places where a command begins; and commands that print their arguments. Functions of a script may do that as well.
_BEGINS = r"(?:^|[;&|({!`]|\$\(|\b(?:then|do|else|exec|sudo|time|if|while|until)\s|-c\s*[\"'])\s*"
_PRINTS = frozenset(
    ["echo", "printf", "print", "cat", "tee", "logger", "say", "puts", "fputs", "fprintf", "write", "warn", "die"]
)
_FUNCTION = compile_linear(r"(?m)\bdef\s+(\w+)\s*\(|\bfunction\s+([\w-]+)|(?:^|[^\w-])(\w[\w-]*)\s*\(\)\s*\{")
_DOCUMENT = compile_linear(r"<<-?\s*(?:'([^']+)'|\"([^\"]+)\"|\\?(\w+))")
_NOT_THERE = "not found in the guest's image"
_JOINS = compile_linear(r"\d?>&\s*1|&>|\|&")
_PROMPT = compile_linear(r"\bPS4=[\"']?([^$`\"'\\\s]+[^$`\"'\\]*)")
_LONGEST_TRACE = 400
# Comparisons of printed lines with the source, in all: some seconds.
_MOST_COMPARISONS = 10_000_000
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotRun:
    """A command that could not be run: `where` in the script, such as `crash.sh:3`; `what` it was and why."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCounted:
    """A line that matched but was not printed by the script; `why` this is known."""

    line: str
    why: str

    def __str__(self) -> str:
        shown = self.line if len(self.line) <= _SHOWN_CHARACTERS else f"{self.line[:_SHOWN_CHARACTERS]}..."
        return f"{shown!r} matches and does not count: {self.why}"


def cannot_run(script: Script, output: str, errors: str) -> list[CannotRun]:
    """Return the commands that a script could not run, from all that was printed."""
    source = Source(script)
    streams = (Stream(source, errors=False), output), (Stream(source, errors=True), errors)
    return [
        found
        for stream, text in streams
        for line in text.splitlines()
        if (found := stream.failed_command(line[:LONGEST_LINE])) is not None
    ]


def self_matches(bug: Bug) -> Iterator[str]:
    """Warn of patterns that match the text of the bug's own script, or a shell's messages about its jobs."""
    for number, condition in enumerate(bug.signature, 1):
        for text in (condition.output, condition.expect):
            if text is None or (pattern := compile_user_regex(text)).spans_lines:
                continue
            lines = (
                (at, line) for at, line in enumerate(bug.main.text.splitlines(), 1) if pattern.search(line) is not None
            )
            if found := next(lines, None):
                at, line = found
                yield (
                    f"signature {number}: {text!r} matches line {at} of the script itself, {line.strip()[:80]!r}:"
                    " where a shell or another program quotes that, it does not count; a pattern of what is printed"
                    " alone, such as '^...$', is surer"
                )
            if any(pattern.search(state) is not None for state in ("Killed", "Segmentation fault", "Aborted")):
                said = "what a shell says of a job that was killed, which is no output; status: 137 is 128 + SIGKILL"
                yield f"signature {number}: {text!r} matches {said}"


class Source:
    """A script's text, prepared to be compared with the lines of its outputs."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.lines = script.text.splitlines()
        self.plain = [_collapsed(line) for line in self.lines]
        self.whole = _collapsed(" ".join(self.plain))
        text = "\n".join(self.lines)
        words = " ".join(script.interpreter)
        flags = r"(?m)\bset\s+(?:-\w+\s+)*-\w*{0}|-o\s+{1}\b|(?:^|[\s/])(?:ba|da)?sh\s+(?:-\w+\s+)*-\w*{0}"
        self.traces = compile_linear(flags.format("x", "xtrace")).search(f"{words}\n{text}") is not None
        self.echoes = compile_linear(flags.format("v", "verbose")).search(f"{words}\n{text}") is not None
        self.joins = _JOINS.search(text) is not None
        prompt = _PROMPT.search(text)
        first = prompt[1] if prompt else "+ "
        self.trace = compile_linear(f"{escape(first[0])}+{escape(first[1:])}")
        named = (name for found in _FUNCTION.finditer(text) for name in found.groups() if name)
        self._prints = _PRINTS | set(named)
        begins = rf"(?:{_BEGINS}|\b(?:or|and)\s|:\s)" if script.language == "python" else _BEGINS
        command = compile_linear(rf"{begins}([\w.-]+)")
        self._commands = [[(found.start(1), found[1]) for found in command.finditer(line)] for line in self.plain]
        self._comparisons = 0

    def command(self, program: str, line: int) -> bool:
        """Whether a line of the script runs `program`, rather than redirecting to a file of that name."""
        if not 0 < line <= len(self.plain):
            return False
        return (
            compile_linear(rf"{_BEGINS}(?:\w+=\S*\s+)*[\"']?{escape(program)}").search(self.plain[line - 1]) is not None
        )

    def is_quoted(self, line: str, start: int, end: int) -> bool:
        """Whether a part of a printed line is a quotation: it follows the same printing command as in the source.

        :raise OverflowError: the guest has printed so many pieces of the source that the comparisons are too many.
        """
        for number, source in enumerate(self.plain):
            self._comparisons += 1
            at = source.find(line[start:end])
            while at >= 0:
                self._comparisons += 1 + len(self._commands[number])
                if self._comparisons > _MOST_COMPARISONS:
                    raise OverflowError
                for begin, word in self._commands[number]:
                    if begin < at and word in self._prints and line[:end].endswith(source[begin : at + end - start]):
                        return True
                at = source.find(line[start:end], at + 1)
        return False


class Stream:
    """One output of a script, read line by line. `errors`: standard error, which has the interpreter's messages, unless
    the script joins both."""

    def __init__(self, source: Source, *, errors: bool) -> None:
        script = source.script
        self._source = source
        self._has_messages = errors or source.joins
        self._has_bare_states = errors and script.language == "sh"
        self._of_language = _OF_LANGUAGE.get(script.language)
        path = escape(script.path)
        self._prefix = compile_linear(
            rf"(?P<who>{path}|{_SHELL}|{escape(HOME)}/bin/\w+): (?:-c: )?(?:line )?(?P<line>\d{{1,9}}): (?P<rest>.*)"
        )
        self._other = compile_linear(rf"\S+: (?:line )?\d+: (?P<rest>{_JOB_PATTERN}.*|{_MISSING_PATTERN})")
        self._echoed = Counter(line.rstrip() for line in source.lines) if errors and source.echoes else Counter[str]()
        self._until = ""  # the open quote of a message, or the word that ends its here-document
        self._left = 0
        self._checked = False

    def why_not_output(self, line: str) -> str | None:
        """Return why a line is the interpreter's and not output of the script; None for output. Must be called once for
        every line."""
        if self._until and self._continues(line):
            return "the shell printed it as a part of the script's own text"
        if found := self._match_message(line):
            rest = found["rest"]
            if job := _JOB.match(rest):
                self._open(rest[job.end() :], checked=True)
                return "it is what the shell says of a job of the script, with the job's source"
            return "it is an error of the shell, and not the script's output"
        if self._has_bare_states and _BARE_JOB.fullmatch(line):
            return "it is what the shell says of a job of the script"
        if self._source.traces and self._has_messages and (trace := self._source.trace.match(line)):
            if self._source.script.language == "bash":
                self._open(line[trace.end() :], checked=False)
            return "it is the shell's trace of the script (set -x)"
        if self._echoed[line.rstrip()] > 0:
            self._echoed[line.rstrip()] -= 1
            return "it is the script's own line, which the shell prints (set -v)"
        return None

    def _match_message(self, line: str) -> Any:
        """Match a line that an interpreter may have written."""
        if ": " not in line:
            return None
        return self._prefix.fullmatch(line) or self._other.fullmatch(line)

    def _open(self, text: str, *, checked: bool) -> None:
        """Note the quote or here-document that is open at the end of a message. `checked`: the following lines must be
        in the script."""
        self._until = _still_open(text, words_only=not checked)
        self._left, self._checked = (len(self._source.lines) if checked else _LONGEST_TRACE), checked

    def _continues(self, line: str) -> bool:
        until, self._left = self._until, self._left - 1
        over = (
            _collapsed(line) not in self._source.whole if self._checked else self._source.trace.match(line) is not None
        )
        if over or self._left < 0:
            self._until = ""
            return False
        if until in _QUOTES:
            self._until = _still_open(line, until)
        elif line.strip() == until:
            self._until = ""
        return True

    def failed_command(self, line: str) -> CannotRun | None:
        """Return the command that an interpreter or launcher reports in this line that it cannot run."""
        if not self._has_messages:
            return None
        script = self._source.script
        found = self._match_message(line)
        if found is None:
            return self._not_launched(line)
        named = found.groupdict()
        who, number, rest = named.get("who"), int(named.get("line") or 0), found["rest"]
        where = f"{script.name}:{number}" if who == script.path else script.name
        if _SYNTAX.fullmatch(rest):
            return CannotRun(where=where, what=rest)
        if missing := _MISSING.fullmatch(rest) or _NO_PROGRAM.fullmatch(rest):
            said = _NOT_THERE if "not found" in rest else rest.removeprefix(missing["program"]).removeprefix(": ")
            return CannotRun(where=where, what=f"{missing['program']}: {said}")
        either = _EITHER.fullmatch(rest)
        if either and who == script.path and self._source.command(either["program"], number):
            return CannotRun(where=where, what=f"{either['program']}: {either['why']}")
        return None

    def _not_launched(self, line: str) -> CannotRun | None:
        script = self._source.script
        found = _NOT_LAUNCHED.fullmatch(line) if ": " in line else None
        # `env: 'perf'`, `unshare: failed to execute perf`, `xargs: perf`; but `flock: cannot open lock file /a` is no
        # program.
        if found and (found["failed"] or " " not in found["program"]):
            program = found["program"].strip(_QUOTES_OF_NAMES)
            return CannotRun(
                where=script.name,
                what=f"{program}: {_NOT_THERE if found['why'].startswith('No such') else found['why']}",
            )
        if self._of_language is not None and self._of_language.fullmatch(line):
            return CannotRun(where=script.name, what=line)
        return None


_QUOTES = ("'", '"', "`")


def _still_open(text: str, quote: str = "", *, words_only: bool = False) -> str:
    """Return the quote that is open at the end of shell source, or the word that ends its here-document; empty if none
    is. `words_only`: only a quote at the beginning of a word opens, as in bash's trace, where others are literal."""
    escaped = False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and (not words_only or at == 0 or text[at - 1] in " =$'"):
            quote = character
    document = _DOCUMENT.search(text[:LONGEST_LINE]) if not quote and not words_only else None
    return quote or (next(word for word in document.groups() if word) if document else "")


def _collapsed(line: str) -> str:
    return " ".join(line.split())
