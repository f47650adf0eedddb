"""Hostile mails, patches and sources: reading them ends soon, if in an error then in one of the testbed's own."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from testbed.errors import BuildError
from testbed.store.kernels import interrupted_build, kconfig, mailbox, make_output, patches
from testbed.store.kernels.config_fragments import LostOption, Option
from testbed.store.kernels.mailbox import Message
from testbed.store.kernels.patches import Patch

DIFF = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,1 +1,1 @@\n-a\n+b\n"
START = f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n"


def mail(subject: str = "[PATCH 1/1] x", headers: str = "", body: str = DIFF) -> bytes:
    return f"{START}From: a <a@b>\nSubject: {subject}\n{headers}\n{body}".encode("utf-8", "surrogateescape")


def typed(value: str) -> bytes:
    return mail(headers=f"Content-Type: {value}\n")


def nested(depth: int) -> bytes:
    parts = "".join(
        f"--b{number}\nContent-Type: multipart/mixed; boundary=b{number + 1}\n\n" for number in range(depth)
    )
    return mail(headers="Content-Type: multipart/mixed; boundary=b0\n", body=parts)


# Mails with n repeated characters or parts, by what is repeated; several once ended in a traceback or took minutes.
MAILS: dict[str, Callable[[int], bytes]] = {
    "brackets": lambda n: mail("[" * n),
    "pairs of brackets": lambda n: mail("[]" * n),
    "an answer to brackets": lambda n: mail("x:" + "[" * n + "1" * n),
    "a number": lambda n: mail(f"[PATCH {'1' * n}/{'1' * n}]"),
    "numbers": lambda n: mail("[" + "1 / " * n + "]"),
    "blanks": lambda n: mail("[PATCH" + " " * n + "x"),
    "folded": lambda n: mail("[\n " * n),
    "encoded words": lambda n: mail("=?utf-8?q?a?= " * n),
    "half an encoded word": lambda n: mail("=?utf-8?b?" * n),
    "parentheses of a type": lambda n: typed("text/plain " + "(" * n),
    "pairs of parentheses": lambda n: typed("text/plain; " + "(" * n + ")" * n),
    "parameters": lambda n: typed("text/plain; " + "a=b;" * n),
    "numbered parameters": lambda n: typed("text/plain; " + "".join(f"a*{number}=b;" for number in range(n))),
    "a parameter's number": lambda n: typed(f"text/plain; a*{'1' * n}=b"),
    "a quote": lambda n: typed('text/plain; a="' + "\\" * n),
    "a transfer encoding": lambda n: mail(headers="Content-Transfer-Encoding: " + "(" * n + "\n"),
    "an id": lambda n: mail(headers="Message-ID: " + "(" * n + "\n"),
    "another id": lambda n: mail(headers="Message-ID: <" + "[" * n + "\n"),
    "a sender": lambda n: mail(headers="To: " + "<" * n + "\n"),
    "headers": lambda n: mail(headers="X: y\n" * n),
    "parts in each other": nested,
    "parts": lambda n: mail(headers="Content-Type: multipart/mixed; boundary=b\n", body="--b\n\nx\n" * n),
    "mails in each other": lambda n: mail(
        headers="Content-Type: message/rfc822\n", body="Content-Type: message/rfc822\n\n" * n
    ),
    "uuencoded": lambda n: mail(headers="Content-Transfer-Encoding: x-uuencode\n", body="begin 666 x\n" + "~" * n),
    "a hunk's place": lambda n: mail(body=DIFF.replace("-1,1", f"-{'1' * n},1")),
    "a hunk's lines": lambda n: mail(body=DIFF.replace("-1,1", f"-1,{'9' * n}")),
    "renames": lambda n: mail(
        body="".join(f"diff --git a/{one} b/{one}\nrename from q/{one}\n" for one in range(n)) + DIFF
    ),
    "a rename": lambda n: mail(body=f"diff --git {'a ' * n}\nrename from {'a ' * n}b\n{DIFF}"),
    "names of nothing": lambda n: mail(body="--- \n+++ \n@@ -1 +1 @@\n-a\n+b\n" * n),
    "beginnings of mails": lambda n: b"From \n" * n,
    "something like a date": lambda n: b"\n\nFrom x " + b"11:11" * n + b"\n",
    "raw bytes": lambda n: mail("\udcff" * n),
}


def read(data: bytes) -> tuple[Message, ...]:
    """Read and check a file as a build does."""
    try:
        found = mailbox.parse_messages(data, "x.mbox")
        mailbox.select_series(found, "x.mbox")
    except BuildError:
        return ()
    for one in found:
        patches.has_no_place(one.patch, reverse=False)
        patches.has_wrong_counts(one.patch)
    return found


def cost_s(ask: Callable[[], object]) -> float:
    begun = time.process_time()
    ask()
    return time.process_time() - begun


@pytest.mark.parametrize("name", MAILS)
def test_a_mail_is_read_or_refused_in_time_that_grows_with_it(name: str) -> None:
    made = MAILS[name]
    read(made(3)), read(made(5000))  # more digits than Python's int() takes, and nesting beyond its recursion limit
    few, many = made(2000), made(8000)
    before, after = (min(cost_s(lambda data=data: read(data)) for _ in range(2)) for data in (few, many))  # type: ignore[misc]  # mypy: a default
    assert after < 0.05 or after < 8 * before, (before, after)


def test_a_mailbox_of_more_mails_than_any_and_a_mail_of_more_parts_are_refused() -> None:
    with pytest.raises(BuildError, match=r"x: expected a mailbox of at most 10000 messages, got 10001"):
        mailbox.parse_messages(START.encode() * 10_001, "x")
    with pytest.raises(BuildError, match=r"x: a mail in it cannot be read: expected at most 1000 parts, got more"):
        mailbox.parse_messages(MAILS["parts"](1001), "x")
    with pytest.raises(BuildError, match=r"expected at most 100 parts with a type, and fewer in a long mail, got 101"):
        mailbox.parse_messages(nested(100), "x")
    with pytest.raises(BuildError, match=r"fewer in a long mail, got 50"):
        mailbox.parse_messages(nested(49) + b"x\n" * 250_000, "x")


def test_attachments_and_encoded_subjects_are_read_as_before() -> None:
    """The limits for hostile mails do not change ordinary ones."""
    parts = "".join(
        "--b\nContent-Type: text/x-patch; charset=utf-8\nContent-Transfer-Encoding: base64\n\nZGlm\nZgo=\n"
        for _ in range(40)
    )
    head = "Content-Type: multipart/mixed;\n boundary=b\nMessage-ID: <1@b>\n"
    (found,) = mailbox.parse_messages(
        mail("=?utf-8?q?[PATCH=20v2?=\n =?utf-8?q?_3/7]?= loop: =?iso-8859-1?q?=FC?=", head, parts + "--b--\n"), "x"
    )
    assert (
        found.tag == mailbox.Tag(version="v2", number=3, of=7)
        and found.patch.subject == "loop: ü"
        and found.key == "<1@b>"
    )
    assert found.patch.text.count("diff\n") == 40


def test_a_refusal_of_equal_lines_is_told_soon() -> None:
    """The search for a hunk's likely place once compared it at each equal line, in time cubic in the lines."""
    body = "\n".join("-}" if number % 2 else "- " for number in range(3000))
    text = f"--- a/x\n+++ b/x\n@@ -1,3000 +1,0 @@\n{body}\n"
    file = "\n".join("}" if number % 3 else " " for number in range(3000))
    patch = Patch(name="p", subject="s", text=text)
    assert (
        cost_s(lambda: patches.explain_refusal(patch, "error: patch failed: x:1\n", lambda name: file, reverse=False))
        < 20
    )
    assert (
        patches.detect_strip("diff --git x x\n") == 0
        and patches.detect_strip("diff --git old/a b c\nrename from old/a b\n") == 0
    )
    assert patches.detect_strip("diff --git a/x b/y\nrename from x\n") == 1


