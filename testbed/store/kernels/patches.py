"""Parses patches and quilt's series files, and explains why `git apply` refused a patch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from testbed.errors import BuildError

# "diff --git a/x b/x", "rename from x", and in plain diffs "--- a/x", then "+++ b/x", both perhaps with a time after a
# tab.
_GIT_NAMES = re.compile(r"^diff --git (.+)$", re.MULTILINE)
_MOVED = re.compile(r"^(?:rename|copy) from (.+)$", re.MULTILINE)
_NAMES = re.compile(r"^--- ([^\t\n]+)(?:\t.*)?\n\+\+\+ ([^\t\n]+)", re.MULTILINE)
_HUNK = re.compile(
    r"@@ -(?P<old>[0-9]{1,9})(?:,(?P<old_count>[0-9]{1,9}))? \+(?P<new>[0-9]{1,9})(?:,(?P<new_count>[0-9]{1,9}))? @@"
)
# A path has 4096 bytes at most, and such a line has two.
_LONGEST_HEADER = 8500


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One patch. `name`: where it came from; `text`: a diff, perhaps after other text; `strip`: as of `patch -p`."""

    name: str
    subject: str
    text: str
    strip: int = 1


def detect_strip(text: str) -> int:
    """Return how many leading folders to strip from a diff's paths (-p): 1, or 0 for one without `a/` and `b/`
    (git's diff.noprefix).
    """
    if headers := _GIT_NAMES.findall(text):
        moved = set(_MOVED.findall(text))
        # "x x", or "x y" if x is renamed or copied to y.
        bare = [rest for rest in headers if f"{rest} " == 2 * f"{rest[: len(rest) // 2]} " or _begins_with(rest, moved)]
    else:
        headers = [old for old, new in _NAMES.findall(text) if "/dev/null" not in (old, new)]
        bare = [old for old, new in _NAMES.findall(text) if old == new]
    return 0 if headers and bare == headers and not any(name.startswith(("a/", "b/")) for name in headers) else 1


def _begins_with(rest: str, moved: set[str]) -> bool:
    """Whether one of some names is followed by a space at the beginning of the rest of a header."""
    ends = [at for at, character in enumerate(rest[:_LONGEST_HEADER]) if character == " "] if moved else []
    return any(rest[:end] in moved for end in ends)


