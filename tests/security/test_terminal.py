"""Text of guests, files and servers does not control the terminal."""

from __future__ import annotations

import contextlib
import os
import re

import pytest
from rich.console import Group
from rich.text import Text

from testbed.cli.app import _Terminal
from testbed.errors import CommandFailed, GuestError, HostError, TestbedError, TopologyError, UsageError
from testbed.guest.channels.kernel_log import clean
from testbed.text import printable
from testbed.topology.load import parse
from tests.support.control_characters import CODES


@pytest.mark.parametrize(
    "error",
    [
        TestbedError(CODES),
        GuestError(CODES),
        CommandFailed("g0", CODES, "1", CODES),
        HostError(CODES),
        UsageError(CODES),
    ],
)
def test_error_messages_contain_no_control_characters(error: TestbedError) -> None:
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", str(error)) is None


def test_printed_text_contains_no_control_characters_and_keeps_its_lines() -> None:
    with contextlib.closing(open(os.devnull, "w")) as nowhere:  # noqa: PTH123  # a text file that rich can have
        terminal = _Terminal(file=nowhere, force_terminal=True, width=200)
        with terminal.capture() as captured:
            terminal.print(f"one{CODES}\ntwo\tthree", markup=False, highlight=False)
            terminal.print(Text.assemble(("PASS", "bold"), f"\n{CODES}"), Group(Text(CODES)))
    plain, _, styled = captured.get().partition("three\n")
    assert plain == "one]0;ownedP$q\\31mtxt\ntwo     "
    assert (
        styled.replace("\x1b[1m", "", 1).replace("\x1b[0m", "", 1) == "PASS\n]0;ownedP$q\\31mtxt\n]0;ownedP$q\\31mtxt\n"
    )
    assert printable("a\tb\nc ä 漢") == "a\tb\nc ä 漢" and clean("x" * 2000) == "x" * 1000


def test_a_quoted_key_of_a_file_contains_no_control_characters() -> None:
    with pytest.raises(TopologyError) as found:
        parse("version: 1\nguests:\n  g0:\n    " + '"\\e[2Jowned": 1\n', "x.yaml")
    (problem,) = found.value.problems
    assert "owned" in str(problem) and "\x1b" not in str(problem) and "\x1b" not in str(found.value)
