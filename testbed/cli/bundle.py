"""The verb that packs runs, and what `repro` needs of a bundle: bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed import beneath, parcel, paths
from testbed.cli.app import app, err
from testbed.errors import HostError, UsageError
from testbed.kernels import LocalKernel, load_table
from testbed.lab import Lab
from testbed.progress import Progress
from testbed.report import reading
from testbed.store import bundles, kernel_files, runs
from testbed.store.bundles import Bundle
from testbed.store.kernel_files import KernelFiles
from testbed.units import format_size


@app.command("bundle")
def bundle_command(
    run: Annotated[str, typer.Argument(help="A run of `testbed repro`: its folder, its name, or `last`.")] = "last",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new file; RUN.tar without it.")] = None,
    with_kernel: Annotated[bool, typer.Option("--with-kernel", help="The kernels go along, and not only their names and hashes.")] = False,
) -> None:
    """Pack a run into one tar that `testbed repro` takes on another machine: bug, scripts, versions, hashes, seed, logs, results."""
    folders = paths.folders()
    folder = run_folder(run, folders.runs)
    target = output or Path(f"{folder.name}.tar")
    written_bytes = bundles.pack(folder, target, _kernels(folder, folders.cache, with_kernel=with_kernel))
    err.print(f"{target}: {format_size(written_bytes)}; run it with: testbed repro {target}", markup=False, highlight=False, soft_wrap=True)


def _kernels(folder: Path, cache: Path, *, with_kernel: bool) -> dict[str, Path]:
    """The folders of the kernels that go along; those that no table names must.

    :raise UsageError: one is not in the cache as it was, or must go along.
    """
    table = load_table(paths.shipped("images") / "kernels.yaml")
    found: dict[str, Path] = {}
    document = reading.document(folder)
    if document is None or runs.results(folder) != parcel.RESULTS:
        raise UsageError(f"{folder}: expected the folder of a run of `testbed repro`")
    for one in document["kernels"]:
        name, there = str(one["name"]), cache / "kernels" / Path(one["cached"]).name
        if not with_kernel:
            if name not in table.rows:
                raise UsageError(f"bundle: kernel {name}: no other machine knows it by its name; take it along with --with-kernel")
            continue
        try:
            same = kernel_files.read_folder(LocalKernel(name=name), there).sha256 == one["sha256"]
        except HostError:
            same = False
        if not same:
            raise UsageError(f"bundle: kernel {name}: expected {one['release']} in the cache, as it was; it is not there any longer")
        found[name] = there
    return found


def run_folder(run: str, runs: Path) -> Path:
    """The folder of a run of `repro`: a path, a name among `runs`, or `last`.

    :raise UsageError: there is none.
    """
    if run == "last":
        newest = max((runs / name for name in beneath.names(runs) if beneath.has(runs / name, parcel.RESULTS)), default=None)
        if newest is None:
            raise UsageError(f"run last: expected a run of `testbed repro` in {runs}, there is none")
        return newest
    folder = Path(run) if beneath.has(Path(run), parcel.RESULTS) else runs / run
    if not beneath.has(folder, parcel.RESULTS):
        raise UsageError(f"run {run!r}: expected a run of `testbed repro`, found no {parcel.RESULTS} in {folder}")
    return folder


def unpacked(bundle: Bundle | None, lab: Lab) -> dict[str, KernelFiles]:
    """The kernels that came with a bundle."""
    return bundles.kernels(bundle, lab.new_folder()) if bundle is not None and bundle.manifest.with_kernels else {}


def tell_differences(bundle: Bundle, lab: Lab, kernels: tuple[KernelFiles, ...], progress: Progress) -> None:
    """Say what is another here than where a bundle was made, before it runs."""
    # Those that came along are the bundle's own.
    others = [one for one in kernels if one.name not in bundle.manifest.with_kernels]
    here = parcel.Made.model_validate(
        {
            "host": {"qemu": lab.host.qemu.version, "qemu_identity": lab.host.qemu.identity, "accelerator": lab.host.accelerator},
            "image": {"sha256": lab.image.sha256},
            "kernels": [{"name": one.name, "release": one.release, "sha256": one.sha256} for one in others],
        }
    )
    said = list(parcel.differences(bundle.manifest, here))
    for line in said:
        progress.note(f"differs from where the bundle was made: {line}")
    if not said:
        progress.note("nothing differs from where the bundle was made: QEMU, image and kernels are the same")
