"""Why an option did not survive, and whether anybody chose it: the kernel's Kconfig files, read as far as these questions need.

What is built is decided by the kernel's own scripts/kconfig.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from testbed.errors import BuildError
from testbed.store.kernels.config_fragments import LostOption, Option

_SOURCE = re.compile(r'source\s+"([^"]+)"')
_TYPES = ("bool", "tristate", "string", "int", "hex")
_TOKEN = re.compile(r'\$\((?:[^()]|\([^()]*\))*\)|"[^"]*"|\'[^\']*\'|&&|\|\||!=|<=|>=|[!=()<>]|[A-Za-z0-9_.-]+')
# A prompt's text; and a comment, which begins outside of such texts.
_TEXT = re.compile(r"""^(?:"(?:[^"\\]|\\.)*"|'[^']*')""")
_COMMENT = re.compile(r"""^((?:[^"'#]|"(?:[^"\\]|\\.)*"|'[^']*')*?)\s#.*$""")
# The source may be a stranger's. Linux 6.12 has 75,000 statements in 1,600 files, which include each other 6 deep, and 29,000 conditions of
# menus and the like around its options.
_MOST_STATEMENTS, _MOST_FILES, _MOST_INCLUDED, _MOST_BRACKETS, _MOST_IN_LINE = 300_000, 10_000, 32, 50, 20_000
# Linux 6.1 and 6.12 include no file more than twice.
_MOST_TIMES = 4
# It has 210,000 lines in files called Kconfig; of each file no more are looked at than are left of these.
_MOST_LINES = 1_000_000
# An option of a kernel has a few definitions.
_MOST_EXPLAINED = 100
_LEVELS = {"n": 0, "m": 1, "y": 2}


@dataclass(slots=True)
class Definition:
    """A place where an option is defined. `conditions`: all must hold; `prompt`: whether it may be chosen, and where that holds;
    `shown`: where the menus around show their prompts.
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
    statements: int = 0
    files: Counter[str] = field(default_factory=Counter)
    lines: int = 0


def read(text_of: Callable[[str], str | None], arch: str = "x86") -> Kconfig:
    """All that is reachable from the top; `text_of` gives the text of a file of the source.

    :raise BuildError: it has no end, or far more than a kernel's.
    """
    found = Kconfig()
    _read_file("Kconfig", text_of, arch, found, [], 0)
    return found


@dataclass(slots=True)
class _Open:
    """What is open around a line: a menu, a condition, a choice."""

    kind: str
    conditions: list[str]
    shown: list[str] = field(default_factory=list)


def _read_file(
    path: str, text_of: Callable[[str], str | None], arch: str, found: Kconfig, around: list[_Open], depth: int
) -> None:
    if depth > _MOST_INCLUDED:
        raise BuildError(
            f"{path}: expected Kconfig files that include each other at most {_MOST_INCLUDED} deep; does one include itself?"
        )
    found.files[path] += 1
    if found.files[path] > _MOST_TIMES or len(found.files) > _MOST_FILES:
        raise BuildError(
            f"{path}: expected at most {_MOST_FILES} Kconfig files, each included at most {_MOST_TIMES} times"
        )
    name: str | None = None
    current: Definition | None = None
    begun = ""  # the last statement that takes `depends on`
    lines = (text_of(path) or "").splitlines()
    found.lines += len(lines)
    if found.lines > _MOST_LINES:
        raise BuildError(
            f"{path}: expected at most {_MOST_LINES} lines in the Kconfig files of a kernel, each as often as it is included"
        )
    for number, line in _statements(lines):
        found.statements += 1
        if found.statements > _MOST_STATEMENTS or len(line) > _MOST_IN_LINE:
            most = (
                f"expected at most {_MOST_STATEMENTS} statements of at most {_MOST_IN_LINE} characters in the Kconfig files of a kernel, "
                "and conditions around its options"
            )
            raise BuildError(f"{path}:{number}: {most}")
        words = line.split(None, 1)
        keyword, rest = words[0], words[1] if len(words) > 1 else ""
        if match := _SOURCE.match(line):
            target = match[1].replace("$(SRCARCH)", arch).replace("$SRCARCH", arch).removeprefix("$(srctree)/")
            _read_file(target, text_of, arch, found, around, depth + 1)
        elif keyword in ("config", "menuconfig"):
            name, begun = rest.strip(), "config"
            current = Definition(
                where=f"{path}:{number}",
                conditions=tuple(condition for one in around for condition in one.conditions),
                shown=tuple(condition for one in around for condition in one.shown),
                choice=any(one.kind == "choice" for one in around),
            )
            found.statements += len(current.conditions) + len(current.shown)
            found.definitions.setdefault(name, []).append(current)
        elif keyword in ("if", "menu", "choice"):
            around.append(_Open(kind=keyword, conditions=[rest] if keyword == "if" else []))
            begun, current = keyword, None
        elif keyword in ("endif", "endmenu", "endchoice"):
            del around[-1:]
            begun, current = "", None
        elif keyword == "comment":
            begun, current = "comment", None
        elif keyword == "depends" and begun == "config" and current is not None:
            current.depends.append(rest.removeprefix("on").strip())
        elif keyword == "depends" and begun in ("menu", "choice") and around:
            around[-1].conditions.append(rest.removeprefix("on").strip())
        elif keyword == "visible" and begun == "menu" and around:
            around[-1].shown.append(_after_if(rest))
        elif current is not None and name is not None:
            _attribute(keyword, rest, name, current, found)


def _attribute(keyword: str, rest: str, name: str, current: Definition, found: Kconfig) -> None:
    if (keyword in _TYPES and rest) or keyword == "prompt":
        conditions = (_after_if(_TEXT.sub("", rest)), *current.shown)
        current.prompt = " && ".join(f"({one})" if "||" in one else one for one in conditions if one)
    elif keyword == "select" and rest:
        target = rest.split()[0]
        found.selectors.setdefault(target, []).append((name, _after_if(rest.removeprefix(target))))


def _after_if(text: str) -> str:
    return text.strip().removeprefix("if").strip()


def _statements(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers: continued ones joined, without comments and help texts."""
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
    """A statement without its comment; one that is longer than any is not looked at."""
    return _COMMENT.sub(r"\1", text) if len(text) <= _MOST_IN_LINE else text


