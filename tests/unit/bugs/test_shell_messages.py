"""What a script printed, and what its interpreter said. The lines are recorded ones, of bash 5.2.15 and dash 0.5.12."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.bugs.model import Condition
from testbed.bugs.script_files import script
from testbed.bugs.signature import Match, SignatureMatcher


def heard(
    text: str, errors: str, *conditions: dict[str, Any], output: str = "", status: int | None = 0, first: str = ""
) -> SignatureMatcher:
    """A watch that has heard all of a script `crash.sh`; without conditions for what names BYPASSED."""
    signature = [Condition.model_validate(one) for one in conditions or ({"output": "BYPASSED"},)]
    watch = SignatureMatcher(signature, script("crash.sh", f"{first}{text}"))
    watch.feed_errors(errors.encode())
    watch.feed_output(output.encode())
    if status is not None:
        watch.script_ended(status)
    return watch


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
    watch = heard(text, errors)
    assert watch.hit is None
    assert "BYPASSED" in watch.uncounted[0].line and watch.uncounted[0].why
    # The script's own word counts, before it and after it, on either output.
    for own in ("BYPASSED", "it is BYPASSED", "the loop has BYPASSED the limit"):
        assert heard(text, f"{errors}{own}\n").hit == Match(condition=1, seen=own)
        assert heard(text, f"{own}\n{errors}").hit == Match(condition=1, seen=own)
        assert heard(text, errors, output=f"{own}\n").hit == Match(condition=1, seen=own)


def test_what_is_joined_with_the_output_is_told_apart_there() -> None:
    text = "exec 2>&1\nset -x\ngrep -q BYPASSED log\nbash -c 'kill -9 $$ && echo BYPASSED'\n"
    said = "+ grep -q BYPASSED log\n/run/testbed/crash.sh: line 4:  9 Killed    bash -c 'kill -9 $$ && echo BYPASSED'\n"
    assert heard(text, "", output=said).hit is None
    assert heard(text, "", {"output": "BYPASSED\nend"}, output=f"{said}BYPASSED\n{said}end\n").hit is not None


def test_a_trace_that_seems_to_be_open_ends_at_the_next_line_of_the_trace() -> None:
    assert heard("set -x\ntrue\n", "+ echo 'a\n+ true\nBYPASSED\n").hit is not None


def test_what_a_script_prints_of_others_is_no_word_of_its_shell() -> None:
    watch = heard("cat log", "", output="bash: line 1: perf: command not found\nBYPASSED\n")
    assert watch.hit is not None and not watch.failed_commands


def test_a_script_prints_what_stands_in_it() -> None:
    for text, said in (
        ("echo BYPASSED", "BYPASSED"),
        ('echo "+ BYPASSED"', "+ BYPASSED"),
        ("cat <<END\nFAIL: BYPASSED\nEND", "FAIL: BYPASSED"),
        ('echo "run: echo BYPASSED"', "run: echo BYPASSED"),
        ('echo "$0: BYPASSED"', "/run/testbed/crash.sh: BYPASSED"),
        ('echo "$0:$LINENO: BYPASSED"', "/run/testbed/crash.sh:1: BYPASSED"),
        ("set -v\ncat <<END\nBYPASSED\nEND", "BYPASSED"),
    ):
        assert heard(text, "", output=f"{said}\n").hit is not None, text
    # set -v prints a here-document as it reads it, and cat prints it again.
    assert heard("set -v\ncat >&2 <<END\nBYPASSED\nEND", "cat >&2 <<END\nBYPASSED\nEND\n").hit is None
    assert heard("set -v\ncat >&2 <<END\nBYPASSED\nEND", "cat >&2 <<END\nBYPASSED\nEND\nBYPASSED\n").hit is not None


def test_dash_says_of_a_job_what_became_of_it_alone() -> None:
    watch = heard("kill -9 $$", "Killed\n", {"output": "Killed"}, first="#!/bin/sh\n")
    assert watch.hit is None and "says of a job" in watch.uncounted[0].why
    assert heard("echo Killed", "", {"output": "Killed"}, output="Killed\n", first="#!/bin/sh\n").hit is not None


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
    # Whether it goes on or ends there, and whatever it makes of it.
    for status in (0, 1, 2, 127):
        watch = heard(
            text,
            f"{errors}\n",
            {"output": "BYPASSED"},
            {"status": "failure"},
            output="BYPASSED\n",
            status=status,
            first=first,
        )
        assert watch.hit is None
        assert watch.why_unknown(status).startswith(what)


def test_a_complaint_that_comes_after_the_output_that_it_stood_before_takes_the_hit_back() -> None:
    watch = heard("perf", "", {"output": "BYPASSED"}, output="BYPASSED\n", status=None)
    assert watch.hit is not None and watch.rests_on_script
    watch.drop_doubtful_hit()
    assert watch.hit is not None, "nothing speaks against it"
    watch.feed_errors(b"/run/testbed/crash.sh: line 1: perf: command not found\n")
    watch.drop_doubtful_hit()
    assert watch.hit is None and watch.why_unknown(None).startswith("crash.sh:1: perf: not found")
    # What others see stays.
    watch = heard(
        "perf", "/run/testbed/crash.sh: line 1: perf: command not found\n", {"console": "BUG: KASAN"}, status=None
    )
    watch.feed_console(b"BUG: KASAN: use-after-free\n")
    watch.drop_doubtful_hit()
    assert watch.hit is not None and not watch.rests_on_script


def test_what_others_see_of_a_script_that_could_not_run_counts() -> None:
    errors = "/run/testbed/crash.sh: line 1: perf: command not found\n"
    watch = heard("perf", errors, {"console": "BUG: KASAN"}, status=None)
    watch.feed_console(b"BUG: KASAN: use-after-free\n")
    assert watch.hit is not None
    watch = heard("perf", errors, {"cgroup": "a", "counter": "memory.events oom_kill", "above": 0}, status=None)
    watch.feed_counter("a", "memory.events oom_kill", 1)
    assert watch.hit is not None
    assert heard("perf", errors, {"hang": "1s"}, status=None).why_unknown(None)


@pytest.mark.parametrize("status", [126, 127])
def test_a_bug_that_is_meant_to_end_so_says_so(status: int) -> None:
    errors = "/run/testbed/crash.sh: line 1: perf: command not found\n"
    assert heard("perf", errors, {"status": "failure"}, status=status).why_unknown(status)
    assert heard("exit", "", {"status": "failure"}, status=status).why_unknown(status).startswith(f"status {status}: ")
    watch = heard("perf", errors, {"status": status}, status=status)
    assert watch.hit == Match(condition=1, seen=f"status {status}") and not watch.why_unknown(status)


def test_what_only_looks_like_it_could_not_run() -> None:
    for text, said in (
        ("type perf", "/run/testbed/crash.sh: line 1: type: perf: not found"),
        (
            "echo 1 >/sys/fs/cgroup/a/memory.peak",
            "/run/testbed/crash.sh: line 1: /sys/fs/cgroup/a/memory.peak: No such file or directory",
        ),
        ("flock /a/b true", "flock: cannot open lock file /a/b: No such file or directory"),
        ("ls /a", "ls: cannot access '/a': No such file or directory"),
        ("modprobe foo", "modprobe: FATAL: Module foo not found in directory /lib/modules/6.1.0"),
    ):
        watch = heard(text, f"{said}\n", {"status": 1}, status=1)
        assert watch.hit is not None and not watch.why_unknown(1), text


def test_a_miss_says_how_it_ended() -> None:
    watch = heard("", "warned\n", output="first\nrefused\n")
    assert watch.describe_exit(0) == "status 0, last line: refused"
    assert heard("", "").describe_exit(3) == "status 3, and it printed nothing"
    text, errors = OF_JOBS["the issue's"]
    watch = heard(text, errors, output="before\n")
    assert watch.describe_exit(0).startswith("status 0, last line: before; '/run/testbed/crash.sh: line 3:")
    assert "matches and does not count: it is what the shell says of a job of the script" in watch.describe_exit(0)


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
    said=st.lists(WORDS | st.text(max_size=5)).map("".join),
    status=st.integers(0, 255),
)
@settings(max_examples=200, deadline=None)
def test_whatever_scripts_and_guests_say_is_an_answer(text: str, said: str, status: int) -> None:
    for first in ("", "#!/bin/sh\n", "#!/usr/bin/python3\n"):
        watch = heard(
            text,
            said,
            {"output": "x"},
            {"output": "a\\nb"},
            {"status": "failure"},
            output=said,
            status=status,
            first=first,
        )
        assert watch.describe_exit(status).startswith(f"status {status}, ") and watch.why_unknown(status) is not None
