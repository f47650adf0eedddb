"""A bug's scripts: their interpreters, their paths in the guest, and mistakes that show before any guest starts.
Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Literal

from testbed.topology.graph import NamespaceOf, build_graph
from testbed.topology.model import GuestModel

# The folder of scripts in a guest; /run is a tmpfs there.
HOME = "/run/testbed"
# The exit status by which a script reports that it could not try, as for `git bisect run`.
CANNOT_TRY = 125
Language = Literal["bash", "sh", "python", "perl", "other"]
_PLAIN = "bash"
_LANGUAGES: tuple[tuple[re.Pattern[str], Language], ...] = (
    (re.compile("bash"), "bash"),
    (re.compile("sh|dash|ash"), "sh"),
    (re.compile(r"python[0-9.]*"), "python"),
    (re.compile(r"perl[0-9.]*"), "perl"),
)
SHELLS = ("bash", "sh")
_KINDS = r"(?:DEV|NUM|FILE)_\w+"
# How shell, Python, Perl and C code read an environment variable; `op` is followed by the value to use where it is not
# set.
_USES = (
    re.compile(r"\$(?P<name>[A-Za-z_]\w*)"),
    re.compile(r"\$\{[!#]?(?P<name>[A-Za-z_]\w*)(?P<op>:?[-+=])?"),
    re.compile(r"(?:environ(?:\.get)?|getenv)\s*[\[(]\s*[\"'](?P<name>[A-Za-z_]\w*)[\"']\s*(?P<op>,)?"),
    re.compile(r"\$ENV\{\s*[\"']?(?P<name>[A-Za-z_]\w*)[\"']?\s*\}"),
)
_SETTERS = re.compile(
    r"\b(?:read|for|select|local|export|declare|typeset|readonly|mapfile|readarray|getopts|coproc|let|unset)\b"
)
_BARE = re.compile(r"(?<![\w$])(?<!\$\{)[A-Za-z_]\w*")
_SETS = (
    re.compile(r"(?<![\w$])([A-Za-z_]\w*)(?:\[[^\]]{0,200}\])?\+?=(?!=)"),
    re.compile(r"\b(?:printf\s+-v|wait\s+-p)\s+([A-Za-z_]\w*)"),
    re.compile(r"\$\{([A-Za-z_]\w*):?="),
    re.compile(r"(?:\benviron\[|\bENV\{)\s*[\"']?([A-Za-z_]\w*)[\"']?\s*[\]}]\s*=(?!=)"),
    re.compile(r"\b(?:set|put)env\(\s*[\"']([A-Za-z_]\w*)"),
)
# Assignments in the arithmetic of ((...)).
_COUNTED = re.compile(r"(?<![\w$])([A-Za-z_]\w*)\s*(?:[-+*/%|&^]?=(?!=)|\+\+|--)")
# A script may come from anybody: longer lines are cut, and no more mistakes than these are reported.
_LONGEST_LINE = 4096
_MOST_SAID = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script, run as `INTERPRETER /run/testbed/NAME`. `interpreter`: words, the last of which may contain spaces, as
    in `#!` lines."""

    name: str
    text: str
    interpreter: tuple[str, ...]

    @property
    def path(self) -> str:
        """Its `$0`."""
        return f"{HOME}/{self.name}"

    @property
    def language(self) -> Language:
        words = " ".join(self.interpreter).split()
        if words and words[0].rpartition("/")[2] == "env":
            words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        program = words[0].rpartition("/")[2] if words else ""
        return next((language for pattern, language in _LANGUAGES if pattern.fullmatch(program)), "other")


def script(name: str, text: str, interpreter: str | None = None) -> Script:
    """Make the script of a file `name`. Without `interpreter` its `#!` line names one, parsed as the kernel does; else
    it is bash."""
    # Interpreters begin their messages with the name, by which they are told apart from output: it must have no spaces
    # or colons.
    plain = re.sub(r"[^\w.+-]", "_", name)[:100] or "script"
    words = interpreter.split() if interpreter else _asked_for(text) or [_PLAIN]
    return Script(name=f"_{plain}" if plain in ("bin", ".", "..") else plain, text=text, interpreter=tuple(words))


def _asked_for(text: str) -> list[str]:
    """Return the words of a `#!` line: a program, and all the rest as one argument (fs/binfmt_script.c)."""
    first = text.partition("\n")[0]
    return first[2:].strip().split(maxsplit=1) if first.startswith("#!") else []


def variable(name: str) -> str:
    """Return a name of the topology in the form that environment variables use."""
    return name.upper().replace("-", "_")


