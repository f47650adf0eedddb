"""Verbs for kernels: fetch, build, list, rm."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, out, run_async
from testbed.errors import UsageError
from testbed.host import paths, quota
from testbed.progress import Progress
from testbed.report import live
from testbed.store import cache, gc
from testbed.store.kernels import build_names as built_names
from testbed.store.kernels import builder as kernel_builds
from testbed.store.kernels import kernel_files, make_args
from testbed.store.kernels.ablations import ABLATIONS
from testbed.store.kernels.builder import Builder, BuildSpec
from testbed.store.kernels.mailbox import Selection, numbers_of, version_of
from testbed.store.kernels.table import Kernel, KernelTable, shipped_table

kernel_app = typer.Typer(no_args_is_help=True, help="Kernels, from images/kernels.yaml and from source.")
app.add_typer(kernel_app, name="kernel")

SOURCE_HELP = "A name of images/kernels.yaml, a git tree FOLDER[@COMMIT], or a tarball."
SERIES_HELP = (
    "Patches: a mailbox of b4's or lore's, a patch, or a folder of `git format-patch` or quilt; also compressed. "
    "May be given more than once."
)
Flavours = Annotated[
    list[str] | None,
    typer.Option("--flavour", help="On top of the base configuration: faults, iolatency, kasan, leaks, lockdep."),
]
Fragments = Annotated[list[Path] | None, typer.Option("--fragment", help="Options of your own, on top.")]
Config = Annotated[Path | None, typer.Option("--config", help="Your own .config in place of the base configuration.")]
BUILD_OPTIONS = "--series, --series-version, --series-patches, --revert, --flavour, --fragment, --config, --make-arg"
MakeArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--make-arg",
        help="NAME=VALUE for make, such as LLVM=1, CC=gcc-11 or KCFLAGS=-O1; part of what a kernel is known by.",
    ),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Compilers at once; one for each processor without it.")
]


Tree = Annotated[str | None, typer.Option("--tree", help=f"Build what is run from source. {SOURCE_HELP}")]
Series = Annotated[list[Path] | None, typer.Option("--series", help=SERIES_HELP)]
Revert = Annotated[
    list[Path] | None, typer.Option("--revert", help="Patches that are in the source, to be taken away.")
]
SeriesVersion = Annotated[
    str | None,
    typer.Option(
        "--series-version",
        help="Of patches with several versions in one mailbox or folder the one that is meant: 2, rfc-v1.",
    ),
]
SeriesPatches = Annotated[
    str | None, typer.Option("--series-patches", help="Only these patches of a series, as `b4 am -P` has it: 2-3,5.")
]


def kernel_table() -> KernelTable:
    """The table of kernels that ships."""
    return shipped_table()


def builder(progress: Progress) -> Builder:
    """What builds kernels into this user's cache. Notes which variables of the environment, meant for make, a build does not see."""
    if found := make_args.environment_ignored(os.environ):
        progress.note(f"of the environment {', '.join(found)} does not count in builds; --make-arg NAME=VALUE does")
    return Builder(table=kernel_table(), root=paths.folders().cache, shipped=paths.shipped("images"), progress=progress)


async def built(kernels: Mapping[str, str | BuildSpec], progress: Progress) -> dict[str, str]:
    """The kernels by their names, those built that have none yet: one after the other, for a build takes all processors."""
    specs = [one for one in kernels.values() if isinstance(one, BuildSpec)]
    if not specs:
        return {side: str(one) for side, one in kernels.items()}
    makes = builder(progress)
    for one in specs:
        await makes.check(one)
    return {side: one if isinstance(one, str) else (await makes.build(one)).name for side, one in kernels.items()}


def configured(
    flavour: list[str] | None,
    fragment: list[Path] | None,
    config: Path | None,
    make_arg: list[str] | None,
    series_version: str | None = None,
    series_patches: str | None = None,
) -> BuildSpec:
    """An order of which the source and the patches are not known yet.

    :raise UsageError: an option has another form than it should.
    """
    return BuildSpec(
        source="",
        flavours=tuple(flavour or ()),
        fragments=tuple(fragment or ()),
        config=config,
        make_args=make_args.parse(make_arg or ()),
        selection=Selection(
            version=None if series_version is None else version_of(series_version),
            numbers=() if series_patches is None else numbers_of(series_patches),
        ),
    )


