"""Makes a kernel's files ready for guests: from a table row by apt, from .deb files, or from a bzImage and its
modules.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.errors import HostError, UsageError
from testbed.hashing import content_key, file_sha256
from testbed.host import process
from testbed.progress import Progress, Task
from testbed.store import cache, checksums
from testbed.store.apt import Package, PrivateApt
from testbed.store.ext4 import make_ext4
from testbed.store.initramfs import module_order
from testbed.store.kernels import boot_check, build_names, debs, kernel_image, module_tree
from testbed.store.kernels.build_names import NamedBuild
from testbed.store.kernels.table import BuiltKernel, DebianKernel, Kernel, LocalKernel, Series
from testbed.store.mirror import find_mirror
from testbed.units import format_size

# The modules that reach the root disk, in the initramfs; all others are on the modules disk.
EARLY_MODULES = ("virtio_pci", "virtio_blk", "ext4")
# Change _LAYOUT when the content of a kernel's folder changes, and _ASKED when the checks of a user's own kernel do.
_LAYOUT, _ASKED = 3, 2
# How many of the entries that are left out of a package or a modules folder are named.
_MOST_NAMED = 5
# Dependencies of a kernel's metapackage that hold files of the kernel; since 7.x its configuration is in
# `linux-base-RELEASE`.
_PACKAGES = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFiles:
    """A kernel in the cache. `sha256` covers the kernel and its modules; `origin` says where it came from."""

    name: str
    series: Series
    release: str
    origin: str
    sha256: str
    folder: Path
    early_modules: tuple[str, ...]
    has_modules: bool

    @property
    def bzimage(self) -> Path:
        return self.folder / "bzImage"

    @property
    def config(self) -> Path | None:
        """Its configuration, if it came with one."""
        path = self.folder / "config"
        return path if path.exists() else None

    @property
    def modules_disk(self) -> Path | None:
        return self.folder / "modules.ext4" if self.has_modules else None


def kernel_folder(kernel: Kernel, root: Path) -> Path:
    """Return where the files of `kernel` are or will be.

    The key covers the table's row, what the kernel was built from, or the content of local files.
    """
    if isinstance(kernel, BuiltKernel):
        return _named(kernel, root).folder
    if isinstance(kernel, DebianKernel):
        key = content_key(_LAYOUT, EARLY_MODULES, kernel.suites, kernel.package, _PACKAGES)
        return root / "kernels" / f"{kernel.name}-{key}"
    if kernel.bzimage and kernel.modules:
        module_tree.check_location(kernel.modules, kernel.bzimage, kernel_image.kernel_release(kernel.bzimage))
    configs = boot_check.config_files(kernel.bzimage, kernel.modules) if kernel.bzimage else ()
    hashes = [_sha256(path) for path in (*kernel.debs, *([kernel.bzimage] if kernel.bzimage else []), *configs)]
    modules = _listing(kernel.modules) if kernel.modules else []
    return root / "kernels" / f"local-{content_key(_LAYOUT, _ASKED, EARLY_MODULES, hashes, modules)}"


def _sha256(path: Path) -> str:
    """:raise UsageError: it cannot be read, or is no kernel's by its size."""
    try:
        if (size_bytes := path.stat().st_size) > debs.MOST_BYTES:
            raise UsageError(f"{path}: expected a file of a kernel, got one of {format_size(size_bytes)}")
        return file_sha256(path)
    except OSError as error:
        raise kernel_image.unreadable_error(path, error) from error


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    tree = module_tree.survey_modules(folder)
    return sorted(
        (str(path.relative_to(tree.root)), path.stat().st_size, path.stat().st_mtime_ns) for path in tree.files
    )


async def fetch(kernel: Kernel, root: Path, progress: Progress, *, renew: bool = False) -> KernelFiles:
    """Return the kernel's files, made first if the cache does not have them; `renew` asks the mirror for a new version.

    :raise HostError: the mirror, the disk or a tool fails.
    :raise UsageError: a local file is not as expected, or no kernel was built under that name.
    """
    folder = kernel_folder(kernel, root)
    if isinstance(kernel, BuiltKernel):
        cache.mark_used(folder)
        return await _verify(read_built(kernel, root))
    if renew:
        shutil.rmtree(folder, ignore_errors=True)

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task(f"kernel {kernel.name}") as task:
            return await _make(kernel, unfinished, task)

    await cache.make_once(folder, make, progress, f"kernel {kernel.name}")
    for note in cache.read_meta(folder).get("notes", ()):
        progress.note(str(note))
    return await _verify(read_folder(kernel, folder))


