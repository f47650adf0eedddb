"""How far a run came that still goes on, or that ended early. Pure."""

from __future__ import annotations

from testbed.report.fields import Count, DocumentModel


class Partial(DocumentModel):
    """`ended` of `wanted` results are known. `wanted` is None where it is known only at the end, and a limit if
    `at_most`. `what`: what the results are of, in the plural, such as cases. `why`: what ended the run; empty while it
    goes on.
    """

    ended: Count
    wanted: Count | None
    at_most: bool
    what: str
    why: str

    def __str__(self) -> str:
        """Such as `3 of 12 cases ended; interrupted by SIGINT`."""
        of = "" if self.wanted is None else f" of at most {self.wanted}" if self.at_most else f" of {self.wanted}"
        return f"{self.ended}{of} {self.what} ended; {self.why or 'the run goes on'}"
