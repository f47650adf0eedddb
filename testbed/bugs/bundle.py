"""Packs a run of `repro` into a bundle, a tar file with the same bytes for the same run; and reads bundles, which are
not trusted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.bugs import Case, bundle_rules
from testbed.bugs.bundle_rules import BUG, KERNELS, MANIFEST, RESULTS, Manifest, Member
from testbed.bugs.load import parse_mapping, read_plain
from testbed.errors import HostError, TopologyError, UsageError
from testbed.hashing import content_key
from testbed.host import untrusted_files
from testbed.store import archives, cache
from testbed.store.kernels.kernel_files import KernelFiles, read_folder
from testbed.store.kernels.table import LocalKernel, shipped_table
from testbed.text import parse_json, printable
from testbed.topology import trust

_MODULE = re.compile(r"[A-Za-z0-9_-]{1,64}\.ko")
_RELEASE = re.compile(r"[A-Za-z0-9._+~-]{1,128}")
_MOST_ORIGIN = 500
_KERNEL_FILES = ("bzImage", "modules.ext4", cache.META)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read. `plain`: the mapping of its bug, which is `case`; it names no file of this machine."""

    path: Path
    manifest: Manifest
    plain: dict[str, Any]
    case: Case


def is_bundle(path: Path) -> bool:
    """Whether a file is a tar archive. A pipe is not, and is not read from."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            file.seek(257)
            return file.read(5) == b"ustar"
    except OSError:
        return False


# The files of a new bundle: for each name the folder that holds it, and the path below that folder.
_Files = Mapping[str, tuple[Path, str]]


def pack(run: Path, target: Path, kernels: dict[str, Path]) -> int:
    """Pack the folder of a run into a new file; returns its size in bytes. `kernels`: cache folders of kernels to
    include, by name. The run may come from somebody else: links and other entries that are no regular files are left
    out.

    :raise UsageError: it is no run of `repro`, its bug names files of this machine, or nobody could open the bundle.
    :raise HostError: the bundle cannot be written.
    """
    try:
        results = parse_json(untrusted_files.read_below(run, RESULTS, bundle_rules.MOST_TEXT_BYTES))
        bug = untrusted_files.read_below(run, BUG, bundle_rules.MOST_TEXT_BYTES).decode("utf-8")
        plain = read_plain(bug, str(run / BUG))[0]
    except (OSError, ValueError) as error:
        raise UsageError(f"{run}: expected the folder of a run of `testbed repro`: {error}") from error
    _check_portable(run, plain)
    try:
        files = _collect(run, kernels)
        manifest = _make_manifest(results, files, kernels)
        _check_can_be_read(run, files, len(manifest))
        _write_archive(target, manifest, files)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{run}: expected the folder of a run of `testbed repro`: {RESULTS}: {error}") from error
    except OSError as error:
        advice = "; choose another name with --output" if isinstance(error, FileExistsError) else ""
        raise HostError(f"{target}: cannot be written: {error.strerror or error}{advice}") from error
    return target.stat().st_size


def _check_portable(run: Path, plain: dict[str, Any]) -> None:
    """:raise UsageError: the bug of a run is invalid, or names files of this machine."""
    try:
        hooks = list(bundle_rules.find_host_hooks(parse_mapping(plain, str(run / BUG))))
    except TopologyError as error:
        hooks = [str(error)]
    if hooks:
        raise UsageError(f"{run}: it cannot go to another machine: {'; '.join(hooks)}")


def _collect(run: Path, kernels: Mapping[str, Path]) -> _Files:
    files = {BUG: (run, BUG), RESULTS: (run, RESULTS)}
    guests = untrusted_files.names_below(run, "guests")
    logs = (f"guests/{guest}/{log}" for guest in guests for log in bundle_rules.LOGS)
    files |= {log: (run, log) for log in logs if untrusted_files.is_file_below(run, log)}
    for name, folder in kernels.items():
        files |= {f"{KERNELS}/{name}/{one}": (folder, one) for one in _kernel_files(folder)}
    return files


def _make_manifest(results: Mapping[str, Any], files: _Files, kernels: Iterable[str]) -> bytes:
    hashes = {}
    for name, (folder, path) in files.items():
        with untrusted_files.open_below(folder, path, bundle_rules.MOST_BYTES) as file:
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # a reader is enough
            hashes[name] = digest.hexdigest()
    return json.dumps(bundle_rules.manifest(results, hashes, kernels), indent=2, sort_keys=True).encode() + b"\n"


def _check_can_be_read(run: Path, files: _Files, manifest_bytes: int) -> None:
    """:raise UsageError: `read` would refuse a bundle of these files."""
    sizes = {name: (folder / path).lstat().st_size for name, (folder, path) in files.items()}
    members = (
        Member(name=name, size_bytes=size, is_file=True) for name, size in (sizes | {MANIFEST: manifest_bytes}).items()
    )
    if refusals := list(bundle_rules.find_refusals(members)):
        raise UsageError(f"{run}: nobody could open such a bundle: {'; '.join(refusals[:20])}")


def _write_archive(target: Path, manifest: bytes, files: _Files) -> None:
    with target.open("xb") as raw:
        try:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                archive.addfile(_entry(MANIFEST, len(manifest)), io.BytesIO(manifest))
                for name, (folder, path) in sorted(files.items()):
                    with untrusted_files.open_below(folder, path, bundle_rules.MOST_BYTES) as file:
                        archive.addfile(_entry(name, os.fstat(file.fileno()).st_size), file)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    """Return an archive entry without user, group or time of the packing machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size_bytes, 0o644, 0
    return entry


