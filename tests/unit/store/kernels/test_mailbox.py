"""Parsing of mails, tags and versions, and the choice of one series among messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import BuildError, UsageError
from testbed.store.kernels import mailbox
from testbed.store.kernels.mailbox import Selection, Tag
from testbed.store.kernels.patch_files import read_patches
from tests.unit.store.kernels.test_patches import diff, mail


def numbered(number: str, *, what: str = "PATCH", line: int = 10, **more: str) -> str:
    text = mail(f"[{what} {number}] loop: {number}", diff(f"line {line + 1}", "changed", line=line))
    return text.replace(
        "Subject:", "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in more.items()) + "Subject:"
    )


def subjects(text: str, selection: Selection = mailbox.ALL_PATCHES) -> list[str]:
    return [
        patch.subject
        for patch in mailbox.select_series(mailbox.parse_messages(text.encode(), "t.mbx"), "t.mbx", selection)
    ]


def test_a_whole_series_of_one_is_called_as_it_is() -> None:
    assert subjects(numbered("1/1")) == subjects(numbered("1/1"), Selection(numbers=(1,))) == ["loop: 1/1"]


def test_the_newest_of_many_versions_is_proposed() -> None:
    thread = "".join(numbered("1/1", what=f"PATCH {version}") for version in ("v9", "v10", "RFC v11"))
    with pytest.raises(BuildError, match="such as --series-version v10"):
        subjects(thread)


def test_copies_of_a_mail_count_once() -> None:
    to_two_lists = numbered("1/2", Message_ID="<1@x>") + numbered("2/2", line=20) + numbered("1/2", Message_ID="<1@x>")
    assert subjects(to_two_lists) == ["loop: 1/2", "loop: 2/2"]
    sent_again = to_two_lists + numbered("1/2", what="PATCH RESEND", Message_ID="<2@x>")
    assert subjects(sent_again) == ["loop: 1/2", "loop: 2/2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            numbered("1/2") + numbered("2/2") + numbered("1/3", line=20) + numbered("2/3") + numbered("3/3"),
            "one of 2 patches, one of 3",
        ),
        (
            numbered("1/1") + mail("[PATCH] loop: more", diff("line 21", "x", line=20)),
            "or none, got 1 without: .*loop: more;",
        ),
        (
            numbered("1/2") + numbered("2/2", line=20) + numbered("3/2"),
            r"expected patches 1-2, got 3/2: .*\[PATCH 3/2\] loop",
        ),
        (
            numbered("1/2") + mail("[PATCH 2/2] logo", "Content of another kind."),
            "patch 2 has no diff that can be read",
        ),
        (
            numbered("1/2") + numbered("2/2") + numbered("2/2", line=20),
            r"patch 2 once, found it 2 times; .*\n.*\n.*2/2\] loop: 2/2",
        ),
    ],
)
def test_what_is_not_one_series_is_refused_with_what_it_is(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        subjects(text)


@pytest.mark.parametrize("before", ["Re: ", "RE: ", "Re[2]: ", "AW: ", "Fwd: ", "回复: ", "答复\uff1a", "Antw: [EXT] "])
def test_an_answer_is_no_patch_in_any_language(before: str) -> None:
    answer = mail(f"{before}[PATCH 1/2] loop: 1/2", diff("line 11", "as I would", line=10))
    assert subjects(numbered("1/2") + answer + numbered("2/2")) == ["loop: 1/2", "loop: 2/2"]


@pytest.mark.parametrize(
    ("subject", "tag", "rest"),
    [
        ("[PATCH] loop: x", Tag(version="v1"), "loop: x"),
        ("[PATCH v5 2/4] loop: x [1/2]", Tag(version="v5", number=2, of=4), "loop: x [1/2]"),
        ("[PATCH 6.1 001/245] loop: x", Tag(version="v1", number=1, of=245), "loop: x"),
        ("[PATCH 5.15 v2 3/9] loop: x", Tag(version="v2", number=3, of=9), "loop: x"),
        ("[RFC PATCH v2 0/3] loop: x", Tag(version="rfc-v2", number=0, of=3), "loop: x"),
        ("[PATCH RFC 1/1] loop: x", Tag(version="rfc-v1", number=1, of=1), "loop: x"),
        ("[RFC v3] x", Tag(version="rfc-v3"), "x"),
        ("[PATCHv2 1/2] [media] x", Tag(version="v2", number=1, of=2), "[media] x"),
        ("[f2fs-dev] [PATCH V3 1/2] x", Tag(version="v3", number=1, of=2), "x"),
        ("[v2,1/3] x", Tag(version="v2", number=1, of=3), "x"),
        ("[PATCH v2.1 1 / 3] x", Tag(version="v2.1", number=1, of=3), "x"),
        ("[media] x", None, "[media] x"),
        ("x: [PATCH]", None, "x: [PATCH]"),
        ("", None, ""),
    ],
)
def test_what_is_in_brackets_before_a_subject(subject: str, tag: Tag | None, rest: str) -> None:
    assert mailbox.parse_tag(subject) == (tag, rest)


def test_versions_and_numbers_as_they_are_typed() -> None:
    assert [mailbox.parse_version(text) for text in ("2", "v2", "RFC", "rfc-v2", "RFC v2", "V2.1")] == [
        "v2",
        "v2",
        "rfc-v1",
        "rfc-v2",
        "rfc-v2",
        "v2.1",
    ]
    assert mailbox.parse_numbers("2-3,5,3") == (2, 3, 5)
    for wrong in ("", "two", "v", "2-3"):
        with pytest.raises(UsageError, match=r"--series-version .*: expected a version such as"):
            mailbox.parse_version(wrong)
    for wrong in ("", "0", "3-2", "a", "1;2", "1-"):
        with pytest.raises(UsageError, match=r"--series-patches .*: expected numbers of patches such as"):
            mailbox.parse_numbers(wrong)


def test_a_mail_that_pythons_parser_fails_on_is_an_error_with_its_file(tmp_path: Path) -> None:
    nested = "".join(f'Content-Type: multipart/mixed; boundary="{n}"\n\n--{n}\n' for n in range(2000))
    (tmp_path / "deep.eml").write_text(f"From: a\nSubject: [PATCH] x\n{nested}")
    with pytest.raises(BuildError, match=r"deep\.eml: "):
        read_patches(tmp_path / "deep.eml")


def test_a_line_without_an_end_takes_no_time(tmp_path: Path) -> None:
    long = "a" * (1 << 20)
    (tmp_path / "x.patch").write_text(f"--- {long}\nno\n" + diff("line 11", "eleven"))
    assert [patch.strip for patch in read_patches(tmp_path / "x.patch")] == [1]
    assert len(subjects(mail(f"[PATCH 1/1] XX: [{'1' * 100_000}", diff("line 11", "x")))[0]) < 1000
