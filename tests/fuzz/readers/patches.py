"""Input of kernel builds: patch series, diffs, configurations, and a source's Kconfig files."""

from __future__ import annotations

from testbed.store.kernels import config_fragments, kconfig, mailbox, patches
from testbed.store.kernels.config_fragments import Option
from testbed.store.kernels.patches import Patch
from tests.fuzz.readers import place


def mails(data: bytes) -> None:
    """Parse a mailbox into a series."""
    mailbox.is_git_patch(data)
    found = mailbox.parse_messages(data, "series.mbx")
    for one in mailbox.select_series(found, "series.mbx"):
        _looked_at(one)


def diff(data: bytes) -> None:
    """Run everything that parses a patch's text."""
    _looked_at(Patch(name="a.patch", subject="", text=data.decode("utf-8", "surrogateescape"), strip=1))


def quilt(data: bytes) -> None:
    """Parse quilt's list of patches."""
    patches.parse_quilt_series(place.text(data), "series")


def _looked_at(patch: Patch) -> None:
    patches.detect_strip(patch.text)
    for reverse in (False, True):
        patches.list_hunks(patch, reverse=reverse)
        patches.has_no_place(patch, reverse=reverse)
        patches.explain_refusal(
            patch, f"error: patch failed: {patch.text[:60]}:1\n", lambda _: patch.text[:4000], reverse=reverse
        )
    patches.has_wrong_counts(patch)


def git_said(data: bytes) -> None:
    """Parse `git apply --numstat --summary -z` of a patch whose names a stranger chose."""
    patches.touched_files(place.text(data), "a.patch")


def kconfig_files(data: bytes) -> None:
    """Parse a source's Kconfig files, separated by NUL: the first may include the others."""
    top, *more = place.text(data).split("\0")
    files = {"Kconfig": top, **{f"lib/Kconfig.{number}": text for number, text in enumerate(more)}}
    found = kconfig.read_kconfig(files.get)
    asked = {"BRIDGE": Option(value="m", where="x:1"), "DEEP": Option(value="y", where="x:2")}
    losses = config_fragments.lost_options(asked, {})
    kconfig.chosen_losses(losses, found, asked, {})
    kconfig.unknown_options(losses, found)
    for loss in losses:
        kconfig.explain(loss, found, asked)


def configuration(data: bytes) -> None:
    """Parse a .config or a fragment."""
    found = config_fragments.parse(place.text(data), "config")
    config_fragments.parse(config_fragments.format_config(found), "written")
    config_fragments.lost_options(found, {})
