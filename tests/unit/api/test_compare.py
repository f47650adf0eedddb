"""Comparisons of two kernels in the API."""

import asyncio
from typing import Any, cast

import pytest

from testbed.api.compare import Comparison, SideFailed, compare_sides
from testbed.api.vm import Vm
from testbed.errors import GuestError


class Side:
    def __init__(self, release: str) -> None:
        self.release = release


SIDES = cast("dict[str, Vm]", {"base": Side("5.10"), "patched": Side("6.1")})


async def test_a_comparison_holds_what_both_sides_gave() -> None:
    async def body(vm: Vm) -> str:
        return vm.release

    for together in (True, False):
        result = await compare_sides(body, SIDES, side_by_side=together)
        assert (result.base, result.patched) == ("5.10", "6.1")


def test_what_is_expected_of_both_sides_is_told_of_both() -> None:
    result = Comparison(base=0, patched=5, releases={"base": "5.10", "patched": "6.1"})
    result.expect("bytes", base=0, patched=lambda got: got > 0)
    with pytest.raises(AssertionError) as failed:
        result.expect("bytes", base=0, patched=lambda got: got > 9)
    assert str(failed.value) == (
        "bytes\n  base    5.10: expected 0, got 0: holds\n"
        "  patched 6.1: expected as its function says, got 5: does not hold"
    )


async def test_a_side_that_fails_is_named_and_the_other_runs_to_its_end() -> None:
    async def body(vm: Vm) -> int:
        if vm.release == "5.10":
            raise GuestError("it broke")
        await asyncio.sleep(0.01)
        return 7

    with pytest.raises(SideFailed) as failed:
        await compare_sides(body, SIDES, side_by_side=True)
    assert "base    5.10: failed: GuestError: it broke" in str(failed.value) and "patched 6.1: returned 7" in str(
        failed.value
    )


async def test_a_skip_on_one_side_skips() -> None:
    async def body(vm: Vm) -> Any:
        pytest.skip("not here")

    with pytest.raises(pytest.skip.Exception, match="not here"):
        await compare_sides(body, SIDES, side_by_side=True)
