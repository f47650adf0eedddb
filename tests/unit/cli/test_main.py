"""The entry point: modules of commands, unexpected exceptions, signals."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import cli
from testbed.cli.app import app
from testbed.errors import HostError
from tests.support.command import testbed


def test_each_command_is_in_the_module_that_is_loaded_for_it() -> None:
    cli.load()
    found: dict[str, str] = {}
    for one in app.registered_commands:
        assert one.callback is not None
        found[one.name or one.callback.__name__.replace("_", "-")] = one.callback.__module__
    for group in app.registered_groups:
        assert group.typer_instance is not None
        first = group.typer_instance.registered_commands[0].callback
        assert first is not None
        found[str(group.name)] = first.__module__
    assert found == {verb: f"testbed.cli.{module}" for module, verbs in cli.MODULES.items() for verb in verbs}


def test_help_lists_the_commands(tmp_path: Path) -> None:
    assert "compare" in testbed(tmp_path, "--help").stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/somewhere"),
            "/somewhere: No space left on device; name other places with",
        ),
        (
            ExceptionGroup("g", [ExceptionGroup("h", [OSError(errno.EROFS, "Read-only file system")])]),
            "this machine: Read-only file system",
        ),
        (ExceptionGroup("g", [HostError("no tool"), ValueError("b")]), "no tool"),
        (OSError(errno.EPIPE, "Broken pipe"), None),
        (ExceptionGroup("g", [ValueError("a mistake of ours")]), None),
    ],
)
def test_refusals_by_the_host_are_one_message_and_other_exceptions_are_not(error: Exception, said: str | None) -> None:
    refused = cli._refused(error)
    assert (refused is None) if said is None else str(refused).startswith(said)


# Taken down for longer than anybody waits.
HANGS = """\
import asyncio
from testbed.cli.app import run_async

async def work():
    print("at work", flush=True)
    try:
        await asyncio.sleep(600)
    finally:
        print("ending", flush=True)
        await asyncio.sleep(600)

run_async(work())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_third_signal_ends_a_command_at_once(number: signal.Signals) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HANGS], stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "at work\n"
        child.send_signal(number)
        assert child.stdout.readline() == "ending\n"
        child.send_signal(number)
        assert child.stderr.readline() == "testbed: guests are taken down; once more ends that at once\n"
        child.send_signal(number)
        assert child.wait(30) == 128 + number