def _kernel_files(folder: Path) -> Iterator[str]:
    early = (f"early/{name}" for name in untrusted_files.names_below(folder, "early") if name.endswith(".ko"))
    return (name for name in (*_KERNEL_FILES, *early) if untrusted_files.is_file_below(folder, name))


def read(path: Path) -> Bundle:
    """Read and check a bundle. Refuses paths that lead out of it, links, oversized files, anything that would run on
    this machine, and files that differ from the manifest.

    :raise UsageError: it is refused; with every reason.
    """
    try:
        with archives.open_archive(path) as archive:
            members: list[Member] = []
            files: dict[str, tarfile.TarInfo] = {}
            for entry in archive:
                is_file = entry.isreg() and not entry.issparse()
                members.append(Member(name=entry.name, size_bytes=entry.size, is_file=is_file))
                if is_file:
                    files[entry.name] = entry
                if len(members) > bundle_rules.MOST_MEMBERS:
                    break
            if said := list(bundle_rules.find_refusals(members)):
                raise _refused(path, said)
            first = _bytes(archive, files.pop(MANIFEST))
            manifest = bundle_rules.manifest_of(parse_json(first))
            text = _bytes(archive, files[BUG]).decode()
            said = list(_damaged(archive, files, manifest))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _refused(path, [f"expected a bundle of `testbed bundle`: {error}"]) from error
    try:
        plain = read_plain(text, f"{path}:{BUG}")[0]
        # The manifest has the hash of every file but itself, so that the hash of the manifest identifies the whole
        # bundle.
        case = parse_mapping(plain, f"{path}:{BUG}", sources={hashlib.sha256(first).hexdigest(): f"{path}:{MANIFEST}"})
    except TopologyError as error:
        raise _refused(path, [str(error)]) from error
    said += bundle_rules.find_host_hooks(case)
    known = {*shipped_table().rows, *manifest.with_kernels}
    named = (*case.bug.kernels.shows, *case.bug.kernels.clean)
    said += [
        f"kernel {one!r}: expected a name of the table, or of one that came along" for one in named if one not in known
    ]
    if said:
        raise _refused(path, said)
    trust.check_trusted(case.guest.qemu_args)
    return Bundle(path=path, manifest=manifest, plain=plain, case=case)


