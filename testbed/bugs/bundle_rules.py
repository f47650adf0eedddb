"""Rules for bundles: what one may contain, its manifest, and how its origin differs from this machine. Pure: bundles
are not trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.bugs.model import Case
from testbed.topology.base import TupleOf, Version

MANIFEST, BUG, RESULTS = "manifest.json", "bug.yaml", "repro.json"
KERNELS, KERNEL_META = "kernels", "meta.json"
# The log files of each guest that are packed, if they exist; dumps are not, since they hold all of the guest's memory.
LOGS = (
    "argv.txt",
    "console.log",
    "counters.txt",
    "dmesg.txt",
    "output.txt",
    "qmp.jsonl",
    "samples.jsonl",
    "ssh.log",
    "stages.jsonl",
    "timeline.jsonl",
    "try.json",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,4}")
Text = Annotated[str, Field(max_length=500)]
KernelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
# The files of a kernel that are read on the receiving machine.
_OF_KERNEL = re.compile(rf"{KERNELS}/[^/]+/(bzImage|modules\.ext4|{KERNEL_META}|early/[A-Za-z0-9_-]{{1,64}}\.ko)")
MOST_MEMBERS = 20_000
MOST_BYTES = 4 << 30
MOST_TEXT_BYTES = 8 << 20  # of each file that is read before anything runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry of an archive. `is_file`: a regular file, not a link, a device or a folder."""

    name: str
    size_bytes: int
    is_file: bool


def find_refusals(members: Iterable[Member]) -> Iterator[str]:
    """Find the reasons why an archive must not be unpacked."""
    names: set[str] = set()
    total = 0
    for number, member in enumerate(members, 1):
        shown = member.name[:100]
        if number > MOST_MEMBERS:
            yield f"expected at most {MOST_MEMBERS} entries"
            return
        if not member.is_file:
            yield f"{shown!r}: expected plain files, got a link, a folder or a device"
        if _NAME.fullmatch(member.name) is None or ".." in member.name:
            yield f"{shown!r}: expected a relative name of plain letters that stays inside the bundle"
        if member.name.startswith(f"{KERNELS}/") and _OF_KERNEL.fullmatch(member.name) is None:
            yield f"{shown!r}: expected of a kernel its bzImage, modules.ext4, {KERNEL_META} and early/NAME.ko"
        if member.name in names:
            yield f"{shown!r}: it is there twice"
        names.add(member.name)
        is_text = member.name in (MANIFEST, BUG, RESULTS) or member.name.endswith(f"/{KERNEL_META}")
        if is_text and member.size_bytes > MOST_TEXT_BYTES:
            yield f"{shown!r}: expected at most {MOST_TEXT_BYTES} bytes, got {member.size_bytes}"
        total += member.size_bytes
    if total > MOST_BYTES:
        yield f"expected at most {MOST_BYTES} bytes in all, got {total}"
    for needed in (MANIFEST, BUG):
        if needed not in names:
            yield f"expected {needed} in it, found none"


def find_host_hooks(case: Case) -> Iterator[str]:
    """Find what in a bug names files of the machine that runs it. Not its `qemu-args`: `topology.trust` decides about
    them."""
    if case.guest.kernel is not None:
        yield "the guest's kernel: it names a file of this machine"
    for name, disk in case.guest.disks.items():
        if disk.image is not None:
            yield f"disks.{name}.image: it names a file of this machine"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class MadeWith(_Model):
    qemu: Text
    qemu_identity: Text
    accelerator: Text


class MadeOn(_Model):
    sha256: Text


class MadeFor(_Model):
    name: Text
    release: Text
    sha256: Text


class Made(_Model):
    """What a run was made with: QEMU, guest image, kernels."""

    host: MadeWith
    image: MadeOn
    kernels: TupleOf[MadeFor]


class Manifest(Made):
    """The manifest of a bundle. `seed`: of the run; `with_kernels`: names of the kernels in the bundle; `files`:
    SHA-256 by name."""

    version: Version
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    with_kernels: TupleOf[KernelName]
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


def manifest_of(plain: Any) -> Manifest:
    """Check and return the manifest of a bundle.

    :raise ValueError: it is malformed; names each wrong place.
    """
    try:
        return Manifest.model_validate(plain)
    except ValidationError as error:
        said = [f"{'.'.join(map(str, one['loc']))}: {one['msg'][:200]}" for one in error.errors()[:5]]
        raise ValueError(f"{MANIFEST}: {'; '.join(said)}") from None


def manifest(results: Mapping[str, Any], hashes: Mapping[str, str], with_kernels: Iterable[str]) -> dict[str, Any]:
    """Make the manifest of a new bundle: what its run was made with, and the hash of each of its files."""
    return {
        "version": 1,
        "run": results["run"],
        "host": results["host"],
        "image": results["image"],
        "seed": results["seed"],
        "kernels": [
            {key: one[key] for key in ("name", "release", "origin", "sha256", "must_show")}
            for one in results["kernels"]
        ],
        "with_kernels": sorted(with_kernels),
        "files": dict(sorted(hashes.items())),
    }


def manifest_differences(there: Made, here: Made) -> Iterator[str]:
    """Find what differs on this machine."""
    for what, theirs, ours in (
        ("QEMU", there.host.qemu, here.host.qemu),
        ("QEMU's binary", there.host.qemu_identity, here.host.qemu_identity),
        ("accelerator", there.host.accelerator, here.host.accelerator),
        ("guest image", there.image.sha256, here.image.sha256),
    ):
        if theirs != ours:
            yield f"{what}: {theirs[:40]} there, {ours[:40]} here"
    ours_by_name = {one.name: one for one in here.kernels}
    for kernel in there.kernels:
        own = ours_by_name.get(kernel.name)
        if own is not None and own.sha256 != kernel.sha256:
            same = " with other files" if own.release == kernel.release else ""
            yield f"kernel {kernel.name}: {kernel.release} there, {own.release} here{same}"
