"""Why an option did not survive: the kernel's Kconfig files, read as far as that question needs.

Only messages depend on it; what is built is decided by the kernel's own scripts/kconfig.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from testbed.kbuild.fragments import Loss, Option

_SOURCE = re.compile(r'source\s+"([^"]+)"')
_TYPES = ("bool", "tristate", "string", "int", "hex")
_TOKEN = re.compile(r'\$\((?:[^()]|\([^()]*\))*\)|"[^"]*"|\'[^\']*\'|&&|\|\||!=|<=|>=|[!=()<>]|[A-Za-z0-9_.-]+')
_LEVELS = {"n": 0, "m": 1, "y": 2}


@dataclass(slots=True)
class Definition:
    """A place where an option is defined. `conditions`: all must hold; `prompt`: whether it may be chosen, and where that holds."""

    where: str
    conditions: tuple[str, ...]
    prompt: str | None = None
    choice: bool = False
    depends: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Kconfig:
    """The options of a source: where each is defined, and what selects it under which condition."""

    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    selectors: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def read(text_of: Callable[[str], str | None], arch: str = "x86") -> Kconfig:
    """All that is reachable from the top; `text_of` gives the text of a file of the source."""
    found = Kconfig()
    _read_file("Kconfig", text_of, arch, found, [])
    return found


# What is open around a line: a menu, a condition, a choice.
_Open = list[tuple[str, list[str]]]


def _read_file(path: str, text_of: Callable[[str], str | None], arch: str, found: Kconfig, around: _Open) -> None:
    name: str | None = None
    current: Definition | None = None
    begun = ""  # the last statement that takes `depends on`
    for number, line in _statements(text_of(path) or ""):
        words = line.split(None, 1)
        keyword, rest = words[0], words[1] if len(words) > 1 else ""
        if match := _SOURCE.match(line):
            target = match[1].replace("$(SRCARCH)", arch).replace("$SRCARCH", arch).removeprefix("$(srctree)/")
            _read_file(target, text_of, arch, found, around)
        elif keyword in ("config", "menuconfig"):
            conditions = tuple(condition for _, said in around for condition in said)
            name, begun = rest.strip(), "config"
            current = Definition(where=f"{path}:{number}", conditions=conditions, choice=any(kind == "choice" for kind, _ in around))
            found.definitions.setdefault(name, []).append(current)
        elif keyword in ("if", "menu", "choice"):
            around.append((keyword, [rest] if keyword == "if" else []))
            begun, current = keyword, None
        elif keyword in ("endif", "endmenu", "endchoice"):
            around.pop()
            begun, current = "", None
        elif keyword == "comment":
            begun, current = "comment", None
        elif keyword == "depends" and begun == "config" and current is not None:
            current.depends.append(rest.removeprefix("on").strip())
        elif keyword == "depends" and begun in ("menu", "choice"):
            around[-1][1].append(rest.removeprefix("on").strip())
        elif current is not None and name is not None:
            _attribute(keyword, rest, name, current, found)


def _attribute(keyword: str, rest: str, name: str, current: Definition, found: Kconfig) -> None:
    if (keyword in _TYPES and rest) or keyword == "prompt":
        current.prompt = _after_if(re.sub(r'^"(?:[^"\\]|\\.)*"', "", rest))
    elif keyword == "select":
        target = rest.split()[0]
        found.selectors.setdefault(target, []).append((name, _after_if(rest.removeprefix(target))))


def _after_if(text: str) -> str:
    return text.strip().removeprefix("if").strip()


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers: continued ones joined, without comments and help texts."""
    help_indent: int | None = None
    waiting, begin = "", 0
    for number, raw in enumerate(text.splitlines(), start=1):
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
        begin = begin if waiting else number
        waiting += line.strip()
        if waiting.endswith("\\"):
            waiting = f"{waiting[:-1].rstrip()} "
            continue
        statement, waiting = re.sub(r"\s#.*$", "", waiting), ""
        if statement in ("help", "---help---"):
            help_indent = -1
        elif statement and not statement.startswith("#"):
            yield begin, statement


def explain(loss: Loss, kconfig: Kconfig, config: Mapping[str, Option]) -> str:
    """The option that blocks another one, in words."""
    name, wanted = loss.name, loss.wanted.value
    definitions = kconfig.definitions.get(name)
    if not definitions:
        return "this source has no such option"
    if wanted == "n":
        by = [option for option, condition in kconfig.selectors.get(name, []) if _level(option, config) and _holds(condition, config)]
        return f"it is selected by {', '.join(by[:3])}" if by else "it has no prompt, so that it cannot be turned off"
    closest = min(definitions, key=lambda one: len(_unmet(one, config)))
    unmet = _unmet(closest, config)
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
    return tuple(" ".join(part.split()).replace("( ", "(").replace(" )", ")").replace("! ", "!") for part in parts if part.strip())


def _level(term: str, config: Mapping[str, Option]) -> int:
    if term in _LEVELS:
        return _LEVELS[term]
    return _LEVELS.get(config[term].value, 2) if term in config else 0


def _holds(condition: str, config: Mapping[str, Option]) -> bool:
    """Whether a condition holds. `$(...)` asks the compiler, and is taken as true."""
    words = _TOKEN.findall(condition)
    return not words or _either(words, config) > 0


def _either(words: list[str], config: Mapping[str, Option]) -> int:
    level = _both(words, config)
    while words and words[0] == "||":
        words.pop(0)
        level = max(level, _both(words, config))
    return level


def _both(words: list[str], config: Mapping[str, Option]) -> int:
    level = _single(words, config)
    while words and words[0] == "&&":
        words.pop(0)
        level = min(level, _single(words, config))
    return level


def _single(words: list[str], config: Mapping[str, Option]) -> int:
    word = words.pop(0) if words else "y"
    if word == "!":
        return 2 - _single(words, config)
    if word == "(":
        level = _either(words, config)
        if words:
            words.pop(0)
        return level
    if words and words[0] in ("=", "!=", "<", ">", "<=", ">="):
        how, other = words.pop(0), words.pop(0) if words else "n"
        return 2 if _compared(word, how, other, config) else 0
    return 2 if word.startswith("$(") else _level(word, config)


def _compared(left: str, how: str, right: str, config: Mapping[str, Option]) -> bool:
    one, two = (config[word].value if word in config else "n" if word.isupper() else word.strip("\"'") for word in (left, right))
    if how in ("=", "!="):
        return (one == two) is (how == "=")
    try:
        first, second = int(one, 0), int(two, 0)
    except ValueError:
        return True
    return {"<": first < second, ">": first > second, "<=": first <= second, ">=": first >= second}[how]
