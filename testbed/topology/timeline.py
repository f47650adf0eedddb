"""The timeline of a topology file: changes to a guest's hardware while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from testbed import regex
from testbed.topology.base import Duration, Model, PrintableText, Size
from testbed.topology.cgroups import CgroupPath

Counter = Annotated[str, Field(pattern=r"^[a-z]+(\.[a-z]+)+( [a-z_]+)?$")]


class When(Model):
    """An event that starts an entry of the timeline.

    The guest reaches a `mark`; or a line of its `console` matches a regular expression; or a `counter` of a `cgroup`
    gets `above` or `below` a value. A counter is a file with one number, or a file and a key in it
    (`memory.stat file`).
    """

    mark: PrintableText | None = None
    console: PrintableText | None = None
    cgroup: CgroupPath | None = None
    counter: Counter | None = None
    above: Size | None = None
    below: Size | None = None

    def mistakes(self) -> Iterator[str]:
        """List what is wrong with the combination of keys."""
        kinds = [key for key in ("mark", "console", "counter") if getattr(self, key) is not None]
        if len(kinds) != 1:
            yield f"expected one of mark, console and counter, got {' and '.join(kinds) or 'none'}"
        if (self.counter is None) != (self.cgroup is None):
            yield "expected a cgroup and its counter, got one of them"
        if (self.counter is not None) != ((self.above is None) != (self.below is None)):
            yield "expected above or below for a counter, and for nothing else"
        if self.console is not None:
            try:
                regex.compile_user_regex(self.console)
            except ValueError as error:
                yield f"console: {error}"


class TimelineEntry(Model):
    """One change of the hardware: `do`, a command as on the command line, `at` a time after the start, or `when`.

    `every`: repeat it at this interval, `times` times or until the guest ends. `ramp`: spread it over this time in
    `steps` steps, during which FROM..TO in `do` goes from one value to the other.
    """

    do: PrintableText
    at: Duration | None = None
    when: When | None = None
    every: Annotated[Duration, Field(gt=0)] | None = None
    times: Annotated[int, Field(ge=1)] | None = None
    ramp: Annotated[Duration, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=2, le=1000)] = 10

    @property
    def verb(self) -> str:
        """The first word of `do`."""
        return next(iter(self.do.split()), "")
