"""Reads a kernel's Kconfig files to explain why an option was lost, and whether anybody chose it.

It reads only what these two questions need; the kernel's own scripts/kconfig decides what is built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from testbed.errors import BuildError
from testbed.store.kernels.config_fragments import LostOption, Option
from testbed.store.kernels.kconfig_conditions import conjuncts, holds, level_of

_SOURCE = re.compile(r'source\s+"([^"]+)"')
_TYPES = ("bool", "tristate", "string", "int", "hex")
# The text of a prompt; and a comment, which begins outside of such texts.
_TEXT = re.compile(r"""^(?:"(?:[^"\\]|\\.)*"|'[^']*')""")
_COMMENT = re.compile(r"""^((?:[^"'#]|"(?:[^"\\]|\\.)*"|'[^']*')*?)\s#.*$""")
# The source may be untrusted. Linux 6.12 has 75,000 statements in 1,600 files, which include each other 6 deep, and
# 29,000 conditions of menus and the like around its options.
_MOST_STATEMENTS, _MOST_FILES, _MOST_INCLUDED, _MOST_IN_LINE = 300_000, 10_000, 32, 20_000
# Linux 6.1 and 6.12 include no file more than twice.
_MOST_TIMES = 4
# Linux 6.12 has 210,000 lines in files called Kconfig. The limit is on the lines of all files together.
_MOST_LINES = 1_000_000
# How many definitions of one option are looked at; an option of a kernel has a few.
_MOST_EXPLAINED = 100


@dataclass(slots=True)
class Definition:
    """A place where an option is defined.

    `conditions`: all must hold; `prompt`: the condition of its prompt, None for an option without one; `shown`: the
    `visible if` conditions of the menus around it.
    """

    where: str
    conditions: tuple[str, ...]
    shown: tuple[str, ...] = ()
    prompt: str | None = None
    choice: bool = False
    depends: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Kconfig:
    """The options of a source: where each is defined, and what selects it under which condition."""

    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    selectors: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def read_kconfig(text_of: Callable[[str], str | None], arch: str = "x86") -> Kconfig:
    """Read all files that are reachable from the top Kconfig; `text_of` returns the text of a file of the source.

    :raise BuildError: the files include each other without end, or are far larger than a kernel's.
    """
    reader = _Reader(text_of, arch)
    reader.read_file("Kconfig")
    return reader.kconfig


@dataclass(slots=True)
class _Block:
    """A menu, an `if` or a choice that the reader is in."""

    kind: str
    conditions: list[str]
    shown: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _File:
    """The reader's position in one file. `takes_depends`: the last statement that a `depends on` may belong to."""

    path: str
    name: str = ""
    option: Definition | None = None
    takes_depends: str = ""


class _Reader:
    """Reads Kconfig files that include each other, within limits."""

    def __init__(self, text_of: Callable[[str], str | None], arch: str) -> None:
        self.kconfig = Kconfig()
        self._text_of = text_of
        self._arch = arch
        self._blocks: list[_Block] = []
        self._statements = 0
        self._files: Counter[str] = Counter()
        self._lines = 0

    def read_file(self, path: str, depth: int = 0) -> None:
        """Read a file and all that it includes.

        :raise BuildError: as `read`.
        """
        if depth > _MOST_INCLUDED:
            raise BuildError(
                f"{path}: expected Kconfig files that include each other at most {_MOST_INCLUDED} deep; "
                "does one include itself?"
            )
        self._files[path] += 1
        if self._files[path] > _MOST_TIMES or len(self._files) > _MOST_FILES:
            raise BuildError(
                f"{path}: expected at most {_MOST_FILES} Kconfig files, each included at most {_MOST_TIMES} times"
            )
        lines = (self._text_of(path) or "").splitlines()
        self._lines += len(lines)
        if self._lines > _MOST_LINES:
            raise BuildError(
                f"{path}: expected at most {_MOST_LINES} lines in the Kconfig files of a kernel, "
                "each counted as often as it is included"
            )
        file = _File(path)
        for number, line in _statements(lines):
            self._count_statement(path, number, line)
            if match := _SOURCE.match(line):
                target = match[1].replace("$(SRCARCH)", self._arch).replace("$SRCARCH", self._arch)
                self.read_file(target.removeprefix("$(srctree)/"), depth + 1)
            else:
                self._statement(file, number, line)

    def _count_statement(self, path: str, number: int, line: str) -> None:
        self._statements += 1
        if self._statements > _MOST_STATEMENTS or len(line) > _MOST_IN_LINE:
            raise BuildError(
                f"{path}:{number}: expected at most {_MOST_STATEMENTS} statements of at most {_MOST_IN_LINE} "
                "characters in the Kconfig files of a kernel, and conditions around its options"
            )

    def _statement(self, file: _File, number: int, line: str) -> None:
        words = line.split(None, 1)
        keyword, rest = words[0], words[1] if len(words) > 1 else ""
        if keyword in ("config", "menuconfig"):
            file.name, file.takes_depends = rest.strip(), "config"
            file.option = self._define(file.name, f"{file.path}:{number}")
        elif keyword in ("if", "menu", "choice"):
            self._blocks.append(_Block(kind=keyword, conditions=[rest] if keyword == "if" else []))
            file.takes_depends, file.option = keyword, None
        elif keyword in ("endif", "endmenu", "endchoice"):
            del self._blocks[-1:]
            file.takes_depends, file.option = "", None
        elif keyword == "comment":
            file.takes_depends, file.option = "comment", None
        elif keyword == "depends" and file.takes_depends == "config" and file.option is not None:
            file.option.depends.append(rest.removeprefix("on").strip())
        elif keyword == "depends" and file.takes_depends in ("menu", "choice") and self._blocks:
            self._blocks[-1].conditions.append(rest.removeprefix("on").strip())
        elif keyword == "visible" and file.takes_depends == "menu" and self._blocks:
            self._blocks[-1].shown.append(_after_if(rest))
        elif file.option is not None:
            self._attribute(keyword, rest, file.name, file.option)

    def _define(self, name: str, where: str) -> Definition:
        definition = Definition(
            where=where,
            conditions=tuple(condition for block in self._blocks for condition in block.conditions),
            shown=tuple(condition for block in self._blocks for condition in block.shown),
            choice=any(block.kind == "choice" for block in self._blocks),
        )
        self._statements += len(definition.conditions) + len(definition.shown)
        self.kconfig.definitions.setdefault(name, []).append(definition)
        return definition

    def _attribute(self, keyword: str, rest: str, name: str, option: Definition) -> None:
        if (keyword in _TYPES and rest) or keyword == "prompt":
            conditions = (_after_if(_TEXT.sub("", rest)), *option.shown)
            option.prompt = " && ".join(f"({one})" if "||" in one else one for one in conditions if one)
        elif keyword == "select" and rest:
            target = rest.split()[0]
            selecting = (name, _after_if(rest.removeprefix(target)))
            self.kconfig.selectors.setdefault(target, []).append(selecting)


