"""A patch as text, and quilt's list of them; what a patch touches, and why it was refused, in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from testbed.errors import BuildError

# "diff --git a/x b/x", "rename from x", and what plain diffs have: "--- a/x", then "+++ b/x", both perhaps with a time behind a tab.
_GIT_NAMES = re.compile(r"^diff --git (.+)$", re.MULTILINE)
_MOVED = re.compile(r"^(?:rename|copy) from (.+)$", re.MULTILINE)
_NAMES = re.compile(r"^--- ([^\t\n]+)(?:\t.*)?\n\+\+\+ ([^\t\n]+)", re.MULTILINE)
_HUNK = re.compile(
    r"@@ -(?P<old>[0-9]{1,9})(?:,(?P<old_count>[0-9]{1,9}))? \+(?P<new>[0-9]{1,9})(?:,(?P<new_count>[0-9]{1,9}))? @@"
)
# A path has 4096 bytes at most, and such a line two.
_LONGEST_HEADER = 8500


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One patch. `name`: where it came from; `text`: a diff, perhaps after other text; `strip`: leading folders of its paths (-p)."""

    name: str
    subject: str
    text: str
    strip: int = 1


def levels(text: str) -> int:
    """How many leading folders of a diff's paths to strip (-p): 1, or 0 where it was made without `a/` and `b/` (git's diff.noprefix)."""
    if headers := _GIT_NAMES.findall(text):
        moved = set(_MOVED.findall(text))
        # "x x", or "x y" where x is moved or copied to y
        bare = [rest for rest in headers if f"{rest} " == 2 * f"{rest[: len(rest) // 2]} " or _begins_with(rest, moved)]
    else:
        headers = [old for old, new in _NAMES.findall(text) if "/dev/null" not in (old, new)]
        bare = [old for old, new in _NAMES.findall(text) if old == new]
    return 0 if headers and bare == headers and not any(name.startswith(("a/", "b/")) for name in headers) else 1


def _begins_with(rest: str, moved: set[str]) -> bool:
    """Whether one of some names stands before a space in the rest of a header."""
    ends = [at for at, character in enumerate(rest[:_LONGEST_HEADER]) if character == " "] if moved else []
    return any(rest[:end] in moved for end in ends)


def parse_quilt_series(series: str, name: str) -> tuple[tuple[str, int | None], ...]:
    """File names, and how many folders of their paths go (None: it does not say), of quilt's `series` (quilt(1)).

    :raise BuildError: a line has an option that is not understood.
    """
    found: list[tuple[str, int | None]] = []
    for number, line in enumerate(series.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) > 2 or (len(words) == 2 and not re.fullmatch(r"-p\d", words[1])):
            raise BuildError(f"{name}:{number}: expected a file name, perhaps with -pN, got {line.strip()!r}")
        found.append((words[0], int(words[1][2:]) if len(words) == 2 else None))
    return tuple(found)


# " create mode 120000 drivers/link", " mode change 100644 => 100755 scripts/x.sh"; of what git calls a regular file it begins with 100.
_MODE = re.compile(
    r"^ (?:create mode|delete mode|mode change \d+ =>) (?!100)(?P<mode>\d{6}) (?P<path>.+)$", re.MULTILINE
)


def touched_files(said: str, name: str) -> frozenset[str]:
    """The files of a patch, some of which may not exist; of a rename or copy the new name. `said`: `git apply --numstat --summary -z`.

    :raise BuildError: it changes something else than text in regular files.
    """
    *files, summary = said.split("\0")
    if link := _MODE.search(summary):
        raise BuildError(
            f"{name}: {link['path']}: expected a regular file, got mode {link['mode']}: links and submodules are not built"
        )
    found = set()
    for one in files:
        match one.split("\t", 2):
            case [added, _, path]:
                pass
            case _:
                raise BuildError(f"{name}: expected of git how much is changed in each file, got {one[:100]!r}")
        if added == "-":
            raise BuildError(
                f"{name}: {path}: expected a change of text, got a binary one; commit it to a git tree, and build that"
            )
        found.add(path)
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """One place that a patch changes: the `number`th of its file, counted from 1. `line`, `text`: what is expected there.

    `bare`: nothing around the change is shown.
    """

    file: str
    number: int
    line: int
    text: tuple[str, ...]
    bare: bool


