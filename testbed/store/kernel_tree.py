"""The tree of a source, changed in place and back: a file that stays the same keeps its time, so that make compiles only what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed import held, jsons, process
from testbed.errors import BuildError
from testbed.kbuild.ablations import Ablation, ablate
from testbed.kbuild.patches import Patch, placeless, refusal, touched, uncounted

_STATE = "changed.json"
_ORIGINALS = "originals"
# The scratch folder may be inside somebody's repository, whose paths git would take these for; and what its user has git do with blanks
# would be other bytes.
_ALONE = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file is: its bytes, and whether it may be executed."""

    data: bytes
    executable: bool = False


class Tree:
    """`folder`/tree; the caller holds the source's lock. What was there before a change is kept beside it until the change is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tree = folder / "tree"

    def _pristine(self, path: str) -> Path:
        """Where a file is as it was without changes, if it was there.

        :raise BuildError: it leads out of the tree, or it is a link.
        """
        if path.startswith("/") or ".." in Path(path).parts:
            raise BuildError(f"{path}: expected a file inside the source")
        if any((self._tree / part).is_symlink() for part in (Path(path), *Path(path).parents)):
            raise BuildError(f"{path}: expected a regular file of the source, got a link")
        return (self._folder / _ORIGINALS / path) if path in self._changed() else (self._tree / path)

    def _changed(self) -> dict[str, bool]:
        """The changed files, and whether each was there before."""
        state = self._folder / _STATE
        return dict(jsons.parsed(state.read_text(encoding="utf-8"))) if state.exists() else {}

    async def planned(self, series: Iterable[Patch], reverts: Iterable[Patch], ablations: Iterable[Ablation]) -> dict[str, Content | None]:
        """The files that change, with what they become (None: they go). Nothing is changed yet.

        :raise BuildError: a patch or an edit does not fit; says where, and what is there.
        """
        with held.temporary() as folder:
            scratch, file = folder / "tree", folder / "patch"
            scratch.mkdir()
            seen: set[str] = set()
            for patch, reverse in (*((one, False) for one in series), *((one, True) for one in reverts)):
                file.write_bytes(patch.text.encode("utf-8", "surrogateescape"))
                git = _GitApply(patch=patch, file=str(file), scratch=scratch)
                files = await git.files()
                self._bring(files - seen, scratch)
                seen |= files
                await git.apply(reverse=reverse)
            for ablation in ablations:
                edited = {edit.file for way in ablation.ways for edit in way}
                self._bring(edited - seen, scratch)
                seen |= edited
                for path, text in ablate(ablation, lambda path: _text(scratch / path)).items():
                    (scratch / path).write_bytes(text.encode("utf-8", "surrogateescape"))
            found: dict[str, Content | None] = {}
            for path in sorted(seen):
                new = _content(scratch / path)
                if _content(self._pristine(path)) != new:
                    found[path] = new
            return found

    def _bring(self, paths: Iterable[str], scratch: Path) -> None:
        for path in paths:
            before = self._pristine(path)
            if before.is_file():
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(before, scratch / path)

    def put(self, wanted: Mapping[str, Content | None]) -> None:
        """Make the tree what it is without changes, and with these. What a killed run left half-way is put right, too."""
        before = self._changed()
        for path in wanted.keys() - before.keys():
            if (self._tree / path).is_file():
                (self._folder / _ORIGINALS / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._tree / path, self._folder / _ORIGINALS / path)
        known = before | {path: (self._tree / path).is_file() for path in wanted.keys() - before.keys()}
        self._remember(known)
        for path, existed in known.items():
            original = self._folder / _ORIGINALS / path
            _write(self._tree / path, wanted[path] if path in wanted else _content(original) if existed else None)
        self._remember({path: known[path] for path in wanted})
        for path in known.keys() - wanted.keys():
            (self._folder / _ORIGINALS / path).unlink(missing_ok=True)

    def _remember(self, changed: Mapping[str, bool]) -> None:
        new = self._folder / f"{_STATE}.new"
        new.write_text(json.dumps(changed, sort_keys=True), encoding="utf-8")
        new.replace(self._folder / _STATE)


def digests(wanted: Mapping[str, Content | None]) -> dict[str, str]:
    """The changed files with the hashes of what they become, and whether they may be executed; empty for one that goes."""

    def digest(content: Content) -> str:
        return hashlib.sha256(content.data).hexdigest() + ("+x" if content.executable else "")

    return {path: "" if content is None else digest(content) for path, content in wanted.items()}


def _content(path: Path) -> Content | None:
    return Content(data=path.read_bytes(), executable=bool(path.stat().st_mode & stat.S_IXUSR)) if path.is_file() else None


def _text(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def _write(path: Path, content: Content | None) -> None:
    """Only where it differs. Its time is now, also when it becomes what it was: objects of what it was meanwhile are older."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    if _content(path) == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.testbed-new")
    new.write_bytes(content.data)
    new.chmod(0o755 if content.executable else 0o644)
    new.replace(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _GitApply:
    """`git apply` of one patch, which is in `file`, too, to the files in `scratch`."""

    patch: Patch
    file: str
    scratch: Path

    async def _run(self, *words: str) -> process.Finished:
        environment = _ALONE | {"GIT_CEILING_DIRECTORIES": str(self.scratch.parent), "GIT_DIR": str(self.scratch / "no-repository")}
        argv = ["git", "apply", f"-p{self.patch.strip}", *words, self.file]
        return await process.run(argv, env=environment, folder=self.scratch, check=False)

    def _refused(self, said: str, *, reverse: bool) -> str:
        return refusal(self.patch, said, lambda path: _text(self.scratch / path), reverse=reverse)

    async def files(self) -> frozenset[str]:
        """The files that it may touch; some may not exist.

        :raise BuildError: it is no patch, or not one of text in regular files.
        """
        found: frozenset[str] = frozenset()
        # What it renames has its old name the other way round.
        for way in ((), ("-R",)):
            done = await self._run(*way, "--numstat", "--summary", "-z")
            if done.status != 0:
                raise BuildError(self._refused(done.stderr, reverse=False))
            found |= touched(done.stdout, self.patch.name)
        return found

    async def apply(self, *, reverse: bool) -> None:
        """:raise BuildError: it does not fit; says where."""
        if (why := uncounted(self.patch) or placeless(self.patch, reverse=reverse)) is not None:
            raise BuildError(why)
        done = await self._run("--verbose", *(["-R"] if reverse else []))
        if done.status == 0:
            return
        fits_otherwise = (await self._run("--check", *([] if reverse else ["-R"]))).status == 0
        why = self._refused(done.stderr, reverse=reverse)
        if fits_otherwise:
            why += "\n    it is not in this source" if reverse else "\n    it is in this source already: --revert takes it away"
        raise BuildError(why)
