"""What counts as a hit."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from testbed.bugs.model import Condition
from testbed.bugs.signature import End, Match, SignatureMatcher, render
from testbed.regex import compile_user_regex


def watch(*conditions: dict[str, Any]) -> SignatureMatcher:
    return SignatureMatcher([Condition.model_validate(one) for one in conditions])


def test_a_line_of_the_console_is_a_hit_once_it_is_whole() -> None:
    seen = watch({"console": "BUG: KASAN"})
    seen.feed_console(b"[    1.000000] BUG: KAS")
    assert seen.hit is None
    seen.feed_console(b"AN: use-after-free\r\n")
    assert seen.hit == Match(condition=1, seen="[    1.000000] BUG: KASAN: use-after-free")


def test_the_scripts_output_is_not_the_console() -> None:
    seen = watch({"console": "oops"}, {"output": "^oops$"})
    seen.feed_output(b"oops\n")
    assert seen.hit == Match(condition=2, seen="oops")


def test_errors_are_output_too() -> None:
    seen = watch({"output": "No space left"})
    seen.feed_errors(b"dd: error writing: No space left on device\n")
    assert seen.hit is not None


def test_a_pattern_over_several_lines_is_looked_for_at_the_end() -> None:
    seen = watch({"output": r"^oom_kill 1\noom_kill 1$"})
    seen.feed_output(b"oom_kill 0\noom_kill 1\noom_kill 1")
    assert seen.hit is None
    seen.script_ended(0)
    assert seen.hit == Match(condition=1, seen="oom_kill 1\noom_kill 1")


@pytest.mark.parametrize(
    "tell",
    [
        lambda seen: seen.feed_console(b"x oom_kill 3\n"),
        lambda seen: seen.feed_output(b"oom_kill 3\n"),
        lambda seen: seen.feed_errors(b"oom_kill 3\n"),
        lambda seen: seen.feed_counters(("test.slice/memory.events oom_kill 3",)),
    ],
)
def test_what_is_expected_may_be_seen_anywhere(tell: Any) -> None:
    seen = watch({"expect": "BUG: KASAN|oom_kill [1-9]"})
    seen.feed_counters(("test.slice/memory.events oom_kill 0",))
    assert seen.hit is None
    tell(seen)
    assert seen.hit is not None and "oom_kill 3" in seen.hit.seen


def test_all_keys_of_one_condition_hold_or_one_of_several_conditions() -> None:
    both = {"console": "WARNING", "status": 1}
    seen = watch(both, {"guest": "panic"})
    seen.feed_console(b"WARNING: CPU: 0\n")
    assert seen.hit is None
    seen.script_ended(1)
    assert seen.hit == Match(condition=1, seen="WARNING: CPU: 0; status 1")
    seen = watch(both, {"guest": "panic"})
    seen.guest_ended(End.PANIC)
    assert seen.hit == Match(condition=2, seen="the kernel panicked")


@pytest.mark.parametrize(
    ("status", "wanted", "hits"),
    [(0, 0, True), (1, 0, False), (137, "failure", True), (0, "failure", False), (3, 3, True)],
)
def test_a_status(status: int, wanted: int | str, hits: bool) -> None:
    seen = watch({"status": wanted})
    seen.script_ended(status)
    assert (seen.hit is not None) is hits


def test_counters_are_above_or_below() -> None:
    counter = {"cgroup": "a", "counter": "memory.events oom_kill"}
    seen = watch({**counter, "above": 1}, {"cgroup": "/", "counter": "cgroup.procs", "below": 2})
    assert seen.counters == (("a", "memory.events oom_kill"), ("/", "cgroup.procs"))
    seen.feed_counter("a", "memory.events oom_kill", 1)
    seen.feed_counter("b", "memory.events oom_kill", 9)
    assert seen.hit is None
    seen.feed_counter("a", "memory.events oom_kill", 2)
    assert seen.hit == Match(condition=1, seen="a/memory.events oom_kill is 2")


def test_a_hang_is_a_script_that_has_not_ended() -> None:
    seen = watch({"hang": "30s"}, {"hang": "5s", "console": "stall"})
    assert seen.hang_limits_s == (5.0, 30.0)
    seen.feed_runtime(5.0)
    assert seen.hit is None
    seen.feed_runtime(30.0)
    assert seen.hit == Match(condition=1, seen="no end after 30s")


@pytest.mark.parametrize("end", [end for end in End if end.of_guest])
def test_a_lost_guest_is_lost_however_it_was(end: End) -> None:
    lost, own, other = (
        watch({"guest": "lost"}),
        watch({"guest": end.of_guest}),
        watch({"guest": "oops" if end is End.PANIC else "panic"}),
    )
    for seen in (lost, own, other):
        seen.guest_ended(end)
    assert lost.hit and own.hit and not other.hit


def test_a_guest_that_lives_is_not_lost() -> None:
    seen = watch({"guest": "lost"})
    for end in (End.DONE, End.STOPPED, End.TIMED_OUT, End.UNTRIED):
        seen.guest_ended(end)
    assert seen.hit is None


def test_the_first_hit_stays() -> None:
    seen = watch({"output": "one"}, {"output": "two"})
    seen.feed_output(b"two\none\n")
    assert seen.hit is not None and seen.hit.condition == 2


def test_lines_without_an_end_take_no_memory() -> None:
    seen = watch({"console": "never"}, {"output": "never"})
    for _ in range(300):
        seen.feed_console(b"x" * 65536)
        seen.feed_output(b"y" * 65536)
    assert len(seen._console.pending) <= 4096 and len(seen._output) <= 1 << 20


def test_a_pattern_that_would_take_for_ever_takes_no_time() -> None:
    started = time.process_time()
    seen = watch({"console": "^(([a-z])+.)+[A-Z]([a-z])+$"}, {"output": "(x+x+)+y"})
    seen.feed_console(b"a" * 4000 + b"\n")
    seen.feed_output(b"x" * 4000 + b"\n")
    assert seen.hit is None
    # With backtracking this is more than 2 to the power of 1000 steps.
    assert time.process_time() - started < 30


def test_a_pattern_that_is_none_says_so() -> None:
    with pytest.raises(ValidationError, match=r"RE2's: no lookaround.*got 'a\(\?=b\)'"):
        watch({"console": "a(?=b)"})
    with pytest.raises(ValueError, match=r"missing \)"):
        compile_user_regex("(a")
    with pytest.raises(ValueError, match="expected a regular expression"):
        compile_user_regex("((a{100}){100}){100}")


def test_counters_are_rendered_as_lines() -> None:
    texts = {"a/memory.events": "low 0\noom_kill 2\n", "a/memory.current": "4096\n", "a/io.stat": "8:0 rbytes=1\n"}
    assert render(texts) == ("a/memory.current 4096", "a/memory.events low 0", "a/memory.events oom_kill 2")


def test_the_guests_bytes_cannot_steer_a_terminal() -> None:
    seen = watch({"output": "evil"})
    seen.feed_output(b"\x1b]0;evil\x07\x1b[2J evil\n")
    assert seen.hit is not None and seen.hit.seen.isprintable()
