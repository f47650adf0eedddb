"""Packs a run of `repro` into a bundle: bundle. Also what `repro` does with a bundle's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.bugs import bundle as bundles
from testbed.bugs import bundle_rules
from testbed.bugs.bundle import Bundle
from testbed.cli.app import app, err
from testbed.errors import HostError, UsageError
from testbed.guest.factory import GuestFactory
from testbed.host import paths, untrusted_files
from testbed.progress import Progress
from testbed.report import result_reader
from testbed.report.bugs.schema import Repro
from testbed.store.kernels import kernel_files
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import LocalKernel, shipped_table
from testbed.units import format_size


@app.command("bundle")
def bundle_command(
    run: Annotated[str, typer.Argument(help="A run of `testbed repro`: its folder, its name, or `last`.")] = "last",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new file; RUN.tar without it.")] = None,
    with_kernel: Annotated[
        bool, typer.Option("--with-kernel", help="Pack the kernels too, and not only their names and hashes.")
    ] = False,
) -> None:
    """Pack a run into a tar file that `testbed repro` runs on another machine: bug, scripts, versions, hashes,
    seed, logs, results.
    """
    folders = paths.folders()
    folder = run_folder(run, folders.runs)
    target = output or Path(f"{folder.name}.tar")
    written_bytes = bundles.pack(folder, target, _kernels(folder, folders.cache, with_kernel=with_kernel))
    err.print(
        f"{target}: {format_size(written_bytes)}; run it with: testbed repro {target}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _kernels(folder: Path, cache: Path, *, with_kernel: bool) -> dict[str, Path]:
    """Return the folders of the kernels to pack. Kernels that are not in the table must be packed.

    :raise UsageError: a kernel has changed in the cache or is gone, or must be packed.
    """
    table = shipped_table()
    found: dict[str, Path] = {}
    document = result_reader.read_document(folder)
    if not isinstance(document, Repro):
        raise UsageError(f"{folder}: expected the folder of a run of `testbed repro`")
    for one in document.kernels:
        name, there = one.name, cache / "kernels" / Path(one.cached).name
        if not with_kernel:
            if name not in table.rows:
                raise UsageError(
                    f"bundle: kernel {name}: no other machine knows it by its name; take it along with --with-kernel"
                )
            continue
        try:
            same = kernel_files.read_folder(LocalKernel(name=name), there).sha256 == one.sha256
        except HostError:
            same = False
        if not same:
            raise UsageError(
                f"bundle: kernel {name}: expected {one.release} in the cache, as it was; it is not there any longer"
            )
        found[name] = there
    return found


def run_folder(run: str, runs: Path) -> Path:
    """Return the folder of a run of `repro`, given as a path, a name in `runs`, or `last`.

    :raise UsageError: there is none.
    """
    if run == "last":
        newest = max(
            (
                runs / name
                for name in untrusted_files.names_below(runs)
                if untrusted_files.exists_below(runs / name, bundle_rules.RESULTS)
            ),
            default=None,
        )
        if newest is None:
            raise UsageError(f"run last: expected a run of `testbed repro` in {runs}, there is none")
        return newest
    folder = Path(run) if untrusted_files.exists_below(Path(run), bundle_rules.RESULTS) else runs / run
    if not untrusted_files.exists_below(folder, bundle_rules.RESULTS):
        raise UsageError(f"run {run!r}: expected a run of `testbed repro`, found no {bundle_rules.RESULTS} in {folder}")
    return folder


def unpacked_kernels(bundle: Bundle | None, factory: GuestFactory) -> dict[str, KernelFiles]:
    """Unpack the kernels of a bundle."""
    if bundle is None or not bundle.manifest.with_kernels:
        return {}
    return bundles.kernels(bundle, factory.new_folder())


def note_differences(
    bundle: Bundle, factory: GuestFactory, kernels: tuple[KernelFiles, ...], progress: Progress
) -> None:
    """Note what differs between this machine and the one where the bundle was made."""
    # Kernels of the bundle itself cannot differ.
    others = [kernel for kernel in kernels if kernel.name not in bundle.manifest.with_kernels]
    here = bundle_rules.Made.model_validate(
        {
            "host": {
                "qemu": factory.host.qemu.version,
                "qemu_identity": factory.host.qemu.identity,
                "accelerator": factory.host.accelerator,
            },
            "image": {"sha256": factory.image.sha256},
            "kernels": [{"name": one.name, "release": one.release, "sha256": one.sha256} for one in others],
        }
    )
    differences = list(bundle_rules.manifest_differences(bundle.manifest, here))
    for difference in differences:
        progress.note(f"differs from where the bundle was made: {difference}")
    if not differences:
        progress.note("nothing differs from where the bundle was made: QEMU, image and kernels are the same")
