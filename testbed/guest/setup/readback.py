"""Checks a guest after its setup: compares files of /proc and /sys with the topology. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.units import is_digits, is_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a file of the guest must contain, or how many entries a folder must have: all words of `expected`.

    `line`: only lines that begin with this count; `{NUMBER}` in it stands for the MAJ:MIN of the device `of`. `where`:
    the place in the topology. `reason`: why a kernel may differ.
    """

    where: str
    file: str
    expected: str
    line: str = ""
    of: str | None = None
    reason: str = ""


# Prints a file, or how many entries a folder has.
_SHOW = """\
show() {
    if [ -d "$1" ]; then
        set -- "$1"/*
        echo $#
    elif [ -e "$1" ]; then
        while read -r line; do echo "$line"; done <"$1"
    fi
}"""

# How much of a file that differs is shown, in characters.
_MOST_SHOWN = 300


def script(facts: tuple[Expected, ...]) -> str:
    """Return a script that prints `read back`, `number PATH MAJ:MIN` for each device of a fact, and each fact's file
    after `== N`.

    The shell itself reads the files: one program per file would take longer than all of it.
    """
    devices = sorted({fact.of for fact in facts if fact.of is not None})
    numbers = [f"echo number {shlex.quote(path)} $(stat -Lc %Hr:%Lr {shlex.quote(path)})" for path in devices]
    lines = [f"echo '== {number}'; show {shlex.quote(fact.file)}" for number, fact in enumerate(facts)]
    return "\n".join([_SHOW, "echo read back", *numbers, *lines]) + "\n"


def differences(facts: tuple[Expected, ...], output: str) -> tuple[str, ...]:
    """Return the differences between the guest and the topology, as texts, from the output of `script`."""
    numbers, texts = _parts(output.partition("read back\n")[2])
    differing = []
    for number, fact in enumerate(facts):
        begin = fact.line.format(NUMBER=numbers.get(fact.of or "", "?"))
        lines = [line for line in texts.get(number, ()) if line.replace("\t", " ").startswith(begin)]
        if not any(_contains(line[len(begin) :], fact.expected) for line in lines):
            got = "; ".join(line.strip() for line in lines)[:_MOST_SHOWN] or "nothing"
            reason = f"; {fact.reason}" if fact.reason else ""
            differing.append(f"{fact.where}: expected {fact.expected}, got {got} ({fact.file}){reason}")
    return tuple(differing)


def _parts(output: str) -> tuple[Mapping[str, str], Mapping[int, list[str]]]:
    """Parse the output: MAJ:MIN by device, and the lines of each file by the number of its fact."""
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


def _contains(line: str, expected: str) -> bool:
    """Return whether a line has each expected word; numbers may be formatted differently (`100` and `100.00`)."""
    words = {_normalized(word) for word in line.split()}
    return all(_normalized(word) in words for word in expected.split())


def _normalized(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{float(value):g}" if "." in value and is_number(value) else word
