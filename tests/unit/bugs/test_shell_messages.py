"""Tells the output of a script from messages of its shell. The lines are recorded from bash 5.2.15 and dash 0.5.12."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.bugs.model import Condition
from testbed.bugs.script_files import script
from testbed.bugs.signature import Match, SignatureMatcher


def match_script(
    text: str, errors: str, *conditions: dict[str, Any], output: str = "", status: int | None = 0, first: str = ""
) -> SignatureMatcher:
    """Return a matcher fed with all output of a script `crash.sh`. The default condition is a line with BYPASSED."""
    signature = [Condition.model_validate(condition) for condition in conditions or ({"output": "BYPASSED"},)]
    matcher = SignatureMatcher(signature, script("crash.sh", f"{first}{text}"))
    matcher.feed_errors(errors.encode())
    matcher.feed_output(output.encode())
    if status is not None:
        matcher.script_ended(status)
    return matcher


OF_JOBS = {
    "the issue's": (
        'mkdir a\n\nunshare -m bash -c "echo \\$\\$ >a/procs; dd && echo BYPASSED"\n',
        "/run/testbed/crash.sh: line 3:   143 Killed                  "
        'unshare -m bash -c "echo \\$\\$ >a/procs; dd && echo BYPASSED"\n',
    ),
    "several lines": (
        'bash -c "\ntrue;\nkill -9 \\$\\$ && echo BYPASSED" || true\n',
        "/run/testbed/crash.sh: line 3:   397 Killed                  "
        'bash -c "\ntrue;\nkill -9 \\$\\$ && echo BYPASSED"\n',
    ),
    "a group": (
        "( kill -9 $BASHPID 2>/dev/null && echo BYPASSED )\n",
        "/run/testbed/crash.sh: line 1:   402 Killed                  "
        "( kill -9 $BASHPID 2> /dev/null && echo BYPASSED )\n",
    ),
    "a shell in a shell": (
        "bash -c 'bash -c \"kill -9 \\$\\$ && echo BYPASSED\"; echo inner'\n",
        'bash: line 1:   409 Killed                  bash -c "kill -9 \\$\\$ && echo BYPASSED"\n',
    ),
    "a script in a script": (
        "cat >/tmp/in.sh <<'END'\nbash -c 'kill -9 $$ && echo BYPASSED'\nEND\nbash /tmp/in.sh\n",
        "/tmp/in.sh: line 1:   409 Segmentation fault (core dumped) bash -c 'kill -9 $$ && echo BYPASSED'\n",
    ),
    "a here-document": (
        "bash -c 'cat; kill -9 $$' <<EOF\nhello BYPASSED\nEOF\n",
        "/run/testbed/crash.sh: line 3:   431 Killed                  "
        "bash -c 'cat; kill -9 $$' <<EOF\nhello BYPASSED\nEOF\n\n",
    ),
    "a trace": ("set -x\ngrep -q BYPASSED /tmp/log\n", "+ grep -q BYPASSED /tmp/log\n"),
    "a nested trace": ("set -ex\nx=$(grep BYPASSED log)\n", "++ grep BYPASSED log\n+ x=\n"),
    "a trace of its own": ("set -o xtrace; PS4='at $LINENO '\ngrep BYPASSED log\n", "at 2 grep BYPASSED log\n"),
    "a trace over several lines": ("set -x\nX='a\nBYPASSED'\ntrue\n", "+ X='a\nBYPASSED'\n+ true\n"),
    "an echo": ("set -v\ngrep -q BYPASSED log\n", "grep -q BYPASSED log\n"),
    "an error": (
        "BYPASSED=\ncat <$x/BYPASSED\n",
        "/run/testbed/crash.sh: line 2: /BYPASSED: No such file or directory\n",
    ),
    "a traceback": (
        "#!/usr/bin/python3\ncheck() or print('BYPASSED')\n",
        "Traceback:\n    check() or print('BYPASSED')\nValueError\n",
    ),
    "a function of its own": (
        "report() { printf '%s\\n' \"$1\"; }\nx && report BYPASSED\n",
        "ps: 3 bash -c x && report BYPASSED\n",
    ),
}


@pytest.mark.parametrize(("text", "errors"), OF_JOBS.values(), ids=OF_JOBS)
def test_what_a_shell_says_is_not_what_its_script_printed(text: str, errors: str) -> None:
    matcher = match_script(text, errors)
    assert matcher.hit is None
    assert "BYPASSED" in matcher.uncounted[0].line and matcher.uncounted[0].why
    # The script's own output counts, before and after the message, on stdout and stderr.
    for own in ("BYPASSED", "it is BYPASSED", "the loop has BYPASSED the limit"):
        assert match_script(text, f"{errors}{own}\n").hit == Match(condition=1, seen=own)
        assert match_script(text, f"{own}\n{errors}").hit == Match(condition=1, seen=own)
        assert match_script(text, errors, output=f"{own}\n").hit == Match(condition=1, seen=own)


def test_what_is_joined_with_the_output_is_told_apart_there() -> None:
    text = "exec 2>&1\nset -x\ngrep -q BYPASSED log\nbash -c 'kill -9 $$ && echo BYPASSED'\n"
    printed = (
        "+ grep -q BYPASSED log\n/run/testbed/crash.sh: line 4:  9 Killed    bash -c 'kill -9 $$ && echo BYPASSED'\n"
    )
    assert match_script(text, "", output=printed).hit is None
    assert (
        match_script(text, "", {"output": "BYPASSED\nend"}, output=f"{printed}BYPASSED\n{printed}end\n").hit is not None
    )


def test_a_trace_that_seems_to_be_open_ends_at_the_next_line_of_the_trace() -> None:
    assert match_script("set -x\ntrue\n", "+ echo 'a\n+ true\nBYPASSED\n").hit is not None


def test_what_a_script_prints_of_others_is_no_word_of_its_shell() -> None:
    matcher = match_script("cat log", "", output="bash: line 1: perf: command not found\nBYPASSED\n")
    assert matcher.hit is not None and not matcher.failed_commands


def test_a_script_prints_what_stands_in_it() -> None:
    for text, printed in (
        ("echo BYPASSED", "BYPASSED"),
        ('echo "+ BYPASSED"', "+ BYPASSED"),
        ("cat <<END\nFAIL: BYPASSED\nEND", "FAIL: BYPASSED"),
        ('echo "run: echo BYPASSED"', "run: echo BYPASSED"),
        ('echo "$0: BYPASSED"', "/run/testbed/crash.sh: BYPASSED"),
        ('echo "$0:$LINENO: BYPASSED"', "/run/testbed/crash.sh:1: BYPASSED"),
        ("set -v\ncat <<END\nBYPASSED\nEND", "BYPASSED"),
    ):
        assert match_script(text, "", output=f"{printed}\n").hit is not None, text
    # set -v prints a here-document as it reads it, and cat prints it again.
    assert match_script("set -v\ncat >&2 <<END\nBYPASSED\nEND", "cat >&2 <<END\nBYPASSED\nEND\n").hit is None
    assert (
        match_script("set -v\ncat >&2 <<END\nBYPASSED\nEND", "cat >&2 <<END\nBYPASSED\nEND\nBYPASSED\n").hit is not None
    )


def test_dash_says_of_a_job_what_became_of_it_alone() -> None:
    matcher = match_script("kill -9 $$", "Killed\n", {"output": "Killed"}, first="#!/bin/sh\n")
    assert matcher.hit is None and "says of a job" in matcher.uncounted[0].why
    assert match_script("echo Killed", "", {"output": "Killed"}, output="Killed\n", first="#!/bin/sh\n").hit is not None


UNABLE = {
    "bash": (
        "",
        "/run/testbed/crash.sh: line 2: perf: command not found",
        "crash.sh:2: perf: not found in the guest's image",
    ),
    "dash": (
        "#!/bin/sh\n",
        "/run/testbed/crash.sh: 2: perf: not found",
        "crash.sh:2: perf: not found in the guest's image",
    ),
    "dash for bash's": (
        "#!/bin/sh\n",
        "/run/testbed/crash.sh: 2: [[: not found",
        "crash.sh:2: [[: not found in the guest's image",
    ),
    "exec": (
        "#!/bin/sh\n",
        "/run/testbed/crash.sh: 1: exec: /no/such: not found",
        "crash.sh:1: /no/such: not found in the guest's image",
    ),
    "a path": (
        "true\n",
        "/run/testbed/crash.sh: line 2: ./tool: No such file or directory",
        "crash.sh:2: ./tool: No such file or directory",
    ),
    "not executable": (
        "true\n",
        "/run/testbed/crash.sh: line 2: ./tool: Permission denied",
        "crash.sh:2: ./tool: Permission denied",
    ),
    "another machine's": (
        "",
        "/run/testbed/crash.sh: line 2: ./tool: cannot execute binary file: Exec format error",
        "crash.sh:2: ./tool: cannot execute binary file: Exec format error",
    ),
    "a shell in a shell": (
        "",
        "bash: line 1: perf: command not found",
        "crash.sh: perf: not found in the guest's image",
    ),
    "the interpreter": (
        "#!/usr/bin/zsh\n",
        "sh: 16: exec: /usr/bin/zsh: not found",
        "crash.sh: /usr/bin/zsh: not found in the guest's image",
    ),
    "env": ("", "env: 'perf': No such file or directory", "crash.sh: perf: not found in the guest's image"),
    "unshare": (
        "",
        "unshare: failed to execute perf: No such file or directory",
        "crash.sh: perf: not found in the guest's image",
    ),
    "timeout": (
        "",
        "timeout: failed to run command \u2018perf\u2019: No such file or directory",
        "crash.sh: perf: not found in the guest's image",
    ),
    "syntax": (
        "",
        "/run/testbed/crash.sh: line 4: syntax error: unexpected end of file",
        "crash.sh:4: syntax error: unexpected end of file",
    ),
    "dash's syntax": (
        "#!/bin/sh\n",
        '/run/testbed/crash.sh: 2: Syntax error: ")" unexpected',
        'crash.sh:2: Syntax error: ")" unexpected',
    ),
    "a bashism": ("#!/bin/sh\n", "/run/testbed/crash.sh: 2: Bad substitution", "crash.sh:2: Bad substitution"),
    "python": (
        "#!/usr/bin/python3\n",
        "ModuleNotFoundError: No module named 'drgn'",
        "crash.sh: ModuleNotFoundError: No module named 'drgn'",
    ),
    "perl": (
        "#!/usr/bin/perl\n",
        "Can't locate Foo/Bar.pm in @INC (you may need",
        "crash.sh: Can't locate Foo/Bar.pm in @INC (you may need",
    ),
}


@pytest.mark.parametrize(("first", "errors", "what"), UNABLE.values(), ids=UNABLE)
def test_a_script_that_could_not_run_shows_nothing(first: str, errors: str, what: str) -> None:
    text = "if true; then ./tool; fi\n"
    # Whether or not the script continues, and with any exit status.
    for status in (0, 1, 2, 127):
        matcher = match_script(
            text,
            f"{errors}\n",
            {"output": "BYPASSED"},
            {"status": "failure"},
            output="BYPASSED\n",
            status=status,
            first=first,
        )
        assert matcher.hit is None
        assert matcher.why_unknown(status).startswith(what)


def test_a_complaint_that_comes_after_the_output_that_it_stood_before_takes_the_hit_back() -> None:
    matcher = match_script("perf", "", {"output": "BYPASSED"}, output="BYPASSED\n", status=None)
    assert matcher.hit is not None and matcher.rests_on_script
    matcher.drop_doubtful_hit()
    assert matcher.hit is not None, "nothing speaks against it"
    matcher.feed_errors(b"/run/testbed/crash.sh: line 1: perf: command not found\n")
    matcher.drop_doubtful_hit()
    assert matcher.hit is None and matcher.why_unknown(None).startswith("crash.sh:1: perf: not found")
    # Hits on the console stay.
    matcher = match_script(
        "perf", "/run/testbed/crash.sh: line 1: perf: command not found\n", {"console": "BUG: KASAN"}, status=None
    )
    matcher.feed_console(b"BUG: KASAN: use-after-free\n")
    matcher.drop_doubtful_hit()
    assert matcher.hit is not None and not matcher.rests_on_script


def test_what_others_see_of_a_script_that_could_not_run_counts() -> None:
    errors = "/run/testbed/crash.sh: line 1: perf: command not found\n"
    matcher = match_script("perf", errors, {"console": "BUG: KASAN"}, status=None)
    matcher.feed_console(b"BUG: KASAN: use-after-free\n")
    assert matcher.hit is not None
    matcher = match_script(
        "perf", errors, {"cgroup": "a", "counter": "memory.events oom_kill", "above": 0}, status=None
    )
    matcher.feed_counter("a", "memory.events oom_kill", 1)
    assert matcher.hit is not None
    assert match_script("perf", errors, {"hang": "1s"}, status=None).why_unknown(None)


@pytest.mark.parametrize("status", [126, 127])
def test_a_bug_that_is_meant_to_end_so_says_so(status: int) -> None:
    errors = "/run/testbed/crash.sh: line 1: perf: command not found\n"
    assert match_script("perf", errors, {"status": "failure"}, status=status).why_unknown(status)
    assert (
        match_script("exit", "", {"status": "failure"}, status=status)
        .why_unknown(status)
        .startswith(f"status {status}: ")
    )
    matcher = match_script("perf", errors, {"status": status}, status=status)
    assert matcher.hit == Match(condition=1, seen=f"status {status}") and not matcher.why_unknown(status)


def test_what_only_looks_like_it_could_not_run() -> None:
    for text, printed in (
        ("type perf", "/run/testbed/crash.sh: line 1: type: perf: not found"),
        (
            "echo 1 >/sys/fs/cgroup/a/memory.peak",
            "/run/testbed/crash.sh: line 1: /sys/fs/cgroup/a/memory.peak: No such file or directory",
        ),
        ("flock /a/b true", "flock: cannot open lock file /a/b: No such file or directory"),
        ("ls /a", "ls: cannot access '/a': No such file or directory"),
        ("modprobe foo", "modprobe: FATAL: Module foo not found in directory /lib/modules/6.1.0"),
    ):
        matcher = match_script(text, f"{printed}\n", {"status": 1}, status=1)
        assert matcher.hit is not None and not matcher.why_unknown(1), text


def test_a_miss_says_how_it_ended() -> None:
    matcher = match_script("", "warned\n", output="first\nrefused\n")
    assert matcher.describe_exit(0) == "status 0, last line: refused"
    assert match_script("", "").describe_exit(3) == "status 3, and it printed nothing"
    text, errors = OF_JOBS["the issue's"]
    matcher = match_script(text, errors, output="before\n")
    assert matcher.describe_exit(0).startswith("status 0, last line: before; '/run/testbed/crash.sh: line 3:")
    assert "matches and does not count: it is what the shell says of a job of the script" in matcher.describe_exit(0)


WORDS = st.sampled_from(
    [
        "+",
        "'",
        '"',
        "\\",
        "/run/testbed/crash.sh: ",
        "line ",
        "3",
        ": ",
        "Killed ",
        "<<EOF",
        "bash: ",
        "not found",
        "\n",
        "PS4=",
        "set -xv",
        "²",
        "echo x",
    ]
)


@given(
    text=st.lists(WORDS | st.text(max_size=5)).map("".join),
    printed=st.lists(WORDS | st.text(max_size=5)).map("".join),
    status=st.integers(0, 255),
)
@settings(max_examples=200, deadline=None)
def test_whatever_scripts_and_guests_say_is_an_answer(text: str, printed: str, status: int) -> None:
    for first in ("", "#!/bin/sh\n", "#!/usr/bin/python3\n"):
        matcher = match_script(
            text,
            printed,
            {"output": "x"},
            {"output": "a\\nb"},
            {"status": "failure"},
            output=printed,
            status=status,
            first=first,
        )
        assert (
            matcher.describe_exit(status).startswith(f"status {status}, ") and matcher.why_unknown(status) is not None
        )
