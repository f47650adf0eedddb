"""Builds guest images, and removes unused entries of the cache: image, gc."""

from __future__ import annotations

import json
import shutil
import time
from typing import Annotated

import typer

from testbed.cli import option_values
from testbed.cli.app import Json, Quiet, app, err, out, run_async
from testbed.errors import UsageError
from testbed.guest import session
from testbed.guest.factory import IMAGE
from testbed.host import paths, quota
from testbed.report import live, runs
from testbed.store import cache, gc, image
from testbed.units import format_size

image_app = typer.Typer(no_args_is_help=True, help="Guest images, built from images/*.yaml.")
app.add_typer(image_app, name="image")


@image_app.command("build")
def image_build(name: Annotated[str, typer.Argument(help="Recipe.")] = IMAGE, quiet: Quiet = False) -> None:
    """Build a guest image, if the cache does not have it."""

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            built = await image.build_image(name, paths.shipped("images"), paths.folders().cache, progress)
        print(built.folder)
        return 0

    run_async(work())


@image_app.command("list")
def image_list() -> None:
    """The recipes, and which of them are built."""
    root = paths.folders().cache
    for name in paths.image_names(paths.shipped("images")):
        folder = image.image_folder(name, paths.shipped("images"), root)
        print(f"{name}\t{folder if (folder / cache.META).is_file() else 'not built'}")


@image_app.command("rm")
def image_rm(name: Annotated[str, typer.Argument(help="Recipe.")]) -> None:
    """Remove a built image; the next run builds it again."""
    folder = image.image_folder(name, paths.shipped("images"), paths.folders().cache)
    if not folder.exists():
        raise UsageError(f"image {name!r}: it is not built")
    shutil.rmtree(folder)


@app.command("gc")
def gc_command(
    unused_for: Annotated[
        str, typer.Option("--unused-for", help="What was not used for this long, such as 14d or 12h.")
    ] = "14d",
    larger_than: Annotated[
        str | None,
        typer.Option(
            "--larger-than",
            help="The least recently used, until the rest is at most this large; TESTBED_CACHE_LIMIT (20G) by default.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list it.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed commands have left, and unused entries of the cache: images, kernels, sources, templates, old
    environments.

    What was used within the last hour is kept, and so are the images and kernels of running guests and of snapshots.
    `testbed runs --prune` removes runs, which are not in the cache.
    """
    folders = paths.folders()
    unused_s = option_values.age_s("--unused-for", unused_for)
    limit_bytes = (
        option_values.size_bytes("--larger-than", larger_than)
        if larger_than is not None
        else quota.size_limit(quota.CACHE_LIMIT)
    )
    leftovers = 0 if dry_run else len(session.reap(folders)) + len(runs.remove_empty_runs(folders.runs))
    pieces = gc.list_entries(folders.cache) + gc.list_environments(folders.cache)
    chosen = gc.select_unused(
        pieces, time.time(), unused_s=unused_s, limit_bytes=limit_bytes, needed=gc.select_needed(folders)
    )
    removed = [piece for piece in chosen if dry_run or gc.remove(piece.folder)]
    freed = sum(piece.size_bytes for piece in removed)
    left = sum(piece.size_bytes for piece in pieces) - freed
    if as_json:
        what = "would_be_removed" if dry_run else "removed"
        entries = [{"name": piece.name, "size_bytes": piece.size_bytes} for piece in removed]
        print(json.dumps({what: entries, "freed_bytes": freed, "left_bytes": left, "leftovers": leftovers}))
        return
    for piece in removed:
        out.print(f"{piece.name}\t{format_size(piece.size_bytes)}", highlight=False, soft_wrap=True)
    if leftovers:
        err.print(
            f"{leftovers} leftover{'' if leftovers == 1 else 's'} of commands that were killed or failed removed",
            highlight=False,
        )
    what = "would be removed" if dry_run else "removed"
    err.print(f"{len(removed)} {what}, {format_size(freed)}; {format_size(left)} left", highlight=False)
