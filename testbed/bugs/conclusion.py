"""Concludes from the tries of a bug on several kernels whether it shows where it must, and only there. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from testbed.bugs import absence
from testbed.bugs.kernel_tries import KernelTries, KernelVerdict


class ReproResult(enum.Enum):
    """INVALID: the signature shows on a kernel that must be clean, so it does not identify the bug. NOT_APART: it was
    not seen on such a kernel, but in too few tries to tell that kernel apart from one where it shows."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INVALID = "invalid"
    NOT_APART = "not told apart"
    TROUBLE = "trouble"


EXIT_CODES = {
    ReproResult.REPRODUCED: 0,
    ReproResult.NOT_REPRODUCED: 1,
    ReproResult.TROUBLE: 2,
    ReproResult.INVALID: 3,
    ReproResult.NOT_APART: 3,
}


def is_apart(clean: KernelTries, tried: Iterable[KernelTries]) -> bool:
    """Whether a kernel on which the bug was not seen is told apart from each kernel of `tried` on which it must
    show."""
    return all(absence.is_absent(one.rate, clean.rate.tries) for one in tried if one.must_show)


def conclude(tried: Iterable[KernelTries], not_asked: Sequence[str] = ()) -> tuple[ReproResult, str]:
    """Return the result of all kernels, and the reason, which names the kernels that were not tried (`not_asked`)."""
    verdict, why = _result(tuple(tried))
    return verdict, why + (f"; not asked, and nothing is known of: {', '.join(not_asked)}" if not_asked else "")


def _result(found: tuple[KernelTries, ...]) -> tuple[ReproResult, str]:
    shows, clean = [one for one in found if one.must_show], [one for one in found if not one.must_show]
    wrong = [one.kernel.name for one in clean if one.verdict is KernelVerdict.SHOWS]
    if wrong:
        everywhere = all(one.verdict is KernelVerdict.SHOWS for one in found)
        return ReproResult.INVALID, f"the signature shows on {', '.join(wrong)}, which must be clean" + (
            ": it shows everywhere, and is no sign of the bug" if everywhere else ""
        )
    troubled = [one.kernel.name for one in found if one.verdict is KernelVerdict.TROUBLE]
    if troubled:
        return ReproResult.TROUBLE, f"nothing is known of {', '.join(troubled)}: tries came to nothing there"
    if not shows:
        return ReproResult.TROUBLE, "nothing is known: no kernel was tried on which it must show"
    absent = [one for one in shows if one.verdict is KernelVerdict.ABSENT]
    if absent:
        return ReproResult.NOT_REPRODUCED, f"it does not show on {', '.join(map(_not_seen, absent))}"
    near = [one for one in clean if not is_apart(one, found)]
    if near:
        where = ", ".join(f"{one.kernel.name} ({one.rate.hits} of {one.rate.tries})" for one in shows)
        share = min(one.rate.share for one in shows)
        takes = (
            f"a bug that shows in {share:.0%} of the tries takes about {absence.tries_for_share(share)} on each kernel"
        )
        return ReproResult.NOT_APART, f"it shows on {where}; not told apart: {', '.join(map(_not_seen, near))}; {takes}"
    where = ", ".join(one.kernel.name for one in shows)
    return ReproResult.REPRODUCED, f"it shows on {where}" + (
        f" and not on {', '.join(map(_not_seen, clean))}" if clean else ""
    )


def _not_seen(one: KernelTries) -> str:
    """Name a kernel, with the rate up to which the bug may still show there."""
    tries = "1 try" if one.rate.tries == 1 else f"{one.rate.tries} tries"
    return f"{one.kernel.name} (not seen in {tries}, up to {one.interval[1]:.0%})"
