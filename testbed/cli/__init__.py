"""The command line. The only place that exits: 0 pass, 1 fail, 2 error, 3 no result, 4 everything skipped."""

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
from testbed.cli import streams
from testbed.cli.app import ABORT, ERROR, app, err, mistake, out, refuse_empty, stopped
from testbed.errors import HostError, TestbedError, TopologyError, first_error
from testbed.host import eventlog

# The commands of each module, in the order of `testbed --help`. A command loads only its own module: all of them take over a second.
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
# As of a command that SIGPIPE ends: whoever was to read what it prints has gone.
UNREAD = 128 + signal.SIGPIPE
# What this machine refuses wherever a file is written; every other error of the system that nobody expected is a mistake of ours.
_REFUSED = {
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
    """Entry point. Leaves without tidying up the interpreter, which takes 0.1 s and has nothing left to do. `go`: other verbs than ours."""
    watched = streams.Watched()
    status: object = ERROR
    with contextlib.suppress(OSError):  # whoever was to read its last words has gone, too
        status = _status(watched, go or _verbs)
    unprinted = watched.failure()
    if isinstance(unprinted, BrokenPipeError):
        status = UNREAD
    elif unprinted is not None:
        status = ERROR
        with contextlib.suppress(OSError):
            os.write(2, f"testbed: what it prints cannot be written: {unprinted.strerror}\n".encode())
    os._exit(exit_code(status, sys.argv[1:]))


def _status(watched: streams.Watched, go: Callable[[], object]) -> object:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _run(watched, go)
    except SystemExit as ended:
        return ended.code
    except KeyboardInterrupt:
        # In a verb that has no guests, or before it had any; see `app.run_async`.
        stopped(signal.SIGINT)
        return 128 + signal.SIGINT
    except Exception:
        # Python's own status would be 1, which says that a run failed, that a bug did not show.
        mistake()
        return ERROR
    return None


def exit_code(status: object, words: Sequence[str]) -> int:
    """What a command ends with that was typed as `words`. Where `git bisect run` hears it, an error must not be a bad commit."""
    code = status if isinstance(status, int) else 0 if status is None else ERROR
    asked_by_git = "bisect" in words and any(word.split("=")[0] in ("--run", "--tree") for word in words)
    return ABORT if code == ERROR and asked_by_git else code


def _run(watched: streams.Watched, go: Callable[[], object]) -> None:
    """Every error on purpose is one message and an exit code; with --debug, or TESTBED_DEBUG set, its code and a traceback come before."""
    try:
        go()
    except TestbedError as error:
        _fail(error)
    except (OSError, ExceptionGroup) as error:
        if watched.failure() is not None:
            return  # told at the end
        refused = _refused(error)
        if refused is None:
            raise
        _fail(refused)


def _verbs() -> None:
    load(_MODULE_OF.get(_verb()))
    app(standalone_mode=True)


def _fail(error: TestbedError) -> NoReturn:
    if os.environ.get("TESTBED_DEBUG"):
        said = "".join(traceback.format_exception(error))
        err.print(f"{said}{error.code}: see docs/errors.md", markup=False, highlight=False, soft_wrap=True)
    # A file's mistakes begin with its name, as a compiler's do.
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
    """What a person is told of an error that came from where nobody expects one; None where it is a mistake of ours."""
    if isinstance(error, BaseExceptionGroup):
        error = first_error(error)
    if isinstance(error, TestbedError):
        return error
    if isinstance(error, OSError) and error.errno in _REFUSED:
        where = error.filename or "this machine"
        # A file of the user's is no place of ours.
        ours = "if it is the testbed's own, " if error.errno in (errno.EACCES, errno.EPERM) else ""
        return HostError(
            f"{where}: {error.strerror}; {ours}name other places with TESTBED_CACHE, TESTBED_STATE or TMPDIR"
        )
    return None


def _verb() -> str:
    """What is asked for, or being completed: the shell gives that in its environment."""
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    words = typed.split() if typed else sys.argv
    return words[1] if len(words) > 1 else ""


def load(module: str | None = None) -> None:
    """Define the commands of one module, or of all modules."""
    for name in (module,) if module else MODULES:
        importlib.import_module(f"testbed.cli.{name}")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"testbed {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Tell on standard error what is done, and where an error was raised.")
    ] = False,
    qemu: Annotated[str | None, typer.Option("--qemu", metavar="PROGRAM", help="The QEMU to run guests on.")] = None,
) -> None:
    del version
    # By the environment, so that processes which are started later have them as well.
    if debug:
        os.environ["TESTBED_DEBUG"] = "1"
    if qemu is not None:
        refuse_empty("--qemu", qemu)
        os.environ["TESTBED_QEMU"] = qemu
    if os.environ.get("TESTBED_DEBUG"):
        eventlog.print_events_to(sys.stderr)
