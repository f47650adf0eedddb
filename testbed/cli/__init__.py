"""The command line, the only package that exits: 0 pass, 1 fail, 2 error, 3 no result, 4 everything skipped."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from testbed import __version__
from testbed.cli.app import ABORT, ERROR, app, err, out, print_internal_error, print_stopped, refuse_empty
from testbed.cli.streams import WatchedStreams
from testbed.errors import HostError, TestbedError, TopologyError, first_error
from testbed.host import eventlog

# The commands of each module, in the order of `testbed --help`. A command loads only its own module: all of them take
# over a second.
MODULES = {
    "doctor": ("doctor",),
    "validate": ("validate", "plan"),
    "reference": ("errors", "scenarios"),
    "run": ("compare", "run", "matrix"),
    "sensitivity": ("sensitivity",),
    "reports": ("report", "schema", "runs"),
    "repro": ("repro",),
    "bundle": ("bundle",),
    "trust": ("trust",),
    "reduce": ("reduce",),
    "bisect": ("bisect",),
    "suite": ("suite",),
    "up": ("up", "fork"),
    "vms": ("ps", "top", "ssh", "ssh-config", "cp", "inventory", "console", "logs", "down"),
    "debug": ("gdb", "dump"),
    "hardware": (
        *("throttle", "delay", "inject", "hang", "unplug", "plug", "resize", "memory", "cpus", "power-cut"),
        *("sample", "profiles", "hardware", "resume"),
    ),
    "snapshots": ("snapshot", "restore"),
    "cache": ("image", "gc"),
    "kernels": ("kernel",),
    "bench": ("bench",),
}
_MODULE_OF = {command: module for module, commands in MODULES.items() for command in commands}
# As if SIGPIPE had ended the command: the reader of its output has closed the pipe.
OUTPUT_CLOSED = 128 + signal.SIGPIPE
# Errors by which this machine refuses to write a file anywhere; any other unexpected OSError is a bug in the testbed.
_REFUSED_BY_HOST = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EFBIG,
}


def main(go: Callable[[], object] | None = None) -> NoReturn:
    """Entry point. Exits without finalizing the interpreter, which takes 0.1 s. `go`: runs other commands than ours."""
    streams = WatchedStreams()
    status: object = ERROR
    with contextlib.suppress(OSError):  # standard error may be closed as well
        status = _status(streams, go or _run_command)
    unprinted = streams.failure()
    if isinstance(unprinted, BrokenPipeError):
        status = OUTPUT_CLOSED
    elif unprinted is not None:
        status = ERROR
        with contextlib.suppress(OSError):
            os.write(2, f"testbed: what it prints cannot be written: {unprinted.strerror}\n".encode())
    os._exit(exit_code(status, sys.argv[1:]))


def _status(streams: WatchedStreams, go: Callable[[], object]) -> object:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _run(streams, go)
    except SystemExit as ended:
        return ended.code
    except KeyboardInterrupt:
        # In a command without guests, or before it had any; see `app.run_async`.
        print_stopped(signal.SIGINT)
        return 128 + signal.SIGINT
    except Exception:
        # Python's own status would be 1, which means that a run failed or that a bug did not show.
        print_internal_error()
        return ERROR
    return None


def exit_code(status: object, words: Sequence[str]) -> int:
    """Return the exit code of the command with the arguments `words`. For `git bisect run`, an error must not be a bad
    commit.
    """
    code = status if isinstance(status, int) else 0 if status is None else ERROR
    run_by_git = "bisect" in words and any(word.split("=")[0] in ("--run", "--tree") for word in words)
    return ABORT if code == ERROR and run_by_git else code


def _run(streams: WatchedStreams, go: Callable[[], object]) -> None:
    """Turn every TestbedError into a message and an exit code; --debug or TESTBED_DEBUG add its code and a
    traceback.
    """
    try:
        go()
    except TestbedError as error:
        _fail(error)
    except (OSError, ExceptionGroup) as error:
        if streams.failure() is not None:
            return  # `main` reports it
        refused = _refused(error)
        if refused is None:
            raise
        _fail(refused)


def _run_command() -> None:
    load(_MODULE_OF.get(_command()))
    app(standalone_mode=True)


def _fail(error: TestbedError) -> NoReturn:
    if os.environ.get("TESTBED_DEBUG"):
        trace = "".join(traceback.format_exception(error))
        err.print(f"{trace}{error.code}: see docs/errors.md", markup=False, highlight=False, soft_wrap=True)
    # Mistakes in a file begin with its name, as a compiler's do.
    err.print(
        str(error) if isinstance(error, TopologyError) else f"testbed: {error}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if "--json" in sys.argv:
        print(
            json.dumps({"event": "error", "code": error.code, "error": type(error).__name__, "text": str(error)}),
            file=sys.stderr,
        )
    sys.exit(ERROR)


def _refused(error: BaseException) -> TestbedError | None:
    """Return the error to report for an unexpected exception; None if it is a bug in the testbed."""
    if isinstance(error, BaseExceptionGroup):
        error = first_error(error)
    if isinstance(error, TestbedError):
        return error
    if isinstance(error, OSError) and error.errno in _REFUSED_BY_HOST:
        where = error.filename or "this machine"
        # The file may be one of the user's, and not one of the testbed's folders.
        ours = "if it is the testbed's own, " if error.errno in (errno.EACCES, errno.EPERM) else ""
        return HostError(
            f"{where}: {error.strerror}; {ours}name other places with TESTBED_CACHE, TESTBED_STATE or TMPDIR"
        )
    return None


def _command() -> str:
    """Return the name of the command, also while the shell completes it and passes the line in the environment."""
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    words = typed.split() if typed else sys.argv
    return words[1] if len(words) > 1 else ""


def load(module: str | None = None) -> None:
    """Define the commands of one module, or of all modules."""
    for name in (module,) if module else MODULES:
        importlib.import_module(f"testbed.cli.{name}")


def _version(value: bool) -> None:
    if value:
        out.print(f"testbed {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print on standard error what is done, and where an error was raised.")
    ] = False,
    qemu: Annotated[str | None, typer.Option("--qemu", metavar="PROGRAM", help="The QEMU to run guests on.")] = None,
) -> None:
    del version
    # In the environment, so that child processes have them too.
    if debug:
        os.environ["TESTBED_DEBUG"] = "1"
    if qemu is not None:
        refuse_empty("--qemu", qemu)
        os.environ["TESTBED_QEMU"] = qemu
    if os.environ.get("TESTBED_DEBUG"):
        eventlog.print_events_to(sys.stderr)