def test_kconfig_files_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"include each other at most 32 deep; does one include itself\?"):
        kconfig.read_kconfig(lambda path: f'source "{path}x"\n')
    with pytest.raises(
        BuildError, match=r"Kconfig: expected at most 10000 Kconfig files, each included at most 4 times"
    ):
        kconfig.read_kconfig(lambda path: 'source "Kconfig"\n')
    twice = {"Kconfig": 0} | {f"k{depth}": depth for depth in range(1, 25)}
    with pytest.raises(BuildError, match=r"each included at most 4 times"):
        kconfig.read_kconfig(lambda path: f'source "k{twice[path] + 1}"\n' * 2 if twice[path] < 24 else "config A\n")
    with pytest.raises(BuildError, match=r"expected at most 1000000 lines in the Kconfig files"):
        kconfig.read_kconfig(lambda path: "\n" * 1_000_001)
    monkeypatch.setattr(kconfig, "_MOST_STATEMENTS", 1000)
    with pytest.raises(BuildError, match=r"Kconfig:1: expected at most 1000 statements of at most 20000 characters"):
        kconfig.read_kconfig(lambda path: "config A" + "\\\n x" * 30_000)
    assert kconfig.read_kconfig(
        lambda path: (
            'endif\nendmenu\nselect\nconfig A\n\tbool\n\tselect\nmenu "x"\nendmenu\ndepends on B\nvisible if C\n'
        )
    ).definitions


@pytest.mark.parametrize(
    "condition",
    ["(" * 5000, "!" * 5000, "!(" * 3000 + "A", "A && " * 3000 + "B", "$(" * 4000, "'" * 3999, "A" + " = " * 3000],
)
def test_conditions_of_a_kconfig_are_answered_or_refused(condition: str) -> None:
    found = kconfig.read_kconfig(lambda path: f'config A\n\tbool "x" if {condition}\n\tdepends on {condition}\n')
    loss = LostOption(name="A", wanted=Option(value="y", where="f:1"), got="n")
    try:
        kconfig.explain(loss, found, {})
        kconfig.chosen_losses([loss], found, {}, {})
    except BuildError as error:
        assert "expected conditions with at most 50 brackets in each other" in str(error)


def test_what_a_strangers_makefile_prints_is_looked_through_soon() -> None:
    """The patterns once took quadratic time on empty lines and on targets made of slashes."""
    for said in ("\n" * 200_000, " " * 200_000, "*** [" * 40_000 + ": " * 40_000, "ld: " * 50_000):
        assert cost_s(lambda said=said: (make_output.machine_error(said), make_output.first_error(said))) < 20  # type: ignore[misc]  # mypy: a default
    lines = [f"  CC      a{'/' * 200_000} x\n", "*** [" * 40_000 + ": a" * 40_000 + "\n", *["\n"] * 20]
    assert cost_s(lambda: interrupted_build.finished_targets(lines)) < 20
    assert make_output.machine_error(
        "  12 | # No space left on device\nld: final link failed: No space left on device\n"
    ) == ("ld: final link failed: No space left on device")
    assert interrupted_build.finished_targets(["  CC      tools/x.o\n", "  CC [M]  fs/ext4/a.o\n", *["\n"] * 20]) == {
        "fs/ext4/a.o"
    }