def nothing_built(patches: tuple[list[Path] | None, ...], configuration: BuildSpec) -> None:
    """:raise UsageError: something is said of a build, and there is none."""
    if any(patches) or configuration != BuildSpec(source=""):
        raise UsageError(f"{BUILD_OPTIONS}: expected --tree beside them")


@contextlib.contextmanager
def _kept_small() -> Iterator[None]:
    """A kernel that is new pushes out what was of no use for the longest time, if the cache is too large.

    :raise UsageError: what the user allows is no size.
    """
    folders, limit = paths.folders(), quota.size_limit(quota.CACHE_LIMIT)
    kernels = folders.cache / "kernels"
    before = set(kernels.glob("*"))
    yield
    # How large a cache is takes seconds to find out.
    if set(kernels.glob("*")) - before:
        gc.keep_within(folders, limit, ())


@kernel_app.command("fetch")
def kernel_fetch(
    names: Annotated[list[str] | None, typer.Argument(help=f"{KERNEL_HELP} The default pair without any.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Ask the mirror again for the newest version.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fetch kernels, if the cache does not have them."""

    async def work() -> int:
        known = kernel_table()
        root = paths.folders().cache
        with _kept_small(), live.progress(err, quiet=quiet) as progress:
            for name in names or (known.base, known.patched):
                fetched = await kernel_files.fetch(known.resolve(name), root, progress, renew=renew)
                out.print(f"{name}\t{fetched.release}\t{fetched.origin}", markup=False, highlight=False, soft_wrap=True)
        return 0

    run_async(work())


@kernel_app.command("build")
def kernel_build(
    name: Annotated[
        str | None, typer.Argument(help="The kernel is then built-NAME; made of what it is without one.")
    ] = None,
    source: Annotated[str, typer.Option("--source", "--tree", help=SOURCE_HELP)] = "debian-6.1",
    series: Series = None,
    revert: Revert = None,
    series_version: SeriesVersion = None,
    series_patches: SeriesPatches = None,
    ablation: Annotated[
        list[str] | None, typer.Option("--ablation", help=f"Take one thing away: {', '.join(ABLATIONS)}.")
    ] = None,
    flavour: Flavours = None,
    fragment: Fragments = None,
    config: Config = None,
    make_arg: MakeArgs = None,
    jobs: JobsOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build a kernel from source, unless the cache has it; every verb then knows it by its name. See docs/kernels.md."""
    wanted = replace(
        configured(flavour, fragment, config, make_arg, series_version, series_patches),
        source=source,
        series=tuple(series or ()),
        reverts=tuple(revert or ()),
        ablations=tuple(ablation or ()),
        jobs=jobs,
    )

    async def work() -> int:
        with _kept_small(), live.progress(err, quiet=quiet, as_json=as_json) as progress:
            built = await builder(progress).build(wanted, name)
        if as_json:
            own = {
                "name": built.name,
                "origin": built.origin,
                "series": built.series.value,
                "folder": str(built.folder),
            }
            print(json.dumps(cache.read_meta(built.folder) | own))
        else:
            out.print(f"{built.name}\t{built.release}\t{built.origin}", markup=False, highlight=False, soft_wrap=True)
        return 0

    run_async(work())


@kernel_app.command("list")
def kernel_list(as_json: Json = False) -> None:
    """The kernels of the table and those built here: series, role, release and origin, configuration, hash."""
    known = kernel_table()
    root = paths.folders().cache
    rows: list[dict[str, Any]] = []
    every: tuple[Kernel, ...] = (*known.rows.values(), *built_names.list_names(root))
    for kernel in every:
        found = kernel_files.cached_kernel(kernel, root)
        name = found.name if found else kernel.name
        rows.append(
            {
                "name": name,
                "series": found.series.value if found else known.rows[kernel.name].series.value,
                "role": "base" if name == known.base else "patched" if name == known.patched else "",
                "release": found.release if found else None,
                "origin": found.origin if found else None,
                "config": cache.read_meta(found.folder).get("config_name", "Debian's") if found else None,
                "sha256": found.sha256 if found else None,
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        what = f"{row['release']} ({row['origin']})" if row["release"] else "not fetched"
        print(
            "\t".join(
                (row["name"], row["series"], row["role"], what, row["config"] or "", row["sha256"] or "")
            ).rstrip()
        )


@kernel_app.command("rm")
def kernel_rm(
    name: Annotated[str, typer.Argument(help="A kernel that was built: its name, with built- or without.")],
) -> None:
    """Remove a built kernel. Its source stays in the cache, with the objects that the next build starts from."""
    kernel_builds.remove_build(name, paths.folders().cache)