def environment_names(guest: GuestModel) -> tuple[str, ...]:
    """Return the names of the variables that a guest's scripts get, without those of the guest's own `environment`;
    their values are made by `script_runner.script_environment`."""
    nodes = build_graph(guest).nodes
    devices = [key.name for key in nodes if key.kind == "device"]
    disks = [*guest.disks, *(key.name for key, node in nodes.items() if isinstance(node.model, NamespaceOf))]
    groups = (("DEV", devices), ("NUM", disks), ("FILE", list(guest.loops)))
    return ("SEED", *(f"{kind}_{variable(name)}" for kind, names in groups for name in names))


def script_mistakes(text: str, guest: GuestModel) -> Iterator[tuple[int, str]]:
    """Find mistakes in a script for a guest, each with its line."""
    lines = text.split("\n")
    if text.startswith("\ufeff"):
        yield (
            1,
            r"expected text without a byte order mark, which hides the first line;"
            r" sed -i '1s/^\xef\xbb\xbf//' mends the file",
        )
    if all(not line.strip() or line.lstrip().startswith("#") for line in lines):
        yield 1, "expected a script that does something, got none but comments and empty lines"
    with_cr = next((number for number, line in enumerate(lines, 1) if line.endswith("\r")), None)
    if with_cr is not None:
        yield (
            with_cr,
            r"expected lines that end with LF, got CR LF, whose CR a shell takes for a letter;"
            r" sed -i 's/\r$//' mends the file",
        )
    if "\0" in text:
        yield (
            text[: text.index("\0")].count("\n") + 1,
            "expected text, got a NUL, which no shell reads; is this file a program?",
        )
    yield from islice(_unmade(lines, environment_names(guest), guest.environment), _MOST_SAID)


def _unmade(lines: list[str], names: tuple[str, ...], environment: Collection[str]) -> Iterator[tuple[int, str]]:
    """Find variables that look like the testbed's but are set neither by the topology nor by the script, so that they
    are empty."""
    bare = [_without_comment(line[:_LONGEST_LINE]) for line in lines]
    own = _set(bare)
    ours = re.compile(f"{_KINDS}|SEED")
    for number, line in enumerate(bare, 1):
        told: set[str] = set()
        for pattern in _USES:
            for found in pattern.finditer(line):
                name = found["name"]
                if name in told or name in names or name in environment or name in own or found.groupdict().get("op"):
                    continue
                near = _near(name, names)
                if ours.fullmatch(name) is None and near is None:
                    continue
                told.add(name)
                yield number, _said(name, near or next(iter(get_close_matches(name, names, 1, 0.7)), None), names)


def _said(name: str, near: str | None, names: tuple[str, ...]) -> str:
    kind = name.partition("_")[0]
    known = [one for one in names if one.startswith(f"{kind}_")] or list(names)
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    longer = near is not None and name.startswith(near)
    meant = f"; did you mean {f'${{{near}}}{name[len(near) :]}' if longer and near else near}?" if near else ""
    return f"expected a variable that the topology makes ({listed}) or that the script sets, got ${name}{meant}"


def _near(name: str, names: tuple[str, ...]) -> str | None:
    """Return the testbed's variable that differs from `name` by one letter added, dropped or changed, or by two swapped
    letters."""
    if len(name) < 4 or not name.isupper():
        return None
    return next((one for one in names if _one_step(name, one)), None)


def _one_step(left: str, right: str) -> bool:
    short, long = sorted((left, right), key=len)
    if len(long) > len(short) + 1:
        return False
    same = next((at for at, (one, other) in enumerate(zip(short, long, strict=False)) if one != other), len(short))
    if len(long) == len(short) + 1:
        return short[same:] == long[same + 1 :]
    return short[same + 1 :] == long[same + 1 :] or (
        short[same : same + 2] == long[same : same + 2][::-1] and short[same + 2 :] == long[same + 2 :]
    )


def _set(lines: Iterable[str]) -> set[str]:
    """Return the variables to which a script assigns a value itself, in any way that one line shows."""
    found: set[str] = set()
    for line in lines:
        for pattern in _SETS:
            found.update(pattern.findall(line))
        for part in re.split("[;|&]", line):
            if setter := _SETTERS.search(part):
                found.update(_BARE.findall(part, setter.end()))
        if "((" in line:
            found.update(_COUNTED.findall(line))
    return found


def _without_comment(line: str) -> str:
    """Return a line of a script up to its comment, a # that begins a word outside of quotes within the line."""
    quote = ""
    escaped = False
    for at, character in enumerate(line):
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line
