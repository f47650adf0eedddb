"""Builds the guest image: from a recipe in `images/` to a read-only ext4 file, by mmdebstrap, with or without root."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from testbed.errors import HostError, UsageError
from testbed.hashing import content_key, file_sha256
from testbed.host import paths, process
from testbed.progress import Progress, Task
from testbed.store import cache, checksums, unshare
from testbed.store.ext4 import OPTIONS
from testbed.store.mirror import find_mirror
from testbed.units import MIB, parse_size

_LAYOUT = 1
_GUEST_FILES = ("testbed-init", "testbed-agent")
# What mmdebstrap prints in its lines "I: ...", what that step does, and which part of the time, of 45 s on two cores,
# has then passed.
_STAGES = (
    ("running apt-get update", "package index", 0.02),
    ("downloading packages", "downloading packages", 0.10),
    ("extracting archives", "unpacking the essential packages", 0.25),
    ("installing essential", "installing the essential packages", 0.45),
    ("installing remaining", "installing the other packages", 0.60),
    ("usermod", "adding the testbed's init", 0.85),
    ("mke2fs", "making the file system", 0.88),
    ("cleaning package lists", "cleaning up", 0.97),
)


class Recipe(BaseModel):
    """An image recipe. `size`: of the filesystem; a guest can fill the free space in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    suite: str = Field(pattern=r"^[a-z-]+$")
    size: Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in the cache; `sha256` is the one of its root filesystem."""

    name: str
    sha256: str
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.ext4"

    @property
    def busybox(self) -> Path:
        return self.folder / "busybox"


def _recipe(name: str, images: Path) -> Recipe:
    there = paths.image_names(images)
    if name not in there:
        raise UsageError(f"image {name!r}: expected one of {', '.join(there)}")
    path = images / f"{name}.yaml"
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise HostError(f"{path}: cannot be read as an image recipe: {error}") from error


def image_folder(name: str, images: Path, root: Path) -> Path:
    """Return where the image is or will be: the key covers its recipe and the files that go into it.

    :raise UsageError: no such recipe.
    """
    recipe = _recipe(name, images)
    files = {file: file_sha256(images / "guest" / file) for file in _GUEST_FILES}
    return root / "images" / f"{name}-{content_key(_LAYOUT, recipe.model_dump(), files, OPTIONS)}"


async def build_image(name: str, images: Path, root: Path, progress: Progress) -> Image:
    """Return the image, and build it first if the cache does not have it.

    :raise UsageError: no such recipe.
    :raise HostError: the mirror, the disk or a tool fails; the image is not the one that was built.
    """
    folder = image_folder(name, images, root)

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task(f"guest image {name}") as task:
            return await _make(_recipe(name, images), images / "guest", unfinished, task)

    await cache.make_once(folder, make, progress, f"image {name}")
    meta = cache.read_meta(folder)
    await asyncio.to_thread(checksums.verify, folder, ("root.ext4", "busybox"), meta.get("hashes"))
    return Image(name=name, sha256=meta["sha256"], folder=folder)


async def _make(recipe: Recipe, guest_files: Path, folder: Path, task: Task) -> dict[str, Any]:
    mirror = await find_mirror()
    if reason := await unshare.why_unavailable():
        raise HostError(
            f"mmdebstrap cannot have namespaces of its own: {reason}; `testbed doctor` says what that needs"
        )
    suites = (recipe.suite, f"{recipe.suite}-security")
    work = folder / "work"
    work.mkdir()
    work.chmod(0o755)  # apt's own user must read the tree
    for file in _GUEST_FILES:
        shutil.copy(guest_files / file, work / file)
    (work / "sources.list").write_text(mirror.sources(suites), encoding="utf-8")

    def on_line(line: str) -> None:
        if line.startswith("I: "):
            for printed, meaning, fraction in _STAGES:
                if printed in line:
                    task.update(fraction=fraction, detail=meaning)

    words = [*unshare.command_prefix(work), str(process.find("mmdebstrap")), *_options(recipe)]
    words += [recipe.suite, "/dev/null", str(unshare.HERE / "sources.list")]
    await process.run(
        words, timeout_s=3600, env={"TMPDIR": str(unshare.HERE)}, on_line=process.LineHandlers(stderr=on_line)
    )
    for file in ("root.ext4", "busybox"):
        (work / file).rename(folder / file)
    unshare.remove(work)
    task.update(fraction=1.0)
    hashes = {file: file_sha256(folder / file) for file in ("root.ext4", "busybox")}
    return {"sha256": hashes["root.ext4"], "hashes": hashes, "suite": recipe.suite}


def _options(recipe: Recipe) -> Iterator[str]:
    """List mmdebstrap's options. Its hooks run where the files of the new tree ($1) have their real owners."""
    here = unshare.HERE
    yield from ("--mode=root", "--variant=minbase", "--architectures=amd64", f"--include={','.join(recipe.packages)}")
    yield from (
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
    )
    for hook in (
        f'install -m 755 {here}/testbed-init {here}/testbed-agent "$1/usr/sbin/"',
        # The shell that runs every command over SSH; under emulation bash takes half again as long to start.
        'chroot "$1" usermod --shell /bin/sh root',
        # Keys come with each guest's identity and stay in memory; the modules disk is mounted on /lib/modules.
        'rm -rf "$1/root/.ssh" && ln -s /run/ssh "$1/root/.ssh" && mkdir -p "$1/lib/modules"',
        'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/etc/resolv.conf && echo testbed >"$1/etc/hostname"',
        f'cp "$1/bin/busybox" {here}/busybox',
        # A bind mount shows the tree without the file systems that are mounted in it: /proc and /sys.
        f'mount --bind "$1" "$1/mnt" && '
        f'mke2fs {" ".join(OPTIONS)} -d "$1/mnt" {here}/root.ext4 {recipe.size // MIB}M >&2',
        'umount "$1/mnt"',
    ):
        yield f"--customize-hook={hook}"
