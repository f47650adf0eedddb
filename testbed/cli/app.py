"""What all commands share: the Typer app, terminal output, common options, and how a command runs and exits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typer.core import TyperGroup, TyperOption

from testbed.errors import TestbedError, UsageError, first_error
from testbed.host.watchdog import Watchdog
from testbed.host.watchdog import limit_s as watchdog_limit_s
from testbed.report import runs
from testbed.text import printable

T = TypeVar("T")


class _Commands(TyperGroup):
    """Refuses options with an empty value: `--patched "$KERNEL"` with an unset variable must not select the table's
    kernel.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        resolved = super().resolve_command(ctx, args)
        command: Any = resolved[1]
        words: list[str] = resolved[2]
        while words and words[0] in getattr(command, "commands", ()):
            command, words = command.commands[words[0]], words[1:]
        # Arguments for other programs (ssh, scp, gdb) are not checked.
        if command is not None and not command.ignore_unknown_options and not ctx.resilient_parsing:
            _refuse_empty_options([option for option in command.params if isinstance(option, TyperOption)], words)
        return resolved


def _refuse_empty_options(options: Sequence[TyperOption], words: Sequence[str]) -> None:
    """:raise UsageError: an option of a command has an empty value."""
    names = {name for option in options if not option.is_flag for name in option.opts}
    for word, following in zip(words, (*words[1:], None), strict=False):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if name in names:
            refuse_empty(name, value if equals else following)


def refuse_empty(option: str, value: str | None) -> None:
    """:raise UsageError: the value is empty, as an unset shell variable leaves it."""
    if value == "":
        raise UsageError(f"{option}: expected a value, got an empty one; is a variable of the shell not set?")


app = typer.Typer(
    name="testbed",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Checks kernel patch series on ephemeral QEMU guests with emulated disks.",
    epilog="In a clone, ./tb has also: test [fast|kernels|FILES], check, coverage, mutants, bench; see README.md.",
)


class _Terminal(Console):
    """Prints text that may quote guests, files and servers: nothing in it can control the terminal, and `:b:` is no
    emoji.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


out = _Terminal()
err = _Terminal(stderr=True)

ERROR, FAILED = 2, 1
# Columns of a table that goes into a pipe or a file, so that each row is a line.
_UNFOLDED_COLUMNS = 1000
# `git bisect run` skips a commit, or stops; it would take ERROR for a bad commit (git-bisect(1)).
SKIP, ABORT = 125, 255

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Cold = Annotated[bool, typer.Option("--cold", help="Boot every guest instead of cloning a template.")]
TopologyOption = Annotated[
    Path | None, typer.Option("--topology", "-t", help="Topology file; topologies/default.yaml by default.")
]
IgnoreStack = Annotated[
    bool,
    typer.Option("--ignore-stack", help="Ignore parts of the topology that scenarios do not use, instead of an error."),
]
KERNEL_HELP = "A name of images/kernels.yaml, built-NAME, BZIMAGE[:MODULES_FOLDER], or FILE.deb[:FILE.deb]."


def rows(table: RenderableType) -> None:
    """Print a table; its rows are not folded in a pipe or a file."""
    folded = out.is_terminal or os.environ.get("COLUMNS")
    (out if folded else _Terminal(width=_UNFOLDED_COLUMNS)).print(table)


def print_internal_error() -> None:
    """Print the exception that is being handled, and that it is a bug in the testbed."""
    traceback.print_exc()
    err.print(
        "testbed: this is a mistake of the testbed and says nothing about your kernel; "
        "please report it with the lines above"
    )


_interrupted_runs: list[Path] = []
# The watchdog of this command's event loop, once it has one.
_watchdogs: list[Watchdog] = []


def print_stopped(by: signal.Signals, more: str = "") -> None:
    """Print that a signal ended this command."""
    err.print(f"testbed: stopped by {by.name}{more}{_partial_run()}", markup=False, highlight=False, soft_wrap=True)
    if "--json" in sys.argv:
        run = {"folder": str(_interrupted_runs[0])} if _interrupted_runs else {}
        print(json.dumps({"event": "stopped", "signal": by.name, "exit_code": 128 + by, **run}), file=sys.stderr)


def _partial_run() -> str:
    return f"; what there is of its run is in {_interrupted_runs[0]}" if _interrupted_runs else ""


def _print_blocked(watchdog: Watchdog) -> None:
    """Print that the event loop was blocked and was ended."""
    message = (
        f"testbed: {watchdog.stood}; this is a mistake of the testbed, please report it with the lines above; "
        "what it had started is gone"
    )
    err.print(f"{watchdog.stack}{message}{_partial_run()}", markup=False, highlight=False, soft_wrap=True)


def ended_by(error: BaseException) -> str:
    """Return in one line why a run ended: the signal that cancelled it, an error, or a bug in the testbed."""
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        for watchdog in _watchdogs:
            if watchdog.stood:
                return f"a mistake of the testbed: {watchdog.stood}"
            if watchdog.caught:
                return f"interrupted by {watchdog.caught[0].name}"
    if isinstance(error, BaseExceptionGroup):
        return ended_by(first_error(error))
    message = str(error).partition("\n")[0]
    return (
        message if isinstance(error, TestbedError) else f"a mistake of the testbed: {type(error).__name__}: {message}"
    )


@contextlib.contextmanager
def in_run_folder(folder: Path) -> Iterator[None]:
    """Run a block whose files go to `folder`; if a signal ends it, the message names the folder."""
    with runs.running(folder, sys.argv):
        try:
            yield
        except (asyncio.CancelledError, KeyboardInterrupt):
            _interrupted_runs.append(folder)
            raise


def run_async(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a coroutine and exit with the code that it returns, or as `run_to_end` exits."""
    sys.exit(run_to_end(work))


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result.

    SIGINT, SIGTERM and SIGHUP cancel it; its guests are shut down, and the command exits. A third signal ends the
    process at once: the guests end with it, and the next command removes their files. A blocked event loop is ended as
    well; see `watchdog`.
    """

    def on_second() -> None:
        err.print("testbed: guests are taken down; once more ends that at once", markup=False)

    try:
        limit_s = watchdog_limit_s()
    except UsageError:
        work.close()
        raise
    runner = asyncio.Runner()
    watchdog = Watchdog(runner.get_loop(), limit_s, on_second)
    _watchdogs.append(watchdog)

    async def guarded() -> T:
        watchdog.watch(asyncio.current_task())
        return await work

    try:
        with watchdog.watching(), runner:
            return runner.run(guarded())
    except (asyncio.CancelledError, KeyboardInterrupt):
        if not watchdog.caught and not watchdog.stood:
            raise
    if watchdog.stood:
        _print_blocked(watchdog)
        sys.exit(ERROR)
    print_stopped(watchdog.caught[0], "; what it had started is gone")
    sys.exit(128 + watchdog.caught[0])
