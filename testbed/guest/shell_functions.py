"""Shell functions that our scripts in guests share, and the parser of their output. Pure.

The functions print the content of a file between lines with a random mark. A file that was not read, or whose content
was cut, is an error and not an empty text. The functions are for the guest's login shell, dash: bash's `read` seeks
back after each line, which makes the kernel generate the file again, so that a line may begin in the middle of another
one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from testbed import cgroupfs
from testbed.errors import ReadingError
from testbed.units import parse_whole

# enter CGROUP: moves the calling shell into a cgroup, or fails. It checks the result: writing to a plain file that is
# called cgroup.procs would succeed and move nothing.
ENTER = """\
enter() {
    if [ -d "/sys/fs/cgroup/$1" ] && echo 0 >"/sys/fs/cgroup/$1/cgroup.procs"; then
        while read -r here; do [ "$here" != "0::/$1" ] || return 0; done </proc/self/cgroup
    fi
    echo "/sys/fs/cgroup/$1: cannot be entered" >&2
    return 1
}
"""
# take FILE...: prints files by the shell itself, since one more program would take longer than all of it. `read` does
# not distinguish an error from the end of a file: a regular file that still exists afterwards counts as read.
# section NAME: begins a section of the output. note NAME VALUE: records a value. finish: marks the end of the output.
_TAKE = """\
take() {
    for taken; do
        if [ ! -e "$taken" ]; then echo "MARK absent $taken"; continue; fi
        echo "MARK file $taken"
        line= how=unread
        while IFS= read -r line; do printf '%s\\n' "$line"; line=; done <"$taken" && [ -f "$taken" ] && how=whole
        printf '%s\\nMARK %s %s\\n' "$line" "$how" "$taken"
    done
}
section() { echo "MARK section $1"; }
note() { echo "MARK note $1 $2"; }
finish() { echo "MARK finish"; }
"""


def new_separator() -> str:
    """Return a random mark, which occurs in no file and in no command's output."""
    return f"@{secrets.token_hex(8)}"


def function_definitions(mark: str) -> str:
    """Return the shell functions `enter`, `take`, `section`, `note` and `finish`."""
    return ENTER + _TAKE.replace("MARK", mark)


def take_cgroups(files: Iterable[str], depths: Iterable[int]) -> str:
    """Return shell code that takes `files` of all cgroups at these depths (0: the root), where they have them."""
    groups = " ".join(cgroupfs.ROOT + "/*" * depth + "/" for depth in depths)
    return f"""\
for group in {groups}; do
    for file in {" ".join(files)}; do
        [ ! -e "$group$file" ] || take "$group$file"
    done
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTexts:
    """The files of one section of a script's output.

    `texts`: content by path. `unread`: why a file could not be read, by path. `notes`: values by name. `guest`: the
    guest's name.
    """

    guest: str
    texts: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def where(self, path: str) -> str:
        """Return the name of a file for messages."""
        return f"guest {self.guest}: {path}"

    def text(self, path: str) -> str:
        """Return the content of a file.

        :raise ReadingError: it was not read.
        """
        if path in self.texts:
            return self.texts[path]
        raise ReadingError(self.where(path), "to read it", self.unread.get(path, "nothing: it was not looked at"))

    def note(self, name: str) -> str:
        """Return a value that the script recorded.

        :raise ReadingError: it recorded none of that name.
        """
        if name in self.notes:
            return self.notes[name]
        raise ReadingError(f"guest {self.guest}: its script", f"a note of its {name}", "none")


_WHY = {"absent": "no such file", "unread": "an error, or the file is gone"}


def sections(output: str, mark: str, guest: str) -> Mapping[str, FileTexts]:
    """Parse the output of a script into sections; what comes before the first one has the name "".

    :raise ReadingError: the script did not reach its `finish`, or its output was cut.
    """
    found = {"": FileTexts(guest=guest)}
    here = found[""]
    finished, pending = False, ("", "")
    for part in output.split(f"{mark} ")[1:]:
        head, _, body = part.partition("\n")
        verb, _, name = head.partition(" ")
        if verb == "section":
            here = found[name] = FileTexts(guest=guest)
        elif verb == "file":
            pending = name, body.removesuffix("\n")
        elif verb == "whole" and pending[0] == name:
            here.texts[name] = pending[1]
        elif verb in _WHY:
            here.unread[name] = _WHY[verb]
        elif verb == "note":
            key, _, value = name.partition(" ")
            here.notes[key] = value
        elif verb == "finish":
            finished = True
    if not finished:
        raise ReadingError(
            f"guest {guest}: its counters",
            "what its script prints at the end",
            f"the end of its output: {output[-60:]}",
        )
    return found


def lines(output: str, word: str) -> list[list[str]]:
    """Return, for each line that begins with `word`, the words after it."""
    return [line.split()[1:] for line in output.splitlines() if line == word or line.startswith(f"{word} ")]


def printed_word(output: str, name: str, where: str) -> str:
    """Return the word after `name` in the only line `NAME WORD`.

    :raise ReadingError: there is no such line, or more than one.
    """
    found = lines(output, name)
    if len(found) != 1 or len(found[0]) != 1:
        raise ReadingError(where, f"one line `{name} ...`", output[-120:] or "nothing")
    return found[0][0]


def printed_number(output: str, name: str, where: str) -> int:
    """Return the whole number in the only line `NAME NUMBER`; raises as `printed_word`."""
    return parse_whole(printed_word(output, name, where), f"{where}, {name}")


def named_values(
    output: str, word: str, names: tuple[str, ...], where: str, *, values: int = 1
) -> dict[str, list[str]]:
    """Return the values of lines `WORD NAME VALUE...`, by name.

    Each of `names` must have exactly one line, with `values` values.

    :raise ReadingError: a name has no line or two, or more or fewer values.
    """
    found: dict[str, list[str]] = {}
    for words in lines(output, word):
        if not words or len(words) != 1 + values or words[0] in found:
            raise ReadingError(where, f"`{word} NAME` and {values} more, each name once", " ".join([word, *words]))
        found[words[0]] = words[1:]
    if missing := [name for name in names if name not in found]:
        raise ReadingError(where, f"a line `{word} {missing[0]} ...`", output[-120:] or "nothing")
    return found
