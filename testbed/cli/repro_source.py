"""Reads the bug that `testbed repro` is given: a bug file, a bundle, or a script with its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.bugs import Case
from testbed.bugs import bundle as bundles
from testbed.bugs.bundle import Bundle
from testbed.bugs.load import Place, error_at, inline_files, is_bug, parse_mapping, self_contained, to_yaml
from testbed.cli.bug_files import check_scripts, load_trusted
from testbed.errors import TopologyError, UsageError
from testbed.guest.channels.kernel_log import ANY_SPLAT
from testbed.host import paths
from testbed.store.kernels.table import shipped_table
from testbed.topology.kernel_abilities import KernelAbilities
from testbed.topology.yaml_reader import read_file

# The signature of a script without --expect: it fails, the kernel complains, or the guest is gone.
_ANY_FAILURE = (
    {"status": "failure"},
    {"console": ANY_SPLAT},
    {"guest": "lost"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BugOptions:
    """Options that name a bug and its kernels, as they were given."""

    file: Path | None
    script: Path | None
    expect: str | None
    topology: Path | None
    kernels: tuple[str, ...]
    clean: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedBug:
    """The bug to reproduce. `plain`: the mapping of its file, with the content of all other files inlined."""

    case: Case
    plain: dict[str, Any]
    title: str
    bundle: Bundle | None = None

    def save(self, path: Path) -> None:
        """Write the bug as a file.

        :raise UsageError: it cannot be written.
        """
        head = "yaml-language-server: $schema=schema.json\n" + self.case.bug.summary
        try:
            path.write_text(to_yaml(self.plain, head), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--save {path}: cannot be written: {error.strerror}") from error


def read_bug(options: BugOptions) -> NamedBug:
    """Read the bug of a file, a bundle or a script.

    :raise UsageError: the options do not belong together. :raise TopologyError: a file is wrong.
    """
    file, script = options.file, options.script
    if (file is None) == (script is None):
        raise UsageError(f"repro: expected a bug file or --script, got {'neither' if file is None else 'both'}")
    if script is not None:
        return _from_script(script, options)
    assert file is not None
    if options.expect is not None or options.topology is not None:
        raise UsageError(f"repro: --expect and --topology belong to --script; {file} has its own")
    if bundles.is_bundle(file):
        bundle = bundles.read(file)
        check_scripts(bundle.case.bug, {})
        return NamedBug(case=bundle.case, plain=bundle.plain, title=str(file), bundle=bundle)
    try:
        abilities = KernelAbilities(shipped_table(), paths.cache_folder())
        case = load_trusted(file, None if options.kernels else abilities.guest_mistakes)
    except TopologyError as error:
        if is_bug(file):
            raise
        expected = error_at(file, "expected a bug file (docs/reproduce.md), or a bundle of `testbed bundle`")
        raise TopologyError((*expected.problems, *error.problems)) from error
    return NamedBug(case=case, plain=self_contained(file), title=str(file))


def _from_script(script: Path, options: BugOptions) -> NamedBug:
    """Make a bug of a script and what is expected of it."""
    expect = options.expect
    text = read_file(script)
    plain: dict[str, Any] = {
        "version": 1,
        "summary": f"{script.name} shows {expect!r}" if expect is not None else f"{script.name} fails",
        "source": f"made by: testbed repro --script {script.name}",
        "kernels": {
            "shows": list(options.kernels or (shipped_table().patched,)),
            "clean": list(options.clean),
        },
        "script": text,
        "script-name": script.name,
        "signature": [{"expect": expect}] if expect is not None else [dict(one) for one in _ANY_FAILURE],
    }
    sources: dict[str, str] = {}
    if options.topology is not None:
        plain = inline_files(plain | {"topology": str(options.topology)}, Path("bug.yaml"), sources)
    try:
        case = parse_mapping(plain, str(script), script_file=str(script), sources=sources)
        check_scripts(case.bug, {"script": Place(file=str(script), line=1)})
        return NamedBug(case=case, plain=plain, title=str(script))
    except TopologyError as error:
        if all(problem.path == "script" for problem in error.problems):
            raise
        # Line numbers would be those of a file that does not exist.
        problems = "; ".join(f"{problem.path}: {problem.message}" for problem in error.problems)
        raise UsageError(f"repro: {problems}") from error


def select_kernels(case: Case, options: BugOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the kernels on which the bug must show, and those on which it must not.

    :raise UsageError: there is none to try, or one is named for both.
    """
    named = case.bug.kernels
    shows = options.kernels or named.shows
    clean = options.clean or (() if options.kernels else named.clean)
    if not shows:
        raise UsageError("repro: expected a kernel on which to try, got none; name one with --kernel")
    both = sorted(set(shows) & set(clean))
    if both:
        raise UsageError(f"repro: {', '.join(both)}: expected a kernel with --kernel or with --clean, got it with both")
    return tuple(dict.fromkeys(shows)), tuple(dict.fromkeys(clean))