def _after_if(text: str) -> str:
    return text.strip().removeprefix("if").strip()


def _statements(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield each statement with its line number: continued lines joined, without comments and help texts."""
    help_indent: int | None = None
    joined: list[str] = []
    begin = 0
    for number, raw in enumerate(lines, start=1):
        if not raw and not joined:
            continue
        line = raw.expandtabs()
        indent = len(line) - len(line.lstrip())
        if help_indent is not None and line.strip():
            if help_indent < 0:
                help_indent = indent
            if indent >= help_indent > 0:
                continue
            help_indent = None
        elif help_indent is not None:
            continue
        begin = begin if joined else number
        stripped = line.strip()
        if stripped.endswith("\\"):
            joined.append(f"{stripped[:-1].rstrip()} ")
            continue
        statement, joined = _uncommented("".join((*joined, stripped))).strip(), []
        if statement in ("help", "---help---"):
            help_indent = -1
        elif statement and not statement.startswith("#"):
            yield begin, statement


def _uncommented(text: str) -> str:
    """Remove the comment of a statement; one that is longer than the limit is returned as it is."""
    return _COMMENT.sub(r"\1", text) if len(text) <= _MOST_IN_LINE else text


def chosen_losses(
    losses: Iterable[LostOption], kconfig: Kconfig, asked: Mapping[str, Option], config: Mapping[str, Option]
) -> tuple[LostOption, ...]:
    """Select the losses that somebody chose in the configuration `asked`: options whose prompt was visible there.

    The other options were computed, from the compiler and from the chosen ones. An option that others need is no loss:
    built in where a module was asked for, or selected by another option in `config`.
    """

    def needed(one: LostOption) -> bool:
        return (one.wanted.value, one.got) == ("m", "y") or (
            one.wanted.value == "n" and bool(_selectors(one.name, kconfig, config))
        )

    def shown(one: LostOption) -> bool:
        return any(at.prompt is not None and holds(at.prompt, asked) for at in kconfig.definitions.get(one.name, ()))

    return tuple(one for one in losses if shown(one) and not needed(one))


def _selectors(name: str, kconfig: Kconfig, config: Mapping[str, Option]) -> list[str]:
    """List what selects an option in a configuration."""
    return [
        option
        for option, condition in kconfig.selectors.get(name, [])
        if level_of(option, config) and holds(condition, config)
    ]


def unknown_options(losses: Iterable[LostOption], kconfig: Kconfig) -> tuple[str, ...]:
    """List the names of the options that a source does not have."""
    return tuple(one.name for one in losses if one.name not in kconfig.definitions)


def explain(loss: LostOption, kconfig: Kconfig, config: Mapping[str, Option]) -> str:
    """Describe what blocks an option."""
    name, wanted = loss.name, loss.wanted.value
    definitions = kconfig.definitions.get(name, [])[:_MOST_EXPLAINED]
    if not definitions:
        return "this source has no such option"
    if wanted == "n" and (by := _selectors(name, kconfig, config)):
        return f"it is selected by {', '.join(by[:3])}"
    closest = min(definitions, key=lambda one: len(_unmet(one, config)))
    unmet = _unmet(closest, config)
    if wanted == "n" and all(one.prompt is None for one in definitions):
        return f"it has no prompt, so that it cannot be turned off ({closest.where})"
    if wanted == "n" and closest.choice:
        return f"it is one of a choice, and no other one is chosen ({closest.where})"
    if unmet:
        return f"it depends on {', '.join(_with_value(term, config) for term in unmet)} ({closest.where})"
    if all(one.prompt is None for one in definitions):
        by = [option for option, _ in kconfig.selectors.get(name, [])]
        return f"it has no prompt ({closest.where}); it is selected by {', '.join(by[:5]) or 'nothing'}"
    if closest.choice:
        return f"it is one of a choice, and another one is chosen ({closest.where})"
    return f"its range or its type does not allow it ({closest.where})"


def _with_value(term: str, config: Mapping[str, Option]) -> str:
    return f"{term}, which is {config[term].value if term in config else 'n'}" if re.fullmatch(r"\w+", term) else term


def _unmet(definition: Definition, config: Mapping[str, Option]) -> tuple[str, ...]:
    """List the terms that do not hold, of all that must."""
    conditions = [*definition.conditions, *definition.depends, *([definition.prompt] if definition.prompt else [])]
    terms = [term for condition in conditions for term in conjuncts(condition)]
    return tuple(dict.fromkeys(term for term in terms if not holds(term, config)))
