"""Patches as people send them: mailboxes, mails, `git format-patch` and plain diffs; which of them are one series, and in which order."""

from __future__ import annotations

import email
import email.policy
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from email.message import Message as Mail
from typing import Any

import re2

from testbed.errors import BuildError, UsageError
from testbed.store.kernels.patches import Patch, levels

# A message of a mailbox begins after an empty line (RFC 4155); `git format-patch` marks its own by this date, also without such a line.
_FORMAT_PATCH = rb"From [0-9a-f]{40,64} Mon Sep 17 00:00:00 2001\n"
_MESSAGE = re.compile(rb"(?:(?:\A|(?<=\n\n))From \S+ .*\d\d:\d\d:\d\d.*\n|^" + _FORMAT_PATCH + rb")", re.MULTILINE)
_MADE_BY_GIT = re.compile(rb"(?:" + _FORMAT_PATCH + rb"|diff --git )")
_DIFF = re.compile(r"^(?:diff --git |--- \S.*\n\+\+\+ \S)", re.MULTILINE)
_BRACKETS = re.compile(r"\s*\[(?P<words>[^\]]*)\]")
# "Re: [PATCH", "AW: [PATCH", "Re[2]: [PATCH"
_ANSWER = re2.compile(
    "(?i)(?:re|fwd?|aw|wg|sv|antw)\\b[^:]{0,5}:|[^\\[\\]]{1,20}(?:\\[\\d+\\])?[:\uff1a]\\s*\\[[^\\]]*(?:PATCH|RFC|\\d+/\\d+)"
)
_FIRST = "v1"
_MOST_SUBJECT, _MOST_HEADER = 1000, 2000
# Of a mailbox, whose largest have a thousand mails; and of one mail. Python's parser asks of each line whether it ends any of the parts
# around it: lines times parts is its time.
_MOST_MESSAGES, _MOST_PARTS, _MOST_NESTED, _MOST_LINES_OF_PARTS = 10_000, 1_000, 100, 10_000_000


