"""The command line. The only place that exits: 0 pass, 1 fail, 2 error, 3 no result, 4 everything skipped."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from testbed import __version__
from testbed.cli import look, run, snapshots, store, vms
from testbed.cli.app import ERROR, app, err, out
from testbed.errors import TestbedError, TopologyError

__all__ = ["app", "look", "main", "run", "snapshots", "store", "vms"]


def main() -> None:
    """Entry point: every error on purpose is one message and an exit code, never a traceback (unless TESTBED_DEBUG is set)."""
    try:
        app(standalone_mode=True)
    except TopologyError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(ERROR)
    except TestbedError as error:
        if os.environ.get("TESTBED_DEBUG"):
            traceback.print_exc()
        err.print(f"testbed: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ERROR)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"testbed {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    del version
