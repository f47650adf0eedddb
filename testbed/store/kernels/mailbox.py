"""Parses patches as they are sent (mailboxes, mails, `git format-patch`, plain diffs), and puts one series in order."""

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
from testbed.store.kernels.patches import Patch, detect_strip

# A message in a mailbox begins after an empty line (RFC 4155); `git format-patch` marks its messages with this date,
# and they may begin without one.
_FORMAT_PATCH = rb"From [0-9a-f]{40,64} Mon Sep 17 00:00:00 2001\n"
_MESSAGE = re.compile(rb"(?:(?:\A|(?<=\n\n))From \S+ .*\d\d:\d\d:\d\d.*\n|^" + _FORMAT_PATCH + rb")", re.MULTILINE)
_MADE_BY_GIT = re.compile(rb"(?:" + _FORMAT_PATCH + rb"|diff --git )")
_DIFF = re.compile(r"^(?:diff --git |--- \S.*\n\+\+\+ \S)", re.MULTILINE)
_BRACKETS = re.compile(r"\s*\[(?P<words>[^\]]*)\]")
# "Re: [PATCH", "AW: [PATCH", "Re[2]: [PATCH"
_REPLY = re2.compile(
    "(?i)(?:re|fwd?|aw|wg|sv|antw)\\b[^:]{0,5}:"
    "|[^\\[\\]]{1,20}(?:\\[\\d+\\])?[:\uff1a]\\s*\\[[^\\]]*(?:PATCH|RFC|\\d+/\\d+)"
)
_FIRST = "v1"
_MOST_SUBJECT, _MOST_HEADER = 1000, 2000
# Limits of a mailbox, the largest of which have a thousand mails, and of one mail. Python's parser tests each line
# against the ends of all parts around it, so that its time is lines times parts.
_MOST_MESSAGES, _MOST_PARTS, _MOST_NESTED, _MOST_LINES_OF_PARTS = 10_000, 1_000, 100, 10_000_000


