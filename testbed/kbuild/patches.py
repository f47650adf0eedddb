"""A patch series as text: mailboxes, patch files, quilt's list; and why a patch was refused, in words."""

from __future__ import annotations

import difflib
import email
import email.policy
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage

from testbed.errors import BuildError

# A message of a mailbox begins after an empty line (RFC 4155); `git format-patch` and `b4` write one such line, too.
_MESSAGE = re.compile(rb"(?:\A|(?<=\n\n))From \S+ .*\d\d:\d\d:\d\d.*\n")
_NUMBER = re.compile(r"\[[^\]]*?(?P<number>\d+)/(?P<of>\d+)[^\]]*\]")
_DIFF = re.compile(r"^(?:diff --git |--- \S.*\n\+\+\+ \S)", re.MULTILINE)
_HUNK = re.compile(r"@@ -(?P<old>\d+)(?:,(?P<old_count>\d+))? \+(?P<new>\d+)(?:,(?P<new_count>\d+))? @@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One patch. `name`: where it came from; `text`: a diff, perhaps after other text; `strip`: leading folders of its paths (-p)."""

    name: str
    subject: str
    text: str
    strip: int = 1


def of_file(data: bytes, name: str, strip: int = 1) -> tuple[Patch, ...]:
    """The patches in a file: a mailbox, one mail, or a plain diff.

    :raise BuildError: there is no diff in it, or the series has a hole.
    """
    data = data.replace(b"\r\n", b"\n")
    starts = [match.end() for match in _MESSAGE.finditer(data)]
    if not starts or not data.startswith(b"From "):
        head = data.split(b"\n\n", 1)[0]
        mail = re.search(rb"^Subject: ", head, re.MULTILINE) and re.search(rb"^From: ", head, re.MULTILINE)
        patch = _of_mail(data, name, strip) if mail else Patch(name=name, subject=name, text=_text(data), strip=strip)
        if patch is None or not _DIFF.search(patch.text):
            raise BuildError(f"{name}: expected a patch, a mail with one, or a mailbox, found no diff in it")
        return (patch,)
    ends = [*(match.start() for match in _MESSAGE.finditer(data)), len(data)][1:]
    found = [patch for start, end in zip(starts, ends, strict=True) if (patch := _of_mail(data[start:end], name, strip)) is not None]
    if not found:
        raise BuildError(f"{name}: expected a mailbox with patches, found {len(starts)} messages without a diff")
    return _in_order(found, name)


def _of_mail(data: bytes, name: str, strip: int) -> Patch | None:
    """None for a cover letter or an answer."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    subject = " ".join(str(message["Subject"] or "").split())
    parts = [part for part in message.walk() if part.get_content_maintype() == "text" and part.get_content_subtype() != "html"]
    text = "\n".join(_text(part.get_payload(decode=True) or b"") for part in parts)  # type: ignore[arg-type]  # bytes, of a text part
    if re.match(r"(?i)re:", subject) or not _DIFF.search(text):
        return None
    return Patch(name=f"{name}: {subject}", subject=re.sub(r"^\[[^\]]*\]\s*", "", subject), text=text, strip=strip)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def _in_order(patches: list[Patch], name: str) -> tuple[Patch, ...]:
    """By the numbers of their subjects, where they have some."""
    numbered = {patch: _NUMBER.search(patch.name) for patch in patches}
    if None in numbered.values():
        return tuple(patches)
    numbers = {patch: int(match["number"]) for patch, match in numbered.items() if match is not None}
    expected = max(int(match["of"]) for match in numbered.values() if match is not None)
    for number in range(1, expected + 1):
        times = list(numbers.values()).count(number)
        if times != 1:
            what = "is missing" if times == 0 else f"is there {times} times; give one version of the series"
            raise BuildError(f"{name}: expected patches 1 to {expected}, each once; patch {number} {what}")
    return tuple(sorted(patches, key=lambda patch: numbers[patch]))


def of_quilt(series: str, name: str) -> tuple[tuple[str, int], ...]:
    """File names, and how many folders of their paths go, of quilt's `series` (quilt(1)).

    :raise BuildError: a line has an option that is not understood.
    """
    found = []
    for number, line in enumerate(series.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) > 2 or (len(words) == 2 and not re.fullmatch(r"-p\d", words[1])):
            raise BuildError(f"{name}:{number}: expected a file name, perhaps with -pN, got {line.strip()!r}")
        found.append((words[0], int(words[1][2:]) if len(words) == 2 else 1))
    return tuple(found)


# " create mode 120000 drivers/link", " mode change 100644 => 100755 scripts/x.sh"; of what git calls a regular file it begins with 100.
_MODE = re.compile(r"^ (?:create mode|delete mode|mode change \d+ =>) (?!100)(?P<mode>\d{6}) (?P<path>.+)$", re.MULTILINE)


def touched(said: str, name: str) -> frozenset[str]:
    """The files of a patch, some of which may not exist; of a rename or copy the new name. `said`: `git apply --numstat --summary -z`.

    :raise BuildError: it changes something else than text in regular files.
    """
    *files, summary = said.split("\0")
    if link := _MODE.search(summary):
        raise BuildError(f"{name}: {link['path']}: expected a regular file, got mode {link['mode']}: links and submodules are not built")
    found = set()
    for one in files:
        added, _, path = one.split("\t", 2)
        if added == "-":
            raise BuildError(f"{name}: {path}: expected a change of text, got a binary one; commit it to a git tree, and build that")
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
            file, number = said.split()[1].split("/", patch.strip)[-1], 0
        elif match := _HUNK.match(said):
            number, text, bare = number + 1, [], True
            line = int(match["new" if reverse else "old"])
            left = [int(match["old_count"] or 1), int(match["new_count"] or 1)]
    return tuple(found)


def placeless(patch: Patch, *, reverse: bool) -> str | None:
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
        at, expected = (after, "the end of the file") if after < len(lines) else (0, "the beginning of the file, and nothing before it")
    else:
        at, expected = place + missed, hunk.text[missed].strip()
    got = lines[at].strip() if at < len(lines) else "the end of the file"
    return (
        f"{patch.name}: cannot {verb}: {file}: hunk {hunk.number}, at line {line}\n"
        f"    expected: {expected}\n"
        f"    found in line {at + 1}: {got}"
    )


def _nearest(hunk: Hunk, lines: list[str]) -> tuple[int, list[str]]:
    """Where in a file a hunk is most likely meant, from 0, and what is there: its own place, or one that has more of its lines."""

    def alike(at: int) -> float:
        return difflib.SequenceMatcher(None, hunk.text, lines[at : at + len(hunk.text)], autojunk=False).ratio()

    own = min(hunk.line - 1, max(len(lines) - 1, 0))
    places = sorted({own, *(at for at, line in enumerate(lines) if hunk.text and line == hunk.text[0])}, key=lambda at: abs(at - own))
    place = max(places, key=alike)
    return place, lines[place : place + len(hunk.text)]