def chosen_losses(
    losses: Iterable[LostOption], kconfig: Kconfig, asked: Mapping[str, Option], config: Mapping[str, Option]
) -> tuple[LostOption, ...]:
    """Those that somebody chose in the configuration `asked`: of options with a prompt that was shown there. The others were computed, from
    the compiler and from what was chosen.

    No loss is what is there for others that need it: built in, having been asked for as a module, or selected in `config`.
    """

    def needed(one: LostOption) -> bool:
        return (one.wanted.value, one.got) == ("m", "y") or (
            one.wanted.value == "n" and bool(_selectors(one.name, kconfig, config))
        )

    def shown(one: LostOption) -> bool:
        return any(at.prompt is not None and _holds(at.prompt, asked) for at in kconfig.definitions.get(one.name, ()))

    return tuple(one for one in losses if shown(one) and not needed(one))


def _selectors(name: str, kconfig: Kconfig, config: Mapping[str, Option]) -> list[str]:
    """What selects an option in a configuration."""
    return [
        option
        for option, condition in kconfig.selectors.get(name, [])
        if _level(option, config) and _holds(condition, config)
    ]


def unknown_options(losses: Iterable[LostOption], kconfig: Kconfig) -> tuple[str, ...]:
    """The names of those that a source does not have."""
    return tuple(one.name for one in losses if one.name not in kconfig.definitions)


def explain(loss: LostOption, kconfig: Kconfig, config: Mapping[str, Option]) -> str:
    """The option that blocks another one, in words."""
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
    """The terms that do not hold, of all that must."""
    said = [*definition.conditions, *definition.depends, *([definition.prompt] if definition.prompt else [])]
    terms = [term for condition in said for term in _conjuncts(condition)]
    return tuple(dict.fromkeys(term for term in terms if not _holds(term, config)))


def _conjuncts(condition: str) -> tuple[str, ...]:
    """The parts of `A && (B || C)` that must all hold; an alternative at the top is one part."""
    parts, depth = [""], 0
    for word in _TOKEN.findall(condition):
        depth += (word == "(") - (word == ")")
        if word == "||" and depth == 0:
            return (" ".join(condition.split()),)
        if word == "&&" and depth == 0:
            parts.append("")
        else:
            parts[-1] += word if word in "()!" else f" {word} "
    return tuple(
        " ".join(part.split()).replace("( ", "(").replace(" )", ")").replace("! ", "!")
        for part in parts
        if part.strip()
    )


def _level(term: str, config: Mapping[str, Option]) -> int:
    if term in _LEVELS:
        return _LEVELS[term]
    return _LEVELS.get(config[term].value, 2) if term in config else 0


def _holds(condition: str, config: Mapping[str, Option]) -> bool:
    """Whether a condition holds. `$(...)` asks the compiler, and is taken as true."""
    words = deque(_TOKEN.findall(condition))
    return not words or _either(words, config, 0) > 0


def _either(words: deque[str], config: Mapping[str, Option], depth: int) -> int:
    level = _both(words, config, depth)
    while words and words[0] == "||":
        words.popleft()
        level = max(level, _both(words, config, depth))
    return level


def _both(words: deque[str], config: Mapping[str, Option], depth: int) -> int:
    level = _single(words, config, depth)
    while words and words[0] == "&&":
        words.popleft()
        level = min(level, _single(words, config, depth))
    return level


def _single(words: deque[str], config: Mapping[str, Option], depth: int) -> int:
    """:raise BuildError: brackets are nested deeper than any kernel's."""
    if depth > _MOST_BRACKETS:
        raise BuildError(f"Kconfig: expected conditions with at most {_MOST_BRACKETS} brackets in each other")
    word = words.popleft() if words else "y"
    if word == "!":
        return 2 - _single(words, config, depth + 1)
    if word == "(":
        level = _either(words, config, depth + 1)
        if words:
            words.popleft()
        return level
    if words and words[0] in ("=", "!=", "<", ">", "<=", ">="):
        how, other = words.popleft(), words.popleft() if words else "n"
        return 2 if _compared(word, how, other, config) else 0
    return 2 if word.startswith("$(") else _level(word, config)


def _compared(left: str, how: str, right: str, config: Mapping[str, Option]) -> bool:
    one, two = (
        config[word].value if word in config else "n" if word.isupper() else word.strip("\"'") for word in (left, right)
    )
    if how in ("=", "!="):
        return (one == two) is (how == "=")
    try:
        first, second = int(one, 0), int(two, 0)
    except ValueError:
        return True
    return {"<": first < second, ">": first > second, "<=": first <= second, ">=": first >= second}[how]
