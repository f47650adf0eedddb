"""Finds the kernels in a folder that `make bindeb-pkg`, `make install` or a Debian archive has filled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError
from testbed.hashing import file_sha256
from testbed.store.kernels import kernel_image
from testbed.store.kernels.versions import sort_by_version

# Packages that contain a kernel; linux-image-amd64 and the like only depend on one. Since 7.x Debian's kernel is in
# linux-binary-RELEASE.
_IMAGE = re.compile(r"linux-(?:image-unsigned|image|binary)-(?P<release>\d.*?)(?P<debug>-dbg|-dbgsym)?")
_PACKAGE_OF_LINUX = "linux-"
# Files beside a kernel that share its name: the previous build, checksums, signatures.
_COMPANION = re.compile(r".*(\.(old|bak|orig|hmac|sig|asc|md5|sha\d+|map|config|txt|log)|~)")
_IMAGE_NAMES = ("bzImage", "vmlinuz")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKernels:
    """`kernels`: as a command line names them, with their modules, sorted by version, damaged ones included.

    `others`: files that are not kernels, each with the reason.
    """

    kernels: tuple[str, ...]
    others: tuple[str, ...]


def scan_folder(folder: Path) -> FoundKernels:
    """Find the kernels of a folder.

    :raise UsageError: it cannot be read.
    """
    try:
        files = sort_by_version([path for path in folder.iterdir() if path.is_file()])
        hashes: dict[str, Path] = {}
        kernels: list[str] = []
        used: set[Path] = set()
        others: list[tuple[Path, str]] = []
        for path in files:
            why = _not_a_kernel(path) or _same_as(path, hashes)
            if why:
                others.append((path, why))
                continue
            modules = _modules(path)
            used |= set(modules)
            kernels.append(":".join(map(str, (path, *modules))))
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return FoundKernels(
        kernels=tuple(kernels), others=tuple(f"{path.name} ({why})" for path, why in others if path not in used)
    )


def _not_a_kernel(path: Path) -> str:
    """Return why a file is not a kernel, judged by its name; an empty string if it may be one."""
    if path.suffix == ".deb":
        package = _package(path)
        image = _IMAGE.fullmatch(package)
        if image is None and package.startswith(_PACKAGE_OF_LINUX):
            return "a package without a kernel"
        return "debugging symbols" if image is not None and image["debug"] else ""
    if not any(word in path.name for word in _IMAGE_NAMES):
        return "not called .deb, bzImage or vmlinuz"
    if path.name.startswith(".") or _COMPANION.fullmatch(path.name):
        return "beside a kernel"
    return "" if any(character.isdigit() for character in path.name) else "no version in its name"


def _same_as(path: Path, hashes: dict[str, Path]) -> str:
    try:
        other = hashes.setdefault(file_sha256(path), path)
    except OSError:
        return ""  # it is unreadable, which is reported when it is tried
    return "" if other == path else f"the same as {other.name}"


def _package(path: Path) -> str:
    """Return NAME of NAME_VERSION_ARCHITECTURE.deb."""
    return path.name.removesuffix(".deb").partition("_")[0]


def _modules(path: Path) -> tuple[Path, ...]:
    """Return what belongs to a kernel beside it: packages with modules and configuration, or a `modules_install`
    tree.
    """
    if path.suffix == ".deb":
        image = _IMAGE.fullmatch(_package(path))
        if image is None:
            return ()
        rest = path.name.removeprefix(_package(path))
        beside = [
            path.with_name(f"linux-{kind}-{image['release']}{rest}") for kind in ("modules", "modules-extra", "base")
        ]
        return tuple(package for package in beside if package.is_file())
    try:
        modules = path.parent / "lib" / "modules" / kernel_image.kernel_release(path)
    except UsageError:
        return ()  # it is damaged, which is reported when it is tried
    return (modules,) if modules.is_dir() else ()
