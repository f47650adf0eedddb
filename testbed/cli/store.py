"""Verbs for what is cached: guest images and kernels."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from testbed import paths
from testbed.cli.app import KERNEL_HELP, Quiet, app, err, out, run_async
from testbed.errors import UsageError
from testbed.kernels import load_table
from testbed.lab import IMAGE
from testbed.report import live
from testbed.store import cache, image, kernel_files

image_app = typer.Typer(no_args_is_help=True, help="Guest images, built from images/*.yaml.")
kernel_app = typer.Typer(no_args_is_help=True, help="Kernels, from images/kernels.yaml.")
app.add_typer(image_app, name="image")
app.add_typer(kernel_app, name="kernel")


@image_app.command("build")
def image_build(name: Annotated[str, typer.Argument(help="Recipe.")] = IMAGE, quiet: Quiet = False) -> None:
    """Build a guest image, if the cache does not have it."""

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            built = await image.build(name, paths.shipped("images"), paths.folders().cache, progress)
        print(built.folder)
        return 0

    run_async(work())


@image_app.command("list")
def image_list() -> None:
    """The recipes, and which of them are built."""
    root = paths.folders().cache
    for name in image.names(paths.shipped("images")):
        folder = image.image_folder(name, paths.shipped("images"), root)
        print(f"{name}\t{folder if (folder / cache.META).is_file() else 'not built'}")


@image_app.command("rm")
def image_rm(name: Annotated[str, typer.Argument(help="Recipe.")]) -> None:
    """Remove a built image; the next run builds it again."""
    folder = image.image_folder(name, paths.shipped("images"), paths.folders().cache)
    if not folder.exists():
        raise UsageError(f"image {name!r}: it is not built")
    shutil.rmtree(folder)


@kernel_app.command("fetch")
def kernel_fetch(
    names: Annotated[list[str] | None, typer.Argument(help=f"{KERNEL_HELP} The default pair without any.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Ask the mirror again for the newest version.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fetch kernels, if the cache does not have them."""

    async def work() -> int:
        known = load_table(paths.shipped("images") / "kernels.yaml")
        root = paths.folders().cache
        with live.progress(err, quiet=quiet) as progress:
            for name in names or (known.base, known.patched):
                fetched = await kernel_files.fetch(known.resolve(name), root, progress, renew=renew)
                out.print(f"{name}\t{fetched.release}\t{fetched.origin}", highlight=False, soft_wrap=True)
        return 0

    run_async(work())


@kernel_app.command("list")
def kernel_list() -> None:
    """The kernels of the table, and what of them is in the cache."""
    known = load_table(paths.shipped("images") / "kernels.yaml")
    root = paths.folders().cache
    for name, row in known.rows.items():
        found = kernel_files.cached(row, root)
        role = "base" if name == known.base else "patched" if name == known.patched else ""
        print("\t".join((name, row.series.value, role, f"{found.release} ({found.origin})" if found else "not fetched")))
