"""Validates a mapping so that one mistake hides no other: corrects misspelt keys, and leaves wrong parts out."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from testbed.topology import messages
from testbed.topology.base import KeyPath

M = TypeVar("M", bound=BaseModel)
# Rounds for misspelt keys below each other, and for parts that become wrong when others are left out.
_MOST_ROUNDS = 16
_ENTRY = 4  # guests.NAME.SECTION.ENTRY is left out as a whole
_TAG = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class Failure:
    """A mistake and its place in the file. `at_key`: the key itself is wrong, rather than its value."""

    where: KeyPath
    message: str
    at_key: bool


class TolerantValidation(Generic[M]):
    """The result of validating a mapping: the model without the wrong parts, and all mistakes.

    `value`: None if nothing is left. `whole`: nothing was left out, at most keys were corrected. `lost`: the names of
    entries that were left out.
    """

    def __init__(self, model: type[M], plain: Any, document: type[BaseModel]) -> None:
        self.value: M | None = None
        self.failures: list[Failure] = []
        self.whole = True
        self.lost: set[str] = set()
        self._plain, self._document = plain, document
        # Each function maps a place after a change of the mapping to the place before it.
        self._changes: list[Callable[[KeyPath], KeyPath]] = []
        # Places that were not validated before. Mistakes elsewhere are known, or follow from what was left out.
        fresh: list[KeyPath] = [()]
        for number in range(_MOST_ROUNDS):
            try:
                self.value = model.model_validate(self._plain)
                return
            except ValidationError as invalid:
                errors = [(error, messages.error_place(error, self._plain)) for error in invalid.errors()]
            if number == 0:
                self._plain = copy.deepcopy(plain)
            nearest = self._nearest(errors)
            for error, where in errors:
                if any(where[: len(one)] == one for one in fresh) and not (
                    error["type"] == "missing" and where in nearest.values()
                ):
                    self._failed(error, where)
            fresh = self._corrected(nearest) + self._retagged(errors)
            if not fresh:
                self._leave_out(errors)

    def original(self, where: KeyPath) -> KeyPath:
        """Return the place in the file of a place in `value`."""
        for change in reversed(self._changes):
            where = change(where)
        return where

    def _failed(self, error: ErrorDetails, where: KeyPath) -> None:
        said = messages.format_error(error, where, self._plain, self._document)
        self.failures.append(Failure(self.original(where), said, error["type"] == "extra_forbidden"))

    def _nearest(self, errors: Sequence[tuple[ErrorDetails, KeyPath]]) -> dict[KeyPath, KeyPath]:
        """Map each misspelt key to the place of a similar known key that is missing, or that is a mapping as well."""
        found: dict[KeyPath, KeyPath] = {}
        for error, where in errors:
            if error["type"] == "extra_forbidden":
                there = _at(self._plain, where[:-1])
                near = difflib.get_close_matches(
                    str(where[-1]), messages.known_keys(where[:-1], self._plain, self._document), n=1
                )
                right = (*where[:-1], *near)
                both_hold = (
                    bool(near) and isinstance(there.get(near[0], {}), dict) and isinstance(there[where[-1]], dict)
                )
                if near and right not in found.values() and (near[0] not in there or both_hold):
                    found[where] = right
        return found

    def _corrected(self, nearest: dict[KeyPath, KeyPath]) -> list[KeyPath]:
        """Rename misspelt keys, or move the content of their mappings; return the new places."""
        fresh: list[KeyPath] = []
        for where, right in nearest.items():
            mapping = _at(self._plain, where[:-1])
            value = mapping.pop(where[-1])
            if right[-1] not in mapping:
                mapping[right[-1]] = value
                self._changes.append(_moved(right, where))
                fresh.append(right)
                continue
            for key in value.keys() - mapping[right[-1]].keys():
                mapping[right[-1]][key] = value[key]
                self._changes.append(_moved((*right, key), (*where, key)))
                fresh.append((*right, key))
        return fresh

    def _retagged(self, errors: Sequence[tuple[ErrorDetails, KeyPath]]) -> list[KeyPath]:
        """Correct misspelt values of `type`; return the places of their mappings."""
        found: list[KeyPath] = []
        for error, where in errors:
            if error["type"] == "union_tag_invalid":
                near = difflib.get_close_matches(
                    str(error["ctx"]["tag"]), _TAG.findall(error["ctx"]["expected_tags"]), n=1
                )
                if near:
                    _at(self._plain, where[:-1])["type"] = near[0]
                    found.append(where[:-1])
        return found

    def _leave_out(self, errors: Sequence[tuple[ErrorDetails, KeyPath]]) -> None:
        self.whole = False
        # The last item of a list first, so that the others keep their index.
        entries = {where if error["type"] == "extra_forbidden" else where[:_ENTRY] for error, where in errors}
        for entry in sorted(entries, key=lambda where: [str(part).zfill(9) for part in where], reverse=True):
            if len(entry) == _ENTRY:
                self.lost.add(str(entry[-1]))
            if (moved := remove_at(self._plain, entry)) is not None:
                self._changes.append(moved)


def remove_at(plain: Any, where: KeyPath) -> Callable[[KeyPath], KeyPath] | None:
    """Remove the value at a place. If that shifts the items of a list, return a function that maps new places to
    old.
    """
    if where == ("version",):
        plain["version"] = 1
        return None
    above = _at(plain, where[:-1]) if where else None
    if isinstance(above, dict):
        above.pop(where[-1], None)
    elif isinstance(above, list) and isinstance(where[-1], int) and where[-1] < len(above):
        del above[where[-1]]
        return _counted(where[:-1], where[-1])
    return None


def _at(plain: Any, where: KeyPath) -> Any:
    """Return the value at a place, or None."""
    for part in where:
        if isinstance(plain, dict):
            plain = plain.get(part)
        elif isinstance(plain, list) and isinstance(part, int) and part < len(plain):
            plain = plain[part]
        else:
            return None
    return plain


def _moved(after: KeyPath, before: KeyPath) -> Callable[[KeyPath], KeyPath]:
    return lambda where: (*before, *where[len(after) :]) if where[: len(after)] == after else where


def _counted(above: KeyPath, gone: int) -> Callable[[KeyPath], KeyPath]:
    """Map places after an item of a list was removed: an index from there on was larger by one."""

    def before(where: KeyPath) -> KeyPath:
        number = where[len(above)] if where[: len(above)] == above and len(where) > len(above) else None
        if not isinstance(number, int) or number < gone:
            return where
        return (*above, number + 1, *where[len(above) + 1 :])

    return before
