"""What a guest must have after it was set up, and what it has: files of /proc and /sys against the topology. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.units import is_digits, is_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a file of the guest must say, or how much a folder must hold: each of the words of `expected` must stand there.

    `line`: only the line that begins so counts; `{NUMBER}` in it is MAJ:MIN of `of`. `where`: the place in the topology that says so.
    `reason`: why a kernel may have it otherwise.
    """

    where: str
    file: str
    expected: str
    line: str = ""
    of: str | None = None
    reason: str = ""


# Of a folder, how much is in it.
_SHOW = """\
show() {
    if [ -d "$1" ]; then
        set -- "$1"/*
        echo $#
    elif [ -e "$1" ]; then
        while read -r line; do echo "$line"; done <"$1"
    fi
}"""

# Of what a guest has otherwise.
_MOST_SHOWN = 300


def script(facts: tuple[Expected, ...]) -> str:
    """Prints `read back`, `number PATH MAJ:MIN` of each device that a fact names, and each fact's file after a line `== N`.

    The files are read by the shell itself: a program for each would take longer than all of it.
    """
    devices = sorted({fact.of for fact in facts if fact.of is not None})
    numbers = [f"echo number {shlex.quote(path)} $(stat -Lc %Hr:%Lr {shlex.quote(path)})" for path in devices]
    lines = [f"echo '== {number}'; show {shlex.quote(fact.file)}" for number, fact in enumerate(facts)]
    return "\n".join([_SHOW, "echo read back", *numbers, *lines]) + "\n"


def differences(facts: tuple[Expected, ...], output: str) -> tuple[str, ...]:
    """What the guest has otherwise than the topology says, from what `script` printed; empty where they agree."""
    numbers, texts = _parts(output.partition("read back\n")[2])
    said = []
    for number, fact in enumerate(facts):
        begin = fact.line.format(NUMBER=numbers.get(fact.of or "", "?"))
        lines = [line for line in texts.get(number, ()) if line.replace("\t", " ").startswith(begin)]
        if not any(_says(line[len(begin) :], fact.expected) for line in lines):
            got = "; ".join(line.strip() for line in lines)[:_MOST_SHOWN] or "nothing"
            said.append(
                f"{fact.where}: expected {fact.expected}, got {got} ({fact.file}){f'; {fact.reason}' if fact.reason else ''}"
            )
    return tuple(said)


def _parts(output: str) -> tuple[Mapping[str, str], Mapping[int, list[str]]]:
    """MAJ:MIN by device, and the lines of each file by its number."""
    numbers: dict[str, str] = {}
    texts: dict[int, list[str]] = {}
    text: list[str] | None = None
    for line in output.splitlines():
        match line.split(" "):
            case ["==", number] if is_digits(number, 9):
                text = texts[int(number)] = []
            case ["number", path, number] if text is None:
                numbers[path] = number
            case _ if text is not None:
                text.append(line)
            case _:
                pass
    return numbers, texts


def _says(line: str, expected: str) -> bool:
    """Whether each expected word stands in a line; numbers may be written otherwise (`100` and `100.00`)."""
    words = {_plain(word) for word in line.split()}
    return all(_plain(word) in words for word in expected.split())


def _plain(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{float(value):g}" if "." in value and is_number(value) else word
