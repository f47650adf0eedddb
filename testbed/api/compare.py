"""Runs the same steps on two kernels, and compares the results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from testbed.api.vm import Vm

__tracebackhide__ = True  # pytest shows no frames of this module

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Generic[T]):
    """The return values of the steps on each side. `releases`: the kernel (`uname -r`) of each side."""

    base: T
    patched: T
    releases: Mapping[str, str]

    def expect(self, what: str, *, base: Any, patched: Any) -> None:
        """Assert the return values of both sides at once; `base` and `patched` are expected values, or functions
        that check a value.

        result.expect("bytes charged to the reader", base=0, patched=lambda charged: charged >= 32 << 20)

        :raise AssertionError: a side is not as expected; shows both.
        """
        lines, right = [], True
        for side, got, wanted in (("base", self.base, base), ("patched", self.patched, patched)):
            holds = bool(wanted(got)) if callable(wanted) else bool(got == wanted)
            right = right and holds
            expected = getattr(wanted, "__doc__", None) or "as its function says" if callable(wanted) else repr(wanted)
            verdict = "holds" if holds else "does not hold"
            lines.append(f"{side:8}{self.releases[side]}: expected {expected}, got {got!r}: {verdict}")
        if not right:
            raise AssertionError("\n  ".join((what, *lines)))


class SideFailed(AssertionError):
    """The steps failed on one side or on both. `errors`: by side."""

    def __init__(
        self, errors: Mapping[str, Exception], returned: Mapping[str, Any], releases: Mapping[str, str]
    ) -> None:
        lines = []
        for side, release in releases.items():
            error = errors.get(side)
            said = f"returned {returned[side]!r}" if error is None else f"failed: {type(error).__name__}: {error}"
            lines.append(f"{side:8}{release}: {said}")
        super().__init__("\n  ".join(("the steps did not end on both kernels", *lines)))
        self.errors = errors


class Compare(Protocol):
    """The fixture `compare`."""

    def __call__(self, body: Callable[[Vm], Awaitable[T]]) -> Awaitable[Comparison[T]]: ...


async def compare_sides(
    body: Callable[[Vm], Awaitable[T]], vms: Mapping[str, Vm], *, side_by_side: bool
) -> Comparison[T]:
    """Run `body` on each side to its end, even if it fails on the other; a skip on either side skips the test.

    :raise SideFailed: `body` failed on a side.
    """
    errors: dict[str, Exception] = {}
    returned: dict[str, T] = {}

    async def one(side: str) -> None:
        try:
            returned[side] = await body(vms[side])
        except Exception as error:
            errors[side] = error

    if side_by_side:
        # pytest's skip is no Exception but a BaseException: raise it once both sides have ended.
        for ended in await asyncio.gather(*(one(side) for side in vms), return_exceptions=True):
            if ended is not None:
                raise ended
    else:
        for side in vms:
            await one(side)
    releases = {side: vm.release for side, vm in vms.items()}
    if errors:
        raise SideFailed(errors, returned, releases) from next(iter(errors.values()))
    return Comparison(base=returned["base"], patched=returned["patched"], releases=releases)
