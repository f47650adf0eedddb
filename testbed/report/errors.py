"""The catalogue of errors as Markdown: what docs/errors.md holds."""

from __future__ import annotations

import inspect

from testbed.errors import TestbedError, flatten

_HEAD = """\
# Errors

Made by `./tb errors --markdown >docs/errors.md`; a test keeps it equal to the code.

A message says where, what was expected, what was got, and what to do. `testbed --debug VERB` (or `TESTBED_DEBUG=1`) prints the log, a
traceback and the code as well, for a guest of `up` into its `supervisor.log`; with `--json` the last line on standard error is
`{"event": "error", "code": ...}`; `log.jsonl` in a run's folder has the log of that run. A code stays with what it means;
`testbed errors CODE` prints its line.

The command ends with status 2, unless it has a verdict to give: PASS 0, FAIL 1, INVALID 3, everything skipped 4, and INFRA 2 where a guest
was lost. A signal that stops it makes it 128 and the signal's number; 141 says that nobody read what it printed to the end. `validate`
says 1 of a file that is wrong or cannot be read, `testbed ssh` has the status of the command in the guest, and `testbed cp` that of scp.

| code | class | what it means | who acts | how |
|---|---|---|---|---|
"""


def markdown() -> str:
    """The whole file."""
    return _HEAD + "".join(
        f"| {kind.code} | `{kind.__name__}` | {_meaning(kind)} | {kind.who} | {kind.act} |\n" for kind in flatten()
    )


def _meaning(kind: type[TestbedError]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").removesuffix(".")
