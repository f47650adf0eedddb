"""Prints the catalogues of errors and scenarios: errors, scenarios."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed import errors
from testbed.cli.app import app
from testbed.errors import UsageError
from testbed.report import docs
from testbed.scenarios.catalogue import SCENARIOS, cases


@app.command("errors")
def errors_command(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="One of them, such as TB410.", show_default=False)
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole catalogue, as docs/errors.md has it.")
    ] = False,
) -> None:
    """What an error's code means, who must act, and how."""
    if markdown:
        print(docs.errors_markdown(), end="")
        return
    found = [kind for kind in errors.flatten() if code is None or code.upper() == kind.code]
    if not found:
        raise UsageError(f"errors {code}: expected one of {', '.join(kind.code for kind in errors.flatten())}")
    for kind in found:
        print(f"{kind.code}\t{kind.__name__}\t{kind.who}: {kind.act}")


@app.command("scenarios")
def scenarios_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole catalogue, as docs/scenarios.md has it.")
    ] = False,
) -> None:
    """List the scenarios and the points at which each is tried."""
    if markdown:
        print(docs.scenarios_markdown(tuple(SCENARIOS.values())), end="")
        return
    for name, case in cases().items():
        print(f"{name}\t{case.scenario.claim}")
