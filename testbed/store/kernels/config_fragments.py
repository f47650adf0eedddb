"""Parses kernel configuration fragments, merges them, and finds options that a finished configuration has lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.errors import BuildError

_SET = re.compile(r"CONFIG_(?P<name>[A-Za-z0-9_]+)=(?P<value>.+)")
_UNSET = re.compile(r"# CONFIG_(?P<name>[A-Za-z0-9_]+) is not set")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One line: `value` as the configuration has it (y, m, n, a number, quoted text); `where`: its file and line."""

    value: str
    where: str


def parse(text: str, name: str) -> dict[str, Option]:
    """Parse the options of a fragment, by their names without `CONFIG_`; the last line of an option counts.

    :raise BuildError: a line is not one of a configuration.
    """
    options: dict[str, Option] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        where = f"{name}:{number}"
        if match := _UNSET.fullmatch(line):
            options[match["name"]] = Option(value="n", where=where)
        elif line and not line.startswith("#"):
            match = _SET.fullmatch(line)
            if match is None:
                raise BuildError(
                    f"{where}: expected CONFIG_NAME=VALUE or `# CONFIG_NAME is not set`, got {line[:100]!r}"
                )
            options[match["name"]] = Option(value=match["value"], where=where)
    return options


def merge(*fragments: Mapping[str, Option]) -> dict[str, Option]:
    """Merge fragments into one; for each option the last fragment counts."""
    return {name: option for fragment in fragments for name, option in fragment.items()}


def format_config(options: Mapping[str, Option]) -> str:
    """Format options as the kernel's configuration tools read them."""
    return "".join(
        f"# CONFIG_{name} is not set\n" if option.value == "n" else f"CONFIG_{name}={option.value}\n"
        for name, option in options.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A configuration to ask for. `first`: the base, `more`: what is merged on top.

    `plain`: options that are not asked for are off, and all of it must survive. Otherwise `first` is a whole
    configuration of the user's, with many options that nobody chose.
    """

    first: Mapping[str, Option]
    more: Mapping[str, Option]
    plain: bool

    @property
    def text(self) -> str:
        return format_config(merge(self.first, self.more))

    @property
    def required(self) -> dict[str, Option]:
        """Options that must survive in any case."""
        return merge(self.first, self.more) if self.plain else dict(self.more)

    @property
    def own(self) -> dict[str, Option]:
        """Options that must survive if somebody chose them and the source has them."""
        return {} if self.plain else {name: option for name, option in self.first.items() if name not in self.more}


@dataclass(frozen=True, slots=True, kw_only=True)
class LostOption:
    """An option that did not survive: what was asked for and where, and what the configuration has."""

    name: str
    wanted: Option
    got: str


def lost_options(wanted: Mapping[str, Option], config: Mapping[str, Option]) -> tuple[LostOption, ...]:
    """List the options whose value in a finished configuration is not the one asked for."""
    lost = []
    for name, option in wanted.items():
        got = config[name].value if name in config else "n"
        if got != option.value:
            lost.append(LostOption(name=name, wanted=option, got=got))
    return tuple(lost)
