"""Sorts kernel files by the versions in their names."""

from __future__ import annotations

from pathlib import Path


def sort_by_version(files: list[Path]) -> list[Path]:
    """Sort files of kernels by version: numbers count as numbers; a release candidate precedes its release."""
    return sorted(files, key=lambda path: version_key(path.name))


def version_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return the sort key of a version."""
    key: list[tuple[int, int, str]] = []
    word, number = "", ""
    for character in f"{name}\0":
        if character.isdigit():
            if word:
                key.append(_word(word))
                word = ""
            number += character
            continue
        if number:
            key.append((2, int(number), ""))
            number = ""
        if character.isalpha() or character == "~":
            word += character
        elif word:
            key.append(_word(word))
            word = ""
    # The end of a name is after a candidate's mark, and before anything more.
    return (*key, (1, 0, ""))


def _word(word: str) -> tuple[int, int, str]:
    early = word.startswith("~") or word in ("rc", "alpha", "beta")
    return (0, 0, word) if early else (3, 0, word)
