"""The tree of a source, changed in place and back: a file that stays the same keeps its time, so that make compiles only what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from testbed import process
from testbed.errors import BuildError
from testbed.kbuild.ablations import Ablation, ablate
from testbed.kbuild.patches import Patch, refusal

_STATE = "changed.json"
_ORIGINALS = "originals"


class Tree:
    """`folder`/tree; the caller holds the source's lock. What was there before a change is kept beside it until the change is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tree = folder / "tree"

    def _pristine(self, path: str) -> Path:
        """Where a file is as it was without changes, if it was there.

        :raise BuildError: it leads out of the tree.
        """
        if path.startswith("/") or ".." in Path(path).parts or (self._tree / path).is_symlink():
            raise BuildError(f"{path}: expected a file inside the source")
        return (self._folder / _ORIGINALS / path) if path in self._changed() else (self._tree / path)

    def _changed(self) -> dict[str, bool]:
        """The changed files, and whether each was there before."""
        state = self._folder / _STATE
        return dict(json.loads(state.read_text())) if state.exists() else {}

    async def planned(self, series: Iterable[Patch], reverts: Iterable[Patch], ablations: Iterable[Ablation]) -> dict[str, bytes | None]:
        """The files that change, with what they become (None: they go). Nothing is changed yet.

        :raise BuildError: a patch or an edit does not fit; says where, and what is there.
        """
        with tempfile.TemporaryDirectory(prefix="testbed-patches-") as name:
            scratch = Path(name)
            seen: set[str] = set()
            for patch, reverse in (*((one, False) for one in series), *((one, True) for one in reverts)):
                self._bring(patch.paths - seen, scratch)
                seen |= patch.paths
                await _apply(patch, scratch, reverse=reverse)
            for ablation in ablations:
                files = {edit.file for way in ablation.ways for edit in way}
                self._bring(files - seen, scratch)
                seen |= files
                for path, text in ablate(ablation, lambda path: _text(scratch / path)).items():
                    (scratch / path).write_bytes(text.encode("utf-8", "surrogateescape"))
            found: dict[str, bytes | None] = {}
            for path in sorted(seen):
                before, after = self._pristine(path), scratch / path
                old = before.read_bytes() if before.is_file() else None
                new = after.read_bytes() if after.is_file() else None
                if old != new:
                    found[path] = new
            return found

    def _bring(self, paths: Iterable[str], scratch: Path) -> None:
        for path in paths:
            before = self._pristine(path)
            if before.is_file():
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(before, scratch / path)

    def put(self, wanted: Mapping[str, bytes | None]) -> None:
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
            content = wanted[path] if path in wanted else original.read_bytes() if existed else None
            _write(self._tree / path, content, original if existed else None)
        self._remember({path: known[path] for path in wanted})
        for path in known.keys() - wanted.keys():
            (self._folder / _ORIGINALS / path).unlink(missing_ok=True)

    def _remember(self, changed: Mapping[str, bool]) -> None:
        new = self._folder / f"{_STATE}.new"
        new.write_text(json.dumps(changed, sort_keys=True))
        new.replace(self._folder / _STATE)


def digests(wanted: Mapping[str, bytes | None]) -> dict[str, str]:
    """The changed files with the hashes of what they become; empty for one that goes."""
    return {path: "" if content is None else hashlib.sha256(content).hexdigest() for path, content in wanted.items()}


def _text(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def _write(path: Path, content: bytes | None, original: Path | None) -> None:
    """Only where it differs. Its time is now, also when it becomes what it was: objects of what it was meanwhile are older."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.testbed-new")
    new.write_bytes(content)
    if original is not None:
        shutil.copymode(original, new)
    new.replace(path)


async def _apply(patch: Patch, scratch: Path, *, reverse: bool) -> None:
    # The scratch folder may be inside somebody's repository, whose paths git would take these for.
    environment = {"GIT_CEILING_DIRECTORIES": str(scratch.parent), "GIT_DIR": str(scratch / "no-repository")}
    with tempfile.NamedTemporaryFile(prefix="testbed-patch-") as file:
        file.write(patch.text.encode("utf-8", "surrogateescape"))
        file.flush()
        words = ["git", "apply", f"-p{patch.strip}", "--verbose"]
        done = await process.run([*words, *(["-R"] if reverse else []), file.name], env=environment, folder=scratch, check=False)
        if done.status == 0:
            return
        other = [*words, "--check", *([] if reverse else ["-R"]), file.name]
        fits_otherwise = (await process.run(other, env=environment, folder=scratch, check=False)).status == 0
    why = refusal(patch, done.stderr, lambda path: _text(scratch / path), reverse=reverse)
    if fits_otherwise:
        why += "\n    it is not in this source" if reverse else "\n    it is in this source already: --revert takes it away"
    raise BuildError(why)