def parse_quilt_series(series: str, name: str) -> tuple[tuple[str, int | None], ...]:
    """Parse quilt's `series` (quilt(1)): file names, each with its -p level, None if the line has none.

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


# " create mode 120000 drivers/link", " mode change 100644 => 100755 scripts/x.sh"; regular files have modes 100....
_MODE = re.compile(
    r"^ (?:create mode|delete mode|mode change \d+ =>) (?!100)(?P<mode>\d{6}) (?P<path>.+)$", re.MULTILINE
)


def touched_files(output: str, name: str) -> frozenset[str]:
    """Return the files that a patch touches, by their new names; some may not exist.

    `output`: of `git apply --numstat --summary -z`.

    :raise BuildError: the patch changes something else than text in regular files.
    """
    *files, summary = output.split("\0")
    if link := _MODE.search(summary):
        raise BuildError(
            f"{name}: {link['path']}: expected a regular file, got mode {link['mode']}: links and submodules are not "
            "built"
        )
    found = set()
    for one in files:
        match one.split("\t", 2):
            case [added, _, path]:
                pass
            case _:
                raise BuildError(f"{name}: expected git's counts of changed lines for each file, got {one[:100]!r}")
        if added == "-":
            raise BuildError(
                f"{name}: {path}: expected a change of text, got a binary one; commit it to a git tree, and build that"
            )
        found.add(path)
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """One hunk of a patch: the `number`th of its file, from 1. `line`, `text`: what it expects there.

    `bare`: it has no lines of context.
    """

    file: str
    number: int
    line: int
    text: tuple[str, ...]
    bare: bool


def list_hunks(patch: Patch, *, reverse: bool = False) -> tuple[Hunk, ...]:
    """List the hunks of a patch in order, with the text that it expects before, or in `reverse` after, its change."""
    sign = "+" if reverse else "-"
    found: list[Hunk] = []
    file, number, line, left, text, bare = "", 0, 0, [0, 0], [], True
    for patch_line in patch.text.splitlines():
        if max(left) > 0:
            kind = patch_line[:1] or " "
            left = [left[0] - (kind in " -"), left[1] - (kind in " +")]
            bare = bare and kind != " "
            if kind in f" {sign}":
                text.append(patch_line[1:])
            if max(left) <= 0:
                found.append(Hunk(file=file, number=number, line=line, text=tuple(text), bare=bare))
        elif patch_line.startswith("--- ") or (
            patch_line.startswith("+++ ") and not patch_line.startswith("+++ /dev/null")
        ):
            file, number = "".join(patch_line.split(maxsplit=2)[1:2]).split("/", patch.strip)[-1], 0
        elif match := _HUNK.match(patch_line):
            number, text, bare = number + 1, [], True
            line = int(match["new" if reverse else "old"])
            left = [int(match["old_count"] or 1), int(match["new_count"] or 1)]
    return tuple(found)


def has_no_place(patch: Patch, *, reverse: bool) -> str | None:
    """Return why a patch cannot be placed, or None. Without context `git apply` would place a hunk at the file's end.

    A hunk that begins in the first line may cover the whole file, which leaves no context.
    """
    for hunk in list_hunks(patch, reverse=reverse):
        if hunk.bare and hunk.line > 1:
            return (
                f"{patch.name}: {hunk.file}: hunk {hunk.number}, at line {hunk.line}: expected lines of context around "
                "what it changes, got none; make it with `diff -u` or `git diff`, without -U0"
            )
    return None


def has_wrong_counts(patch: Patch) -> str | None:
    """Return why a patch would be applied only in part, or None.

    After an edit by hand, changes below a hunk may not be counted in its header; `git apply` takes them for text
    between patches, and ignores them without a message.
    """
    left, below = [0, 0], False
    for number, line in enumerate(patch.text.splitlines(), 1):
        if max(left) > 0:
            kind = line[:1] or " "
            left = [left[0] - (kind in " -"), left[1] - (kind in " +")]
            below = max(left) <= 0
        elif match := _HUNK.match(line):
            left, below = [int(match["old_count"] or 1), int(match["new_count"] or 1)], False
        elif not line or line == "--" or line.startswith(("-- ", "--- ", "+++ ", "diff ", "Index: ")):
            below = False
        elif below and line[0] in "+-":
            return (
                f"{patch.name}: line {number} of its text, {line[:60]!r}: expected no change that the hunk above does "
                "not count in its @@ line, for git leaves such out; make the patch anew, or correct its counts (rediff)"
            )
    return None


_FAILED = re.compile(r"^error: patch failed: (?P<file>.+):(?P<line>\d+)$", re.MULTILINE)


def explain_refusal(patch: Patch, stderr: str, read: Callable[[str], str | None], *, reverse: bool) -> str:
    """Explain why `git apply` refused a patch: file, hunk, what the hunk expects and what is there.

    `stderr`: of `git apply`; `read` returns the text of a file of the source, None if there is no such file.
    """
    verb = "be reverted" if reverse else "be applied"
    failed = _FAILED.search(stderr)
    if failed is None:
        lines = [line.removeprefix("error: ") for line in stderr.splitlines() if line.startswith("error: ")]
        return f"{patch.name}: cannot {verb}: {lines[0] if lines else stderr.strip() or 'git apply gave no reason'}"
    file, line = failed["file"], int(failed["line"])
    hunk = next((one for one in list_hunks(patch, reverse=reverse) if (one.file, one.line) == (file, line)), None)
    if hunk is None:
        return f"{patch.name}: cannot {verb}: {file}, at line {line}"
    lines = (read(file) or "").splitlines()
    place, there = _nearest(hunk, lines)
    missed = next((at for at, want in enumerate(hunk.text) if at >= len(there) or there[at] != want), None)
    if missed is None:
        # All its lines are there; a hunk without context before or after it must be at the file's beginning or end.
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


# The limits of lines compared, and of places tried nearest to the hunk's own: comparing takes cubic time in the lines.
_MOST_COMPARED, _MOST_PLACES = 40, 50


def _nearest(hunk: Hunk, lines: list[str]) -> tuple[int, list[str]]:
    """Find where in a file, from 0, a hunk most likely belongs, and its text: the hunk's own line, or a more
    similar one.
    """

    text = hunk.text[:_MOST_COMPARED]

    def alike(at: int) -> float:
        return difflib.SequenceMatcher(None, text, lines[at : at + len(text)], autojunk=False).ratio()

    own = min(hunk.line - 1, max(len(lines) - 1, 0))
    places = sorted(
        {own, *(at for at, line in enumerate(lines) if text and line == text[0])}, key=lambda at: abs(at - own)
    )
    place = max(places[:_MOST_PLACES], key=alike)
    return place, lines[place : place + len(hunk.text)]
