"""A command whose event loop is stuck ends, on a signal or after a time limit, and its results are kept."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.host import watchdog

# Runs a command whose event loop gets stuck in `stand`; the watchdog's time limits are short.
RUN = """\
import asyncio, os, re, sys, time
from pathlib import Path
from testbed.host import watchdog
from testbed.cli.app import run_async
from testbed.cli.run_results import writing_results
from testbed.report import results
from testbed.report.fields import DocumentModel
from testbed.report.partial import Partial
from typing import ClassVar

watchdog._GRACE_S, watchdog._GRACE_WHILE_ENDING_S = 0.2, float(sys.argv[3])
sys.modules["testbed.cli.app"].watchdog_limit_s = lambda: float(sys.argv[2])
folder = Path(sys.argv[1])

class Document(DocumentModel):
    partial: Partial | None
    guests: list[str]
    file_name: ClassVar[str] = "results.json"

def spin():
    while True: pass

def stand():
    {stand}

async def work():
    def document(why):
        end = None if why is None else Partial(ended=1, wanted=2, at_most=False, what="tests", why=why)
        return Document(partial=end, guests=list(ended))

    def write(document, folder):
        (folder / "results.json").write_text(results.text(document))

    ended = []
    with writing_results(folder, document, write, print) as keeper:
        keeper.update()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(guest(ended))
                await asyncio.sleep(0)
                group.create_task(other())
        finally:
            keeper.update()
    return 0

async def guest(ended):
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0)
        ended.append("taken down")

async def other():
    print("at work", flush=True)
    stand()
    os._exit(7)

run_async(work())
"""
PYTHON = "while True: pass"
# A quadratic pattern, which once blocked `testbed suite`.
PATTERN = "re.match(r'(?:\\S+/\\S+)x', '/' * 10_000_000)"
# Waits for a reader that never opens the pipe.
BLOCKED = "os.mkfifo(folder / 'pipe'); open(folder / 'pipe')"
STUBBORN = "\n    ".join(["while True:", "    try:", "        spin()", "    except BaseException: pass"])
# C code that handles no signal.
COMPILED = "sum(range(10 ** 12))"
STANDS = {"python": PYTHON, "pattern": PATTERN, "blocked": BLOCKED}


CHILD_ENV = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])}

# On a busy machine the child's computation takes long.
pytestmark = pytest.mark.timeout(300)


@contextlib.contextmanager
def run_child(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code that prints "at work" once it is ready for signals; kill it if the test fails."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CHILD_ENV,
    ) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "at work\n"
            yield child
        finally:
            child.kill()


def run_stuck(
    tmp_path: Path, stand: str, limit_s: float = 100, patience_s: float = 60
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run a command whose event loop gets stuck in the code `stand`."""
    return run_child(RUN.format(stand=stand), str(tmp_path), str(limit_s), str(patience_s))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stand", STANDS)
def test_a_signal_ends_a_stuck_loop_and_the_results_are_kept(
    tmp_path: Path, stand: str, number: signal.Signals
) -> None:
    with run_stuck(tmp_path, STANDS[stand]) as child:
        child.send_signal(number)
        _, err = child.communicate()
    assert child.returncode == 128 + number, err
    assert err == (
        f"testbed: stopped by {number.name}; what it had started is gone; what there is of its run is in {tmp_path}\n"
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["partial"]["why"] == f"interrupted by {number.name}" and results["guests"] == ["taken down"]


@pytest.mark.parametrize("stand", ["python", "pattern"])
def test_a_stuck_loop_is_ended_and_its_stack_is_logged(tmp_path: Path, stand: str) -> None:
    with run_stuck(tmp_path, STANDS[stand], limit_s=0.4) as child:
        _, err = child.communicate()
    assert child.returncode == 2, err
    assert "the event loop did not turn for 0." in err and ", in stand\n" in err
    assert "this is a mistake of the testbed" in err and f"what there is of its run is in {tmp_path}" in err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["partial"]["why"].startswith("a mistake of the testbed: the event loop did not turn")
    assert results["guests"] == ["taken down"]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any(
        entry["level"] == "error" and "did not turn" in entry["event"] and "in stand" in entry["event"] for entry in log
    )


@pytest.mark.parametrize(("number", "limit_s", "code"), [(signal.SIGINT, 100, 130), (None, 1.5, 2)])
def test_a_loop_that_cannot_be_interrupted_is_killed_and_has_its_results(
    tmp_path: Path, number: signal.Signals | None, limit_s: float, code: int
) -> None:
    with run_stuck(tmp_path, STUBBORN, limit_s, 0.2) as child:
        if number is not None:
            child.send_signal(number)
        _, err = child.communicate()
    assert child.returncode == code and "the event loop stands still and cannot be interrupted; all ends at once" in err
    assert json.loads((tmp_path / "results.json").read_text())["partial"] is not None


def test_the_kernel_ends_a_loop_that_handles_no_signal(tmp_path: Path) -> None:
    with run_stuck(tmp_path, COMPILED, limit_s=0.3) as child:
        _, err = child.communicate()
    assert child.returncode == -signal.SIGVTALRM and "in stand" in err
    assert json.loads((tmp_path / "results.json").read_text())["partial"] is not None


def test_a_loop_that_uses_no_cpu_is_not_ended(tmp_path: Path) -> None:
    # The same happens on a machine that is suspended, or busy with other programs.
    with run_stuck(tmp_path, "time.sleep(2)", limit_s=0.2) as child:
        child.communicate()
    assert child.returncode == 7


def test_a_command_under_nohup_ignores_sighup() -> None:
    code = """\
import asyncio, os, signal
from testbed.cli.app import run_async

async def work():
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0)
    return 7

signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup(1) starts it
run_async(work())
"""
    assert subprocess.run([sys.executable, "-c", code], env=CHILD_ENV).returncode == 7


def test_a_loop_that_turns_may_use_any_amount_of_cpu(tmp_path: Path) -> None:
    code = """\
import asyncio, sys, time
from testbed.cli.app import run_async

sys.modules["testbed.cli.app"].watchdog_limit_s = lambda: 0.2

async def work():
    while time.thread_time() < 3:
        until = time.thread_time() + 0.02
        while time.thread_time() < until: pass
        await asyncio.sleep(0)
    return 7

run_async(work())
"""
    assert subprocess.run([sys.executable, "-c", code], env=CHILD_ENV).returncode == 7


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "\u0661", "1" * 5000])
def test_a_limit_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(watchdog.LIMIT, text)
    with pytest.raises(UsageError, match=r"TESTBED_TURN_LIMIT=.*: expected a whole number of seconds, 1 to 999999"):
        watchdog.limit_s()


def test_ctrl_c_ends_pytest_when_the_plugins_loop_is_stuck() -> None:
    code = """\
import signal
from testbed.api import event_loops

# A shell starts its background jobs with SIGINT ignored, and the child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
event_loops._GRACE_S = 0.2
background = event_loops.ThreadLoop()

async def stand():
    print("at work", flush=True)
    while True: pass

try:
    background.wait(stand())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with run_child(code) as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert out == "interrupted\n" and child.returncode == 0, err
