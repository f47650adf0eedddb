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
        str | None, typer.Argument(metavar="[CODE]", help="An error code, such as TB410.", show_default=False)
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole catalogue, as docs/errors.md has it.")
    ] = False,
) -> None:
    """What an error's code means, who must act, and how."""
    if markdown:
        print(docs.errors_markdown(), end="")
        return
    kinds = [kind for kind in errors.error_classes() if code is None or code.upper() == kind.code]
    if not kinds:
        raise UsageError(f"errors {code}: expected one of {', '.join(kind.code for kind in errors.error_classes())}")
    for kind in kinds:
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