class _Policy(email.policy.Compat32):
    """Headers unparsed and cut, except the subject, whose words may be encoded. Python's newer policy parses each
    header by a recursive grammar, in time that grows faster than the header.
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
    """The brackets before a subject: `[RFC PATCH v2 6.1 001/245]` is version `rfc-v2`, number 1 of 245."""

    version: str
    number: int | None = None
    of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One mail, or a plain diff. `tag`: None if it has none; `key`: equal for copies of a mail, or empty."""

    patch: Patch
    tag: Tag | None
    key: str = ""
    is_reply: bool = False

    @property
    def diff(self) -> str:
        """Its diff without the text around it; empty for a cover letter."""
        found = _DIFF.search(self.patch.text)
        return self.patch.text[found.start() :].split("\n-- \n")[0].rstrip() if found else ""

    @property
    def is_patch(self) -> bool:
        return not self.is_reply and self.diff != "" and (self.tag is None or self.tag.number != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which patches of a thread or a partial series to use. `version`: as `parse_version` returns, or None; `numbers`:
    of patches, empty for all.
    """

    version: str | None = None
    numbers: tuple[int, ...] = ()


ALL_PATCHES = Selection()


def parse_version(text: str) -> str:
    """Return a version as tags have it, for `2`, `v2`, `rfc`, `rfc-v2`, `RFC v2`.

    :raise UsageError: the text is not a version.
    """
    found = re.fullmatch(r"(?P<rfc>rfc)?[- ]*v?(?P<number>\d{1,3}(?:\.\d{1,3})?)?", text.strip(), re.IGNORECASE)
    if found is None or not any(found.groups()):
        raise UsageError(f"--series-version {text}: expected a version such as 2, v2, or rfc-v1")
    return f"{'rfc-' if found['rfc'] else ''}v{found['number'] or 1}"


def parse_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of patches in `2-3,5`, as `b4 am -P` takes them.

    :raise UsageError: the text has no such numbers.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last:
            raise UsageError(f"--series-patches {text}: expected numbers of patches such as 2-3,5")
        found |= dict.fromkeys(range(first, last + 1))
    return tuple(sorted(found))


def parse_tag(subject: str) -> tuple[Tag | None, str]:
    """Parse the tag in brackets before a subject; returns it and the rest. Other brackets (`[media] ...`) belong to the
    subject.
    """
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


def parse_messages(data: bytes, name: str, strip: int | None = None) -> tuple[Message, ...]:
    """Parse a file: the mails of a mailbox, one mail, or one plain diff. `strip`: as of `patch -p`, None to detect it.

    :raise BuildError: it is none of these, or damaged.
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


def is_git_patch(head: bytes) -> bool:
    """Whether a file that begins with `head` was written by `git format-patch` or `git diff`."""
    return _MADE_BY_GIT.match(head) is not None


def _parsed(data: bytes) -> Mail:
    """:raise ValueError: the mail has far too many parts."""
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
        payloads = (part.get_payload(decode=True) or b"" for part in parts)
        text = "\n".join(_text(payload) for payload in payloads)  # type: ignore[arg-type]  # bytes, of a text part
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:  # Python's parser raises any
        raise BuildError(f"{name}: a mail in it cannot be read: {str(error)[:200] or type(error).__name__}") from error
    found, words = parse_tag(subject)
    patch = _patch(f"{name}: {subject}", words, text, strip)
    return Message(patch=patch, tag=found, key=key, is_reply=_REPLY.match(subject) is not None)


def _patch(name: str, subject: str, text: str, strip: int | None) -> Patch:
    return Patch(name=name, subject=subject, text=text, strip=detect_strip(text) if strip is None else strip)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def select_series(
    messages: Sequence[Message], name: str, selection: Selection = ALL_PATCHES, *, of_folder: bool = False
) -> tuple[Patch, ...]:
    """Return the patches of one series among messages, without cover letters, replies and copies, in order.

    They are sorted by their numbers if they have some. One mail in a file of its own may be any patch of its series; a
    folder, or a mailbox of several mails, must have all of them.

    :raise BuildError: there is no series, more than one, or a patch of it is missing.
    """
    patches = _without_copies([message for message in messages if message.is_patch])
    if not patches:
        raise BuildError(f"{name}: expected a series of patches, found {len(messages)} messages without a diff")
    patches = _of_version(patches, name, selection.version)
    numbered = [message for message in patches if _number(message)]
    if not numbered:
        if selection.numbers:
            raise BuildError(
                f"{name}: expected patches with numbers, as --series-patches names some, found none with one"
            )
        return tuple(message.patch for message in patches)
    if len(numbered) < len(patches):
        some = _some(message.patch.name for message in patches if not _number(message))
        raise BuildError(
            f"{name}: expected all patches with numbers (`[PATCH 1/2]`), or none, got {len(patches) - len(numbered)} "
            f"without: {some}; take out what does not belong to it, or list the files in order in a file `series`"
        )
    alone = len(messages) == 1 and not of_folder
    return _in_order(numbered, name, selection.numbers, _without_diff(messages), alone=alone)


def _number(message: Message) -> int:
    """Return its number in the series, 0 if it has none."""
    return (message.tag.number or 0) if message.tag else 0


def _without_diff(messages: Iterable[Message]) -> frozenset[int]:
    return frozenset(_number(message) for message in messages if not message.is_reply and not message.diff)


def _without_copies(patches: Iterable[Message]) -> list[Message]:
    """Keep the first of several copies: of a mail to two lists, or of one that was sent again unchanged."""
    kept: list[Message] = []
    seen: set[object] = set()
    for message in patches:
        keys: set[object] = {message.key} if message.key else set()
        keys |= {(message.tag, message.diff)} if _number(message) else set()
        if not keys & seen:
            kept.append(message)
        seen |= keys
    return kept


def _of_version(patches: list[Message], name: str, wanted: str | None) -> list[Message]:
    """Select the patches of a version. A plain diff has none, and belongs to each.

    :raise BuildError: there are several versions and none is chosen, or the chosen one is not there.
    """
    counts = Counter(message.tag.version for message in patches if message.tag)
    versions = ", ".join(
        f"{version} ({count} patch{'es' if count > 1 else ''})" for version, count in sorted(counts.items())
    )
    if wanted is None and len(counts) > 1:
        raise BuildError(
            f"{name}: expected one version of a series, found {versions}; choose one, such as --series-version "
            f"{max(counts, key=_newer)}"
        )
    if wanted is not None and counts and wanted not in counts:
        raise BuildError(f"{name}: expected version {wanted} of a series, found {versions}")
    return [message for message in patches if wanted is None or message.tag is None or message.tag.version == wanted]


def _newer(version: str) -> tuple[bool, list[int]]:
    return not version.startswith("rfc"), [int(number) for number in re.findall(r"\d+", version)]


def _in_order(
    patches: list[Message], name: str, wanted: tuple[int, ...], diffless: frozenset[int], *, alone: bool
) -> tuple[Patch, ...]:
    """Sort patches by their numbers. `alone`: there is only one, which may be any of its series."""
    lengths = {message.tag.of or 0 for message in patches if message.tag}
    if len(lengths) > 1:
        found = ", ".join(f"one of {of} patches" for of in sorted(lengths))
        raise BuildError(
            f"{name}: expected one series, found several: {found}; give each its own file or folder, "
            "and --series for each"
        )
    (last,) = lengths
    by_number: dict[int, list[Message]] = {}
    for message in patches:
        by_number.setdefault(_number(message), []).append(message)
    if (most := max(by_number)) > last:
        raise BuildError(f"{name}: expected patches 1-{last}, got {most}/{last}: {by_number[most][0].patch.name}")
    chosen = wanted or (tuple(by_number) if alone else tuple(range(1, last + 1)))
    for number in chosen:
        same = by_number.get(number, [])
        if len(same) > 1:
            names = "\n  ".join(message.patch.name for message in same)
            raise BuildError(
                f"{name}: expected patch {number} once, found it {len(same)} times; "
                f"take out what is not meant:\n  {names}"
            )
        if not same:
            what = "has no diff that can be read" if number in diffless else "is missing"
            mend = "" if wanted else f"; where only these are meant: --series-patches {_ranges(sorted(by_number))}"
            raise BuildError(f"{name}: expected patches {_ranges(chosen)}, each once; patch {number} {what}{mend}")
    ordered = {number: by_number[number][0].patch for number in chosen}
    if len(ordered) == last:
        return tuple(ordered.values())
    return tuple(replace(patch, subject=f"{number}/{last} {patch.subject}") for number, patch in ordered.items())


def _ranges(numbers: Iterable[int]) -> str:
    """Format numbers as `1-2,4`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _some(names: Iterable[str]) -> str:
    first, *more = names
    return first + (f" and {len(more)} more" if more else "")
