"""The content of a bug file as frozen values, and the JSON Schema of bug files, for editors, made from these
classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from testbed import regex
from testbed.bugs.script_files import CANNOT_TRY, Script, script
from testbed.topology.base import Duration, Model, PrintableText, Rate, TupleOf, Version
from testbed.topology.cgroups import CgroupPath
from testbed.topology.model import Document as TopologyDocument
from testbed.topology.model import GuestModel
from testbed.topology.timeline import Counter
from testbed.units import format_duration

_PER_S = 1_000_000


def _regex(value: Any) -> Any:
    if isinstance(value, str):
        regex.compile_user_regex(value)
    return value


Regex = Annotated[str, BeforeValidator(_regex), Field(min_length=1, max_length=2000)]
Text = Annotated[str, Field(min_length=1, max_length=200_000)]
# How a guest can end, or stop answering; `lost` is any of them.
GuestEnd = Literal["lost", "panic", "oops", "power-off", "reboot", "hang", "ssh", "qemu"]


class Condition(Model):
    """One way in which the bug shows: all of its keys match in the same try.

    `console`, `output`: a line of the guest's console, or of the script's output, matches; `output` may span several
    lines with \\n. `expect`: one of these matches, or a counter written as `CGROUP/FILE NAME VALUE`. `status`: the
    script ends with this exit status, or with any but 0. `counter`: a counter of a `cgroup`, a file with one number or
    a file and a key in it, gets `above` or `below` a value. `hang`: the script still runs after this time. `guest`: the
    guest ends in this way.
    """

    console: Regex | None = None
    output: Regex | None = None
    expect: Regex | None = None
    status: Annotated[int, Field(ge=0, le=255)] | Literal["failure"] | None = None
    cgroup: CgroupPath | None = None
    counter: Counter | None = None
    above: Rate | None = None
    below: Rate | None = None
    hang: Annotated[Duration, Field(gt=0)] | None = None
    guest: GuestEnd | None = None

    def mistakes(self) -> Iterator[str]:
        if not self.model_fields_set:
            yield "expected one of console, output, expect, status, counter, hang and guest, got none"
        if (self.counter is None) != (self.cgroup is None):
            yield "expected a cgroup and its counter, got one of them"
        limits = (self.above is not None) + (self.below is not None)
        if limits != (self.counter is not None):
            yield "expected above or below for a counter, and for nothing else"
        yield from self._never_or_always()
        ends = [key for key in ("status", "hang") if getattr(self, key) is not None]
        if self.guest is not None and ends:
            yield f"expected guest or {ends[0]}, got both: a script of a guest that is gone has no end"
        elif len(ends) > 1:
            yield "expected status or hang, got both: a script that hangs has no status"

    def _never_or_always(self) -> Iterator[str]:
        """Find keys that no try can match, or that every try matches."""
        for key in ("console", "output", "expect"):
            if (text := getattr(self, key)) is None:
                continue
            pattern = regex.compile_user_regex(text)
            if pattern.matches_anything:
                yield (
                    f"expected a pattern that not every line matches, got {key} {text!r}, which matches any line,"
                    " an empty one as well"
                )
            if key == "console" and pattern.spans_lines:
                yield f"expected a pattern of one line, got console {text!r}: the console is looked at line by line"
        if self.below == 0:
            yield "expected below with more than 0: no counter is below 0"
        if self.status == CANNOT_TRY:
            yield (
                f"expected another status than {CANNOT_TRY}, by which a script says that it could not try:"
                " such a try counts as nothing"
            )

    def describe(self) -> str:
        """Return the condition in words."""
        counted = f"{self.cgroup}/{self.counter} " + (
            f"above {self.above}" if self.above is not None else f"below {self.below}"
        )
        parts = (
            self.console and f"console {self.console!r}",
            self.output and f"output {self.output!r}",
            self.expect and f"{self.expect!r} on the console, in the output or among the counters",
            self.status is not None and f"status {self.status}",
            self.counter and counted,
            self.hang is not None and f"hangs for {format_duration(self.hang)}",
            self.guest and f"guest: {self.guest}",
        )
        return " and ".join(part for part in parts if part)


class Kernels(Model):
    """The kernels where the bug shows, and where it must not, as on the command line."""

    shows: TupleOf[PrintableText] = ()
    clean: TupleOf[PrintableText] = ()


class Bug(Model):
    """One bug. `summary`, `source`: what it is, and where it was reported. `prepare`: a script that must succeed before
    `script`, which triggers the bug. `interpreter`: a program and its options that runs both; without it, the program
    in the first line of each, such as `#!/bin/sh -e`, or bash. `script-name`: the name of the script in `$0` and in
    messages. `signature`: the bug shows if one of these conditions holds. `rate`: how often the bug shows at least,
    where it does. `cores`: what a guest takes of the host: `shared` counts as one core, `idle` mostly waits, `alone`
    measures time.
    """

    version: Version
    summary: Annotated[str, Field(min_length=1, max_length=500)]
    source: Annotated[str, Field(max_length=2000)] = ""
    kernels: Kernels = Kernels()
    prepare: Text | None = None
    script: Text
    script_name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f]+$")] = "script"
    interpreter: Annotated[str, Field(max_length=500, pattern=r"^[\w./+-]+( [\w./+=:,-]+)*$")] | None = None
    signature: Annotated[TupleOf[Condition], Field(min_length=1, max_length=20)]
    tries: Annotated[int, Field(ge=1, le=10_000)] = 20
    timeout: Annotated[Duration, Field(gt=0)] = 300 * _PER_S
    rate: Annotated[float, Field(gt=0, le=1)] = 0.95
    cores: Literal["shared", "idle", "alone"] = "shared"

    @property
    def timeout_s(self) -> float:
        return self.timeout / _PER_S

    @property
    def main(self) -> Script:
        """The script that triggers the bug."""
        return script(self.script_name, self.script, self.interpreter)

    @property
    def preparation(self) -> Script | None:
        return None if self.prepare is None else script("prepare", self.prepare, self.interpreter)

    def mistakes(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Find mistakes that the types of the keys do not exclude, each with its place."""
        for number, condition in enumerate(self.signature):
            yield from ((("signature", number), said) for said in condition.mistakes())
            if condition.hang is not None and condition.hang >= self.timeout:
                yield (
                    ("signature", number, "hang"),
                    f"expected less than the timeout of {format_duration(self.timeout)},"
                    f" got {format_duration(condition.hang)}",
                )
        both = sorted(set(self.kernels.shows) & set(self.kernels.clean))
        if both:
            yield ("kernels", "clean"), f"expected kernels where it does not show, got {', '.join(both)}, where it does"


class Document(Bug):
    """A bug file as it is written. `topology`: that of its guest, inline or the path of a .yaml file relative to this
    one; `script-file`: a file with the script, in place of `script`."""

    topology: str | dict[str, Any] | None = None
    script_file: str | None = None
    script: Text = ""


class Case(Model):
    """A bug with the guest that it is tried on."""

    bug: Bug
    guest: GuestModel


def json_schema() -> str:
    """Return the JSON Schema that is published as `topologies/bugs/schema.json`; its part for an inline topology is
    that of topology files."""
    schema = Document.model_json_schema(by_alias=True)
    topology = TopologyDocument.model_json_schema(by_alias=True)
    definitions = topology.pop("$defs")
    # Its version is the bug file's.
    topology["required"] = [key for key in topology.get("required", []) if key != "version"]
    schema["$defs"] = definitions | schema["$defs"]
    schema["properties"]["topology"] = {
        "anyOf": [{"type": "string", "pattern": r"\.yaml$"}, topology],
        "description": "of one guest: here, or in a file",
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
