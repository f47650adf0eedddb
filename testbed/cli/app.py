"""What all verbs share: the app, where they print, their common options, and how one runs to its end and exits."""

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


class _Verbs(TyperGroup):
    """Refuses options with nothing for a value: `--patched "$KERNEL"` without such a variable is no wish for the kernel of the table."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        found = super().resolve_command(ctx, args)
        below: Any = found[1]
        words: list[str] = found[2]
        while words and words[0] in getattr(below, "commands", ()):
            below, words = below.commands[words[0]], words[1:]
        # The words of others (ssh, scp, gdb) are theirs.
        if below is not None and not below.ignore_unknown_options and not ctx.resilient_parsing:
            _refuse_nothing([one for one in below.params if isinstance(one, TyperOption)], words)
        return found


def _refuse_nothing(options: Sequence[TyperOption], words: Sequence[str]) -> None:
    """:raise UsageError: one of a command's options has an empty value."""
    names = {name for one in options if not one.is_flag for name in one.opts}
    for word, following in zip(words, (*words[1:], None), strict=False):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if name in names:
            refuse_empty(name, value if equals else following)


def refuse_empty(option: str, value: str | None) -> None:
    """:raise UsageError: it is the empty word that an unset variable of the shell leaves."""
    if value == "":
        raise UsageError(f"{option}: expected a value, got an empty one; is a variable of the shell not set?")


app = typer.Typer(
    name="testbed",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Checks kernel patch series on ephemeral QEMU guests with emulated disks.",
    epilog="In a clone, ./tb has also: test [fast|kernels|FILES], check, coverage, mutants, bench; see README.md.",
)


class _Terminal(Console):
    """What is printed may quote guests, files and servers: none of them steers the terminal, and `a:b:c` is no picture of a letter."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


out = _Terminal()
err = _Terminal(stderr=True)

ERROR, FAILED = 2, 1
# Columns of a table that a program reads, not a person: a row is a line.
_UNFOLDED = 1000
# `git bisect run` skips a commit, or stops; it takes ERROR for a bad commit (git-bisect(1)).
SKIP, ABORT = 125, 255

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Cold = Annotated[bool, typer.Option("--cold", help="Boot every guest instead of cloning a template.")]
TopologyOption = Annotated[
    Path | None, typer.Option("--topology", "-t", help="Topology file; topologies/default.yaml without it.")
]
IgnoreStack = Annotated[
    bool,
    typer.Option("--ignore-stack", help="Leave out what scenarios do not use of the topology, in place of an error."),
]
KERNEL_HELP = "A name of images/kernels.yaml, built-NAME, BZIMAGE[:MODULES_FOLDER], or FILE.deb[:FILE.deb]."


def rows(table: RenderableType) -> None:
    """Print a list; into a pipe or a file without folding its rows."""
    folded = out.is_terminal or os.environ.get("COLUMNS")
    (out if folded else _Terminal(width=_UNFOLDED)).print(table)


def mistake() -> None:
    """Say that the exception which is being handled is a mistake of ours."""
    traceback.print_exc()
    err.print(
        "testbed: this is a mistake of the testbed and says nothing of your kernel; please report it with the lines above"
    )


_broken_off: list[Path] = []
# What watches this command's event loop, once it has one.
_watchdogs: list[Watchdog] = []


def stopped(by: signal.Signals, more: str = "") -> None:
    """Say that a signal ended this command."""
    err.print(f"testbed: stopped by {by.name}{more}{_what_there_is()}", markup=False, highlight=False, soft_wrap=True)
    if "--json" in sys.argv:
        run = {"folder": str(_broken_off[0])} if _broken_off else {}
        print(json.dumps({"event": "stopped", "signal": by.name, "exit_code": 128 + by, **run}), file=sys.stderr)


def _what_there_is() -> str:
    return f"; what there is of its run is in {_broken_off[0]}" if _broken_off else ""


def _stood_still(watchdog: Watchdog) -> None:
    """Say that a loop which did not turn was ended."""
    said = f"testbed: {watchdog.stood}; this is a mistake of the testbed, please report it with the lines above; what it had started is gone"
    err.print(f"{watchdog.stack}{said}{_what_there_is()}", markup=False, highlight=False, soft_wrap=True)


def ended_by(error: BaseException) -> str:
    """What ends a run, in a line: the signal for which it was cancelled, our error, or our mistake."""
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        for watchdog in _watchdogs:
            if watchdog.stood:
                return f"a mistake of the testbed: {watchdog.stood}"
            if watchdog.caught:
                return f"interrupted by {watchdog.caught[0].name}"
    if isinstance(error, BaseExceptionGroup):
        return ended_by(first_error(error))
    said = str(error).partition("\n")[0]
    return said if isinstance(error, TestbedError) else f"a mistake of the testbed: {type(error).__name__}: {said}"


@contextlib.contextmanager
def in_run_folder(folder: Path) -> Iterator[None]:
    """A run in this folder, which is named where a signal ends it."""
    with runs.running(folder, sys.argv):
        try:
            yield
        except (asyncio.CancelledError, KeyboardInterrupt):
            _broken_off.append(folder)
            raise


def run_async(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run to its end and exit with its code, as `completed` does where it does not come to one."""
    sys.exit(completed(work))


def completed(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end; SIGINT and SIGTERM cancel it, everything is taken down, and we exit. The third signal ends us at once: the guests
    go with us, and what is left of them with the next command. A loop that does not turn is ended as well; see `watchdog`.
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
        _stood_still(watchdog)
        sys.exit(ERROR)
    stopped(watchdog.caught[0], "; what it had started is gone")
    sys.exit(128 + watchdog.caught[0])