async def _verify(files: KernelFiles) -> KernelFiles:
    """:raise HostError: a file that guests start from has changed since it was made."""
    early = tuple(f"early/{name}" for name in files.early_modules)
    disk = (files.modules_disk.name,) if files.modules_disk is not None else ()
    await asyncio.to_thread(
        checksums.verify, files.folder, ("bzImage", *early, *disk), cache.read_meta(files.folder).get("hashes")
    )
    return files


def cached_kernel(kernel: Kernel, root: Path) -> KernelFiles | None:
    """Return the kernel's files if the cache has them, else None."""
    if isinstance(kernel, BuiltKernel):
        return read_built(kernel, root)
    folder = kernel_folder(kernel, root)
    return read_folder(kernel, folder) if (folder / cache.META).is_file() else None


def read_folder(kernel: Kernel, folder: Path) -> KernelFiles:
    """Read the kernel in a complete folder.

    :raise HostError: it is damaged.
    """
    meta = cache.read_meta(folder)
    try:
        return KernelFiles(
            name=kernel.spec if isinstance(kernel, BuiltKernel) else kernel.name,
            series=kernel.series,
            release=str(meta["release"]),
            origin=str(meta["origin"]),
            sha256=str(meta["sha256"]),
            folder=folder,
            early_modules=tuple(map(str, meta["early_modules"])),
            has_modules=bool(meta["has_modules"]),
        )
    except (KeyError, TypeError) as error:
        what = f"expected the record of a kernel's folder, got {error!r}"
        raise HostError(f"{folder / cache.META}: {what}; remove {folder}, and the next run makes it again") from error


def read_built(kernel: BuiltKernel, root: Path) -> KernelFiles:
    """Read the kernel that was built under a name.

    :raise UsageError: none was. :raise HostError: it is damaged.
    """
    named = _named(kernel, root)
    return replace(read_folder(kernel, named.folder), series=named.series, origin=named.origin)


def _named(kernel: BuiltKernel, root: Path) -> NamedBuild:
    named = build_names.find_name(root, kernel)
    if named is None or not named.folder.is_dir():
        known = ", ".join(built.spec for built in build_names.list_names(root)) or "none yet"
        raise UsageError(f"kernel {kernel.spec}: expected one that `testbed kernel build` made; there are: {known}")
    return named