def hunks(patch: Patch, *, reverse: bool = False) -> tuple[Hunk, ...]:
    """What a patch expects to find, or what it would have left, in the order of the file."""
    sign = "+" if reverse else "-"
    found: list[Hunk] = []
    file, number, line, left, text, bare = "", 0, 0, [0, 0], [], True
    for said in patch.text.splitlines():
        if max(left) > 0:
            kind = said[:1] or " "
            left = [left[0] - (kind in " -"), left[1] - (kind in " +")]
            bare = bare and kind != " "
            if kind in f" {sign}":
                text.append(said[1:])
            if max(left) <= 0:
                found.append(Hunk(file=file, number=number, line=line, text=tuple(text), bare=bare))
        elif said.startswith("--- ") or (said.startswith("+++ ") and not said.startswith("+++ /dev/null")):
            file, number = "".join(said.split(maxsplit=2)[1:2]).split("/", patch.strip)[-1], 0
        elif match := _HUNK.match(said):
            number, text, bare = number + 1, [], True
            line = int(match["new" if reverse else "old"])
            left = [int(match["old_count"] or 1), int(match["new_count"] or 1)]
    return tuple(found)


def has_no_place(patch: Patch, *, reverse: bool) -> str | None:
    """Why a patch cannot be placed, or None. Where no context says otherwise `git apply` takes the end of the file for its place.

    A hunk of a whole file, which begins in its first line, has none around it.
    """
    for hunk in hunks(patch, reverse=reverse):
        if hunk.bare and hunk.line > 1:
            return (
                f"{patch.name}: {hunk.file}: hunk {hunk.number}, at line {hunk.line}: expected lines of context around what it changes, "
                "got none; make it with `diff -u` or `git diff`, without -U0"
            )
    return None


def has_wrong_counts(patch: Patch) -> str | None:
    """Why a patch would be applied in part, or None: below a hunk stand changes that its header does not count, as after an edit by hand,
    and `git apply` takes them for the text around patches, without a word.
    """
    left, below = [0, 0], False
    for number, said in enumerate(patch.text.splitlines(), 1):
        if max(left) > 0:
            kind = said[:1] or " "
            left = [left[0] - (kind in " -"), left[1] - (kind in " +")]
            below = max(left) <= 0
        elif match := _HUNK.match(said):
            left, below = [int(match["old_count"] or 1), int(match["new_count"] or 1)], False
        elif not said or said == "--" or said.startswith(("-- ", "--- ", "+++ ", "diff ", "Index: ")):
            below = False
        elif below and said[0] in "+-":
            return (
                f"{patch.name}: line {number} of its text, {said[:60]!r}: expected no change that the hunk above does not count in its "
                "@@ line, for git leaves such out; make the patch anew, or mend its counts (rediff)"
            )
    return None


_FAILED = re.compile(r"^error: patch failed: (?P<file>.+):(?P<line>\d+)$", re.MULTILINE)


def refusal(patch: Patch, said: str, read: Callable[[str], str | None], *, reverse: bool) -> str:
    """Why `git apply` refused a patch: file, hunk, what it expected and what is there.

    `said`: its standard error; `read`: the text of a file of the source, None where there is none.
    """
    verb = "be taken away" if reverse else "be applied"
    failed = _FAILED.search(said)
    if failed is None:
        lines = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
        return f"{patch.name}: cannot {verb}: {lines[0] if lines else said.strip() or 'git apply gave no reason'}"
    file, line = failed["file"], int(failed["line"])
    hunk = next((one for one in hunks(patch, reverse=reverse) if (one.file, one.line) == (file, line)), None)
    if hunk is None:
        return f"{patch.name}: cannot {verb}: {file}, at line {line}"
    lines = (read(file) or "").splitlines()
    place, there = _nearest(hunk, lines)
    missed = next((at for at, want in enumerate(hunk.text) if at >= len(there) or there[at] != want), None)
    if missed is None:
        # All of its lines are there: without context before or after them it is for the beginning or the end of the file.
        after = place + len(hunk.text)
        at, expected = (
            (after, "the end of the file")
            if after < len(lines)
            else (0, "the beginning of the file, and nothing before it")
        )
    else:
        at, expected = place + missed, hunk.text[missed].strip()
    got = lines[at].strip() if at < len(lines) else "the end of the file"
    return (
        f"{patch.name}: cannot {verb}: {file}: hunk {hunk.number}, at line {line}\n"
        f"    expected: {expected}\n"
        f"    found in line {at + 1}: {got}"
    )


# Of a hunk, and of a file, from the hunk's own line on: the time of a comparison is the cube of the lines.
_MOST_COMPARED, _MOST_PLACES = 40, 50


def _nearest(hunk: Hunk, lines: list[str]) -> tuple[int, list[str]]:
    """Where in a file a hunk is most likely meant, from 0, and what is there: its own place, or one that has more of its lines."""

    text = hunk.text[:_MOST_COMPARED]

    def alike(at: int) -> float:
        return difflib.SequenceMatcher(None, text, lines[at : at + len(text)], autojunk=False).ratio()

    own = min(hunk.line - 1, max(len(lines) - 1, 0))
    places = sorted(
        {own, *(at for at, line in enumerate(lines) if text and line == text[0])}, key=lambda at: abs(at - own)
    )
    place = max(places[:_MOST_PLACES], key=alike)
    return place, lines[place : place + len(hunk.text)]
