"""A kernel's files, ready for a guest: from a table row by apt, from .deb files, or from a bzImage and its modules."""

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

# What reaches the root disk; the rest is on the modules disk.
EARLY_MODULES = ("virtio_pci", "virtio_blk", "ext4")
# Change when what a kernel's folder holds changes, and when what is asked of a user's own kernel does.
_LAYOUT, _ASKED = 3, 2
# Of what is left out of a package, or of a folder of modules.
_MOST_NAMED = 5
# Those behind a kernel's metapackage that hold files of the kernel; its configuration, from 7.x on, is in `linux-base-RELEASE`.
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
        """Its configuration, where it came with one."""
        path = self.folder / "config"
        return path if path.exists() else None

    @property
    def modules_disk(self) -> Path | None:
        return self.folder / "modules.ext4" if self.has_modules else None


def kernel_folder(kernel: Kernel, root: Path) -> Path:
    """Where the files of `kernel` are or will be; keyed by the table's row, by what it was built from, or by local files' content."""
    if isinstance(kernel, BuiltKernel):
        return _named(kernel, root).folder
    if isinstance(kernel, DebianKernel):
        key = content_key(_LAYOUT, EARLY_MODULES, kernel.suites, kernel.package, _PACKAGES)
        return root / "kernels" / f"{kernel.name}-{key}"
    if kernel.bzimage and kernel.modules:
        module_tree.check_place(kernel.modules, kernel.bzimage, kernel_image.kernel_release(kernel.bzimage))
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
        raise kernel_image.why_unreadable(path, error) from error


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    tree = module_tree.survey_modules(folder)
    return sorted(
        (str(path.relative_to(tree.root)), path.stat().st_size, path.stat().st_mtime_ns) for path in tree.files
    )


async def fetch(kernel: Kernel, root: Path, progress: Progress, *, renew: bool = False) -> KernelFiles:
    """The kernel's files, fetched or unpacked if the cache does not have them; `renew` asks the mirror for a newer version.

    :raise HostError: the mirror, the disk or a tool fails.
    :raise UsageError: a local file is not what it should be, or no kernel was built under that name.
    """
    folder = kernel_folder(kernel, root)
    if isinstance(kernel, BuiltKernel):
        cache.mark_used(folder)
        return await _checked(read_built(kernel, root))
    if renew:
        shutil.rmtree(folder, ignore_errors=True)

    async def make(unfinished: Path) -> dict[str, Any]:
        with progress.task(f"kernel {kernel.name}") as task:
            return await _make(kernel, unfinished, task)

    await cache.make_once(folder, make, progress, f"kernel {kernel.name}")
    for note in cache.read_meta(folder).get("notes", ()):
        progress.note(str(note))
    return await _checked(read_folder(kernel, folder))


async def _checked(files: KernelFiles) -> KernelFiles:
    """:raise HostError: what guests start from is not what was laid out here."""
    early = tuple(f"early/{name}" for name in files.early_modules)
    disk = (files.modules_disk.name,) if files.modules_disk is not None else ()
    await asyncio.to_thread(
        checksums.verify, files.folder, ("bzImage", *early, *disk), cache.read_meta(files.folder).get("hashes")
    )
    return files


def cached_kernel(kernel: Kernel, root: Path) -> KernelFiles | None:
    """The kernel's files if the cache has them."""
    if isinstance(kernel, BuiltKernel):
        return read_built(kernel, root)
    folder = kernel_folder(kernel, root)
    return read_folder(kernel, folder) if (folder / cache.META).is_file() else None


def read_folder(kernel: Kernel, folder: Path) -> KernelFiles:
    """The kernel in a folder that is complete.

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
        what = f"expected what a kernel's folder says of itself, got {error!r}"
        raise HostError(f"{folder / cache.META}: {what}; remove {folder}, and the next run makes it again") from error


def read_built(kernel: BuiltKernel, root: Path) -> KernelFiles:
    """What was built under a name.

    :raise UsageError: nothing was. :raise HostError: it is damaged.
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
            notes += _some(f"{deb}: left out", await asyncio.to_thread(debs.unpack, deb, work / "tree"))
        bzimage, modules = _find(kernel, work / "tree")
        await asyncio.to_thread(kernel_image.write_plain, bzimage, work / "bzImage")
        task.update(detail="what guests need of it")
        name = str(bzimage) if isinstance(kernel, LocalKernel) and kernel.bzimage else kernel.name
        fit = await asyncio.to_thread(
            boot_check.examine, name, work / "bzImage", boot_check.config_files(bzimage, modules), modules
        )
        if fit.config is not None:
            (folder / "config").write_text(fit.config, encoding="utf-8")
        if isinstance(kernel, LocalKernel) and kernel.bzimage:
            notes += boot_check.linked_configs(bzimage, modules)
        if modules is not None:
            named = modules if isinstance(kernel, LocalKernel) and kernel.bzimage else kernel.name
            notes += _some(f"{named}: left out", module_tree.survey_modules(modules).left_out)
        return await copy_into(work / "bzImage", modules, folder, task) | {
            "origin": origin,
            "notes": [*notes, *fit.notes],
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _some(what: str, left_out: Sequence[str]) -> Iterator[str]:
    """A note of what is left out, none where that is nothing."""
    if left_out:
        more = f" and {len(left_out) - _MOST_NAMED} more" if len(left_out) > _MOST_NAMED else ""
        yield f"{what}: {', '.join(left_out[:_MOST_NAMED])}{more}"


async def _download(kernel: DebianKernel, work: Path, task: Task) -> tuple[str, tuple[Path, ...]]:
    apt = PrivateApt(work / "apt", await find_mirror(), kernel.suites)
    await apt.update(task)
    packages = await closure(apt, kernel.package)
    folder = work / "debs"
    folder.mkdir()
    debs = await apt.download(packages, folder, task)
    return (
        f"{', '.join(f'{package.name} {package.version}' for package in packages)} from {', '.join(kernel.suites)}",
        debs,
    )


async def closure(apt: PrivateApt, name: str) -> tuple[Package, ...]:
    """The packages behind a kernel's metapackage that hold files of the kernel.

    `linux-image-cloud-amd64` depends on `linux-image-RELEASE`; from 7.x that depends on `linux-binary-RELEASE`, `linux-modules-RELEASE` and
    `linux-base-RELEASE`.
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
    """The bzImage, and the folder `lib/modules/RELEASE` if there is one.

    :raise UsageError: there is no kernel, or there are several, or modules of others alone.
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
    """Put a kernel and its modules into `folder`, as guests start from them; returns what to record. A folder below it is for scratch."""
    release = kernel_image.kernel_release(bzimage)
    shutil.copyfile(bzimage, folder / "bzImage")
    digests = [file_sha256(folder / "bzImage")]
    early: tuple[str, ...] = ()
    if modules is not None:
        tree = folder / "work" / "modules"
        target = tree / "lib/modules" / release
        # The user's own folder is copied: depmod writes into it.
        await asyncio.to_thread(module_tree.copy_modules, modules, target)
        task.update(detail=f"modules of {release}")
        await process.run(["depmod", "-b", tree, release], timeout_s=120)
        order = module_order((target / "modules.dep").read_text(encoding="utf-8"), EARLY_MODULES)
        early = await asyncio.to_thread(module_tree.unpack_modules, target, order, folder / "early")
        await make_ext4(tree / "lib/modules", folder / "modules.ext4")
        # Not of the disk: it has times in it.
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
