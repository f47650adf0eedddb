"""Verbs for guest images."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from testbed import paths
from testbed.cli.app import Quiet, app, err, run_async
from testbed.errors import UsageError
from testbed.lab import IMAGE
from testbed.report import live
from testbed.store import cache, image

image_app = typer.Typer(no_args_is_help=True, help="Guest images, built from images/*.yaml.")
app.add_typer(image_app, name="image")


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
