"""Evaluates the conditions of Kconfig files (`A && (B || C)`) in a configuration."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

from testbed.errors import BuildError
from testbed.store.kernels.config_fragments import Option

_TOKEN = re.compile(r'\$\((?:[^()]|\([^()]*\))*\)|"[^"]*"|\'[^\']*\'|&&|\|\||!=|<=|>=|[!=()<>]|[A-Za-z0-9_.-]+')
# No kernel nests brackets deeper.
_MOST_BRACKETS = 50
_LEVELS = {"n": 0, "m": 1, "y": 2}


def conjuncts(condition: str) -> tuple[str, ...]:
    """Split `A && (B || C)` into the parts that must all hold; a condition with `||` at its top is one part."""
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


def level_of(term: str, config: Mapping[str, Option]) -> int:
    if term in _LEVELS:
        return _LEVELS[term]
    return _LEVELS.get(config[term].value, 2) if term in config else 0


def holds(condition: str, config: Mapping[str, Option]) -> bool:
    """Evaluate a condition. `$(...)` asks the compiler, and counts as true."""
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
    """:raise BuildError: brackets are nested deeper than in any kernel."""
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
    return 2 if word.startswith("$(") else level_of(word, config)


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