async def _make(kernel: DebianKernel | LocalKernel, folder: Path, task: Task) -> dict[str, Any]:
    work = folder / "work"
    work.mkdir()
    try:
        if isinstance(kernel, DebianKernel):
            origin, packages = await _download(kernel, work, task)
        else:
            origin, packages = (
                ", ".join(str(path) for path in (*kernel.debs, kernel.bzimage, kernel.modules) if path),
                kernel.debs,
            )
        notes: list[str] = []
        for deb in packages:
            task.update(detail=f"unpacking {deb.name}")
            notes += _left_out_note(f"{deb}: left out", await asyncio.to_thread(debs.unpack, deb, work / "tree"))
        bzimage, modules = _find(kernel, work / "tree")
        await asyncio.to_thread(kernel_image.write_plain, bzimage, work / "bzImage")
        task.update(detail="checking whether guests can boot it")
        name = str(bzimage) if isinstance(kernel, LocalKernel) and kernel.bzimage else kernel.name
        check = await asyncio.to_thread(
            boot_check.check_bootable, name, work / "bzImage", boot_check.config_files(bzimage, modules), modules
        )
        if check.config is not None:
            (folder / "config").write_text(check.config, encoding="utf-8")
        if isinstance(kernel, LocalKernel) and kernel.bzimage:
            notes += boot_check.linked_configs(bzimage, modules)
        if modules is not None:
            named = modules if isinstance(kernel, LocalKernel) and kernel.bzimage else kernel.name
            notes += _left_out_note(f"{named}: left out", module_tree.survey_modules(modules).left_out)
        return await copy_into(work / "bzImage", modules, folder, task) | {
            "origin": origin,
            "notes": [*notes, *check.notes],
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _left_out_note(what: str, left_out: Sequence[str]) -> Iterator[str]:
    """Yield a note about entries that are left out, none if there are none."""
    if left_out:
        more = f" and {len(left_out) - _MOST_NAMED} more" if len(left_out) > _MOST_NAMED else ""
        yield f"{what}: {', '.join(left_out[:_MOST_NAMED])}{more}"


async def _download(kernel: DebianKernel, work: Path, task: Task) -> tuple[str, tuple[Path, ...]]:
    apt = PrivateApt(work / "apt", await find_mirror(), kernel.suites)
    await apt.update(task)
    packages = await kernel_packages(apt, kernel.package)
    folder = work / "debs"
    folder.mkdir()
    debs = await apt.download(packages, folder, task)
    return (
        f"{', '.join(f'{package.name} {package.version}' for package in packages)} from {', '.join(kernel.suites)}",
        debs,
    )


async def kernel_packages(apt: PrivateApt, name: str) -> tuple[Package, ...]:
    """Return the packages that a kernel's metapackage depends on and that hold files of the kernel.

    `linux-image-cloud-amd64` depends on `linux-image-RELEASE`; since 7.x that depends on `linux-binary-RELEASE`,
    `linux-modules-RELEASE` and `linux-base-RELEASE`.
    """
    found: dict[str, Package] = {}
    waiting = [name]
    while waiting:
        package = await apt.show(waiting.pop())
        if package.name not in found:
            found[package.name] = package
            waiting += [needed for needed in package.depends if needed.startswith(_PACKAGES)]
    return tuple(package for package in found.values() if package.name != name)


def _find(kernel: DebianKernel | LocalKernel, tree: Path) -> tuple[Path, Path | None]:
    """Find the bzImage, and its folder `lib/modules/RELEASE` if there is one.

    :raise UsageError: there are no or several kernels, or only modules of other kernels.
    """
    if isinstance(kernel, LocalKernel) and kernel.bzimage is not None:
        return kernel.bzimage, kernel.modules
    images = sorted(tree.glob("boot/vmlinuz-*")) or sorted(tree.glob("usr/lib/modules/*/vmlinuz"))
    if len(images) != 1:
        raise UsageError(f"kernel {kernel.name}: expected one boot/vmlinuz-* in its packages, found {len(images)}")
    release = kernel_image.kernel_release(images[0])
    there = [
        path
        for pattern in ("lib/modules/*", "usr/lib/modules/*")
        for path in tree.glob(pattern)
        if any(path.rglob("*.ko*"))
    ]
    folders = {path.name: path for path in there}
    if folders and release not in folders:
        got = ", ".join(sorted(folders))
        raise UsageError(
            f"kernel {kernel.name}: expected modules of Linux {release} in its packages, found those of {got}"
        )
    return images[0], folders.get(release)


async def copy_into(bzimage: Path, modules: Path | None, folder: Path, task: Task) -> dict[str, Any]:
    """Put a kernel and its modules into `folder` in the form that guests use; returns what to record.

    It uses `folder`/work for temporary files.
    """
    release = kernel_image.kernel_release(bzimage)
    shutil.copyfile(bzimage, folder / "bzImage")
    digests = [file_sha256(folder / "bzImage")]
    early: tuple[str, ...] = ()
    if modules is not None:
        tree = folder / "work" / "modules"
        target = tree / "lib/modules" / release
        # Copied, since depmod writes into the folder, which may be the user's.
        await asyncio.to_thread(module_tree.copy_modules, modules, target)
        task.update(detail=f"modules of {release}")
        await process.run(["depmod", "-b", tree, release], timeout_s=120)
        order = module_order((target / "modules.dep").read_text(encoding="utf-8"), EARLY_MODULES)
        early = await asyncio.to_thread(module_tree.unpack_modules, target, order, folder / "early")
        await make_ext4(tree / "lib/modules", folder / "modules.ext4")
        # The modules, and not the disk, since the disk has times in it.
        digests += await asyncio.to_thread(
            lambda: [f"{name} {file_sha256(target / name)}" for name, _, _ in _listing(target)]
        )
    made = ("bzImage", *(f"early/{name}" for name in early), *(["modules.ext4"] if modules is not None else []))
    hashes = await asyncio.to_thread(lambda: {name: file_sha256(folder / name) for name in made})
    return {
        "release": release,
        "sha256": content_key(digests),
        "hashes": hashes,
        "early_modules": early,
        "has_modules": modules is not None,
    }