def _damaged(archive: tarfile.TarFile, files: Mapping[str, tarfile.TarInfo], manifest: Manifest) -> Iterator[str]:
    """Find the files that are not those of the manifest."""
    for name, entry in files.items():
        if _sha256(archive, entry) != manifest.files.get(name):
            yield f"{name!r}: it is not the file that the manifest names"
    yield from (
        f"{name[:100]!r}: the manifest names it, and it is missing" for name in manifest.files if name not in files
    )


def _sha256(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str:
    file = archive.extractfile(entry)
    assert file is not None  # it is a regular file
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a reader is enough


def _bytes(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)
    assert file is not None
    return file.read()


def _refused(path: Path, said: list[str]) -> UsageError:
    return UsageError(f"{path}: this bundle is refused:" + "".join(f"\n  {one}" for one in said[:20]))


def kernels(bundle: Bundle, root: Path) -> dict[str, KernelFiles]:
    """Unpack the kernels of a bundle into the new folder `root`; returns them by name. `read` has compared them with
    the manifest.

    :raise UsageError: they are damaged, or name files that are not theirs. :raise HostError: they cannot be written.
    """
    found: dict[str, KernelFiles] = {}
    try:
        with archives.open_archive(bundle.path) as archive:
            for entry in archive:
                if entry.name.startswith(f"{KERNELS}/"):
                    _unpack(archive, entry, root, bundle)
        for name in bundle.manifest.with_kernels:
            read = _kernel(bundle, name, root / KERNELS / name)
            if said := [
                one
                for one in read.early_modules
                if not _MODULE.fullmatch(one) or not (read.folder / "early" / one).is_file()
            ]:
                raise _refused(
                    bundle.path,
                    [f"kernel {name!r}: expected names of modules that came along, got {one!r}" for one in said],
                )
            # Templates are cached by the hash of the files themselves, not by the hash that the kernel's meta.json
            # claims.
            hashes = {file: one for file, one in bundle.manifest.files.items() if file.startswith(f"{KERNELS}/{name}/")}
            found[name] = replace(read, sha256=content_key("bundle", sorted(hashes.items())))
    except OSError as error:
        raise HostError(f"{bundle.path}: its kernels cannot be unpacked: {error.strerror}") from error
    except (tarfile.TarError, ValueError) as error:
        raise _refused(bundle.path, [f"it was changed since it was looked at: {error}"]) from error
    return found


def _kernel(bundle: Bundle, name: str, folder: Path) -> KernelFiles:
    """Read the meta.json of a bundle's kernel; its texts get into results and onto terminals.

    :raise UsageError: it is no kernel, or its release is malformed.
    """
    try:
        read = read_folder(LocalKernel(name=name), folder)
    except HostError as error:
        raise _refused(
            bundle.path, [f"kernel {name!r}: expected a meta.json as kernels in the cache have it"]
        ) from error
    if not (folder / "bzImage").is_file() or _RELEASE.fullmatch(read.release) is None:
        raise _refused(
            bundle.path, [f"kernel {name!r}: expected a bzImage and its release, got {read.release[:100]!r}"]
        )
    return replace(read, origin=" ".join(printable(read.origin[:_MOST_ORIGIN]).split()))


def _unpack(archive: tarfile.TarFile, entry: tarfile.TarInfo, root: Path, bundle: Bundle) -> None:
    """Unpack one file of a kernel, if it is still the one in the manifest."""
    if not entry.isreg() or _sha256(archive, entry) != bundle.manifest.files.get(entry.name):
        raise _refused(bundle.path, [f"{entry.name!r}: it was changed since it was looked at"])
    target = root / entry.name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = archive.extractfile(entry)
    assert source is not None
    with target.open("xb") as file:
        shutil.copyfileobj(source, file)