class _Policy(email.policy.Compat32):
    """Headers as they stand, cut: Python's newer policy reads each by a recursive grammar, whose time grows faster than the header does. Of
    the subject, whose words may be encoded, that is what is wanted.
    """

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_MOST_HEADER]

    def header_fetch_parse(self, name: str, value: str) -> Any:
        if name.lower() == "subject":
            return email.policy.default.header_fetch_parse(name, value)
        return super().header_fetch_parse(name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What the brackets before a subject say: `[RFC PATCH v2 6.1 001/245]` is version `rfc-v2`, number 1 of 245."""

    version: str
    number: int | None = None
    of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One mail, or a plain diff. `tag`: None for one without; `key`: the same for copies of a mail, or empty."""

    patch: Patch
    tag: Tag | None
    key: str = ""
    is_answer: bool = False

    @property
    def diff(self) -> str:
        """What it changes, without what is around it; empty for a cover letter."""
        found = _DIFF.search(self.patch.text)
        return self.patch.text[found.start() :].split("\n-- \n")[0].rstrip() if found else ""

    @property
    def is_patch(self) -> bool:
        return not self.is_answer and self.diff != "" and (self.tag is None or self.tag.number != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is wanted of a thread or a partial series. `version`: as `version_of` says, or None; `numbers`: of patches, or none for all."""

    version: str | None = None
    numbers: tuple[int, ...] = ()


EVERYTHING = Selection()


def version_of(text: str) -> str:
    """A version as tags have it, of `2`, `v2`, `rfc`, `rfc-v2`, `RFC v2`.

    :raise UsageError: it is none.
    """
    found = re.fullmatch(r"(?P<rfc>rfc)?[- ]*v?(?P<number>\d{1,3}(?:\.\d{1,3})?)?", text.strip(), re.IGNORECASE)
    if found is None or not any(found.groups()):
        raise UsageError(f"--series-version {text}: expected a version such as 2, v2, or rfc-v1")
    return f"{'rfc-' if found['rfc'] else ''}v{found['number'] or 1}"


def numbers_of(text: str) -> tuple[int, ...]:
    """Numbers of patches, of `2-3,5`, as `b4 am -P` takes them.

    :raise UsageError: it is none.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last:
            raise UsageError(f"--series-patches {text}: expected numbers of patches such as 2-3,5")
        found |= dict.fromkeys(range(first, last + 1))
    return tuple(sorted(found))


def tag(subject: str) -> tuple[Tag | None, str]:
    """What the brackets before a subject say, and the subject without them; brackets of another kind (`[media] ...`) belong to it."""
    at, found = 0, None
    while found is None and (brackets := _BRACKETS.match(subject, at)):
        found, at = _tag(brackets["words"]), brackets.end()
    return (found, subject[at:].strip()) if found else (None, subject)


def _tag(words: str) -> Tag | None:
    number, version, rfc, is_tag = None, _FIRST, "", False
    for word in re.split(r"[\s,]+", re.sub(r"(\d)\s*/\s*(\d)", r"\1/\2", words)):
        if match := re.fullmatch(r"(\d{1,4})/(\d{1,4})", word):
            number, is_tag = (int(match[1]), int(match[2])), True
        elif match := re.fullmatch(r"(?i)(PATCH|RFC)?-?v?(\d{1,3}(?:\.\d{1,3})?)", word):
            # "6.1" alone is a branch (stable review), "v2" and "PATCHv2" are versions.
            version = f"v{match[2]}" if match[1] or word[0] in "vV" else version
        rfc = "rfc-" if re.match(r"(?i)RFC", word) else rfc
        is_tag = is_tag or re.match(r"(?i)PATCH|RFC", word) is not None
    if not is_tag:
        return None
    return Tag(version=rfc + version, number=number[0] if number else None, of=number[1] if number else None)


def messages(data: bytes, name: str, strip: int | None = None) -> tuple[Message, ...]:
    """What is in a file: the mails of a mailbox, one mail, or one plain diff. `strip`: leading folders of its paths (-p), None to find out.

    :raise BuildError: it is none of them, or damaged.
    """
    data = data.replace(b"\r\n", b"\n")
    starts = [(match.start(), match.end()) for match in _MESSAGE.finditer(data)]
    if len(starts) > _MOST_MESSAGES:
        raise BuildError(f"{name}: expected a mailbox of at most {_MOST_MESSAGES} messages, got {len(starts)}")
    if starts and not data[: starts[0][0]].strip():
        ends = [*(start for start, _ in starts[1:]), len(data)]
        return tuple(_of_mail(data[start:end], name, strip) for (_, start), end in zip(starts, ends, strict=True))
    head = data.split(b"\n\n", 1)[0]
    if re.search(rb"^Subject: ", head, re.MULTILINE) and re.search(rb"^From: ", head, re.MULTILINE):
        return (_of_mail(data, name, strip),)
    text = _text(data)
    if not _DIFF.search(text):
        raise BuildError(f"{name}: expected a patch, a mail with one, or a mailbox, found no diff in it")
    return (Message(patch=_patch(name, name, text, strip), tag=None),)


def made_by_git(head: bytes) -> bool:
    """Whether a file that begins so is of `git format-patch` or `git diff`, whatever it is called."""
    return _MADE_BY_GIT.match(head) is not None


def _parsed(data: bytes) -> Mail:
    """:raise ValueError: it has more parts than any mail."""
    nested = data.lower().count(b"\ncontent-type:")
    if nested > _MOST_NESTED or nested * data.count(b"\n") > _MOST_LINES_OF_PARTS:
        raise ValueError(f"expected at most {_MOST_NESTED} parts with a type, and fewer in a long mail, got {nested}")
    count = 0

    def part(policy: email.policy.Policy) -> Mail:
        nonlocal count
        count += 1
        if count > _MOST_PARTS:
            raise ValueError(f"expected at most {_MOST_PARTS} parts, got more")
        return Mail(policy)

    return email.message_from_bytes(data, policy=_Policy(message_factory=part))


def _of_mail(data: bytes, name: str, strip: int | None) -> Message:
    try:
        message = _parsed(data)
        subject = " ".join(str(message["Subject"] or "").split())[:_MOST_SUBJECT]
        key = "".join(str(message["Message-ID"] or "").split())
        parts = [
            part
            for part in message.walk()
            if part.get_content_maintype() == "text" and part.get_content_subtype() != "html"
        ]
        text = "\n".join(_text(part.get_payload(decode=True) or b"") for part in parts)  # type: ignore[arg-type]  # bytes, of a text part
    except (
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:  # as Python's parser fails on what is no mail
        raise BuildError(f"{name}: a mail in it cannot be read: {str(error)[:200] or type(error).__name__}") from error
    found, words = tag(subject)
    patch = _patch(f"{name}: {subject}", words, text, strip)
    return Message(patch=patch, tag=found, key=key, is_answer=_ANSWER.match(subject) is not None)


def _patch(name: str, subject: str, text: str, strip: int | None) -> Patch:
    return Patch(name=name, subject=subject, text=text, strip=levels(text) if strip is None else strip)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def series(
    found: Sequence[Message], name: str, selection: Selection = EVERYTHING, *, of_folder: bool = False
) -> tuple[Patch, ...]:
    """The patches of one series among messages, without cover letters, answers and copies: by their numbers, or as they come.

    A file of one mail may be any patch of its series; a folder, or a mailbox of several, must be all of it.

    :raise BuildError: there is none, more than one, or it has a hole.
    """
    patches = _without_copies([one for one in found if one.is_patch])
    if not patches:
        raise BuildError(f"{name}: expected a series of patches, found {len(found)} messages without a diff")
    patches = _of_version(patches, name, selection.version)
    numbered = [one for one in patches if _number(one)]
    if not numbered:
        if selection.numbers:
            raise BuildError(
                f"{name}: expected patches with numbers, as --series-patches names some, found none with one"
            )
        return tuple(one.patch for one in patches)
    if len(numbered) < len(patches):
        some = _some(one.patch.name for one in patches if not _number(one))
        raise BuildError(
            f"{name}: expected all patches with numbers (`[PATCH 1/2]`), or none, got {len(patches) - len(numbered)} without: {some}; "
            "take out what does not belong to it, or say the order in a file `series`"
        )
    return _in_order(numbered, name, selection.numbers, _diffless(found), alone=len(found) == 1 and not of_folder)


def _number(message: Message) -> int:
    """0: it has none."""
    return (message.tag.number or 0) if message.tag else 0


def _diffless(found: Iterable[Message]) -> frozenset[int]:
    return frozenset(_number(one) for one in found if not one.is_answer and not one.diff)


def _without_copies(patches: Iterable[Message]) -> list[Message]:
    """Of several copies of a mail the first: of one to two lists, and of one that was sent again unchanged."""
    kept: list[Message] = []
    seen: set[object] = set()
    for one in patches:
        keys: set[object] = {one.key} if one.key else set()
        keys |= {(one.tag, one.diff)} if _number(one) else set()
        if not keys & seen:
            kept.append(one)
        seen |= keys
    return kept


def _of_version(patches: list[Message], name: str, wanted: str | None) -> list[Message]:
    """A plain diff has no version, and is of each.

    :raise BuildError: there are several, and none is chosen; or not the one that is.
    """
    there = Counter(one.tag.version for one in patches if one.tag)
    said = ", ".join(
        f"{version} ({count} patch{'es' if count > 1 else ''})" for version, count in sorted(there.items())
    )
    if wanted is None and len(there) > 1:
        raise BuildError(
            f"{name}: expected one version of a series, found {said}; choose one, such as --series-version {max(there, key=_newer)}"
        )
    if wanted is not None and there and wanted not in there:
        raise BuildError(f"{name}: expected version {wanted} of a series, found {said}")
    return [one for one in patches if wanted is None or one.tag is None or one.tag.version == wanted]


def _newer(version: str) -> tuple[bool, list[int]]:
    return not version.startswith("rfc"), [int(number) for number in re.findall(r"\d+", version)]


def _in_order(
    patches: list[Message], name: str, wanted: tuple[int, ...], diffless: frozenset[int], *, alone: bool
) -> tuple[Patch, ...]:
    """By their numbers. `alone`: there is one, which may be any of its series."""
    lengths = {one.tag.of or 0 for one in patches if one.tag}
    if len(lengths) > 1:
        said = ", ".join(f"one of {of} patches" for of in sorted(lengths))
        raise BuildError(
            f"{name}: expected one series, found several: {said}; give each its own file or folder, and --series for each"
        )
    (last,) = lengths
    by_number: dict[int, list[Message]] = {}
    for one in patches:
        by_number.setdefault(_number(one), []).append(one)
    if (most := max(by_number)) > last:
        raise BuildError(f"{name}: expected patches 1-{last}, got {most}/{last}: {by_number[most][0].patch.name}")
    chosen = wanted or (tuple(by_number) if alone else tuple(range(1, last + 1)))
    for number in chosen:
        there = by_number.get(number, [])
        if len(there) > 1:
            names = "\n  ".join(one.patch.name for one in there)
            raise BuildError(
                f"{name}: expected patch {number} once, found it {len(there)} times; take out what is not meant:\n  {names}"
            )
        if not there:
            what = "has no diff that can be read" if number in diffless else "is missing"
            mend = "" if wanted else f"; where only these are meant: --series-patches {_ranges(sorted(by_number))}"
            raise BuildError(f"{name}: expected patches {_ranges(chosen)}, each once; patch {number} {what}{mend}")
    found = {number: by_number[number][0].patch for number in chosen}
    if len(found) == last:
        return tuple(found.values())
    return tuple(replace(patch, subject=f"{number}/{last} {patch.subject}") for number, patch in found.items())


def _ranges(numbers: Iterable[int]) -> str:
    """`1-2,4`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _some(names: Iterable[str]) -> str:
    first, *more = names
    return first + (f" and {len(more)} more" if more else "")
