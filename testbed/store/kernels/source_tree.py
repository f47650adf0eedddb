"""Changes the tree of a source in place and back; an unchanged file keeps its time, so that make compiles what
differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from testbed.errors import BuildError
from testbed.host import process, tempdirs, untrusted_files
from testbed.store.kernels import git_repository
from testbed.store.kernels.ablations import Ablation, apply_ablation
from testbed.store.kernels.patches import Patch, explain_refusal, has_no_place, has_wrong_counts, touched_files
from testbed.text import parse_json

_STATE = "changed.json"
_ORIGINALS = "originals"
_NEW = "testbed-new"
# Linux 6.12 has 87,000 files, with names of 130 bytes at most, below 12 folders; a release changes some 15,000 of them.
_MOST_NAME_BYTES, _MOST_DEPTH, _MOST_FILES = 255, 32, 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of a file: its bytes, and whether it is executable."""

    data: bytes
    executable: bool = False


class Tree:
    """The tree in `folder`/tree; the caller holds the lock of the source. Original files are kept beside the tree.

    A killed process leaves the tree in a known state: each file is as it was, or the state file names it and says
    whether it existed; then its copy beside the tree is complete. `apply_changes` brings any such tree to the wanted
    state.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tree = folder / "tree"

    def _pristine(self, path: str, changed: Collection[str]) -> Path:
        """Return where the original of a file is, if it existed. `changed`: the files that are changed now.

        :raise BuildError: the path leads out of the tree, is a link, or is not a valid name.
        """
        parts = path.split("/")
        if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts) or "\0" in path:
            raise BuildError(f"{path}: expected a file inside the source")
        size_bytes = len(path.encode("utf-8", "surrogatepass"))
        if size_bytes > _MOST_NAME_BYTES or len(parts) > _MOST_DEPTH or "\ufffd" in path:
            raise BuildError(
                f"{path[:100]}: expected a name in UTF-8 of at most {_MOST_NAME_BYTES} bytes and {_MOST_DEPTH} "
                f"folders, got {size_bytes}"
            )
        if any((self._tree / part).is_symlink() for part in (Path(path), *Path(path).parents)):
            raise BuildError(f"{path}: expected a regular file of the source, got a link")
        return (self._folder / _ORIGINALS / path) if path in changed else (self._tree / path)

    def _changed(self) -> dict[str, bool]:
        """Read the changed files, and whether each existed before."""
        state = self._folder / _STATE
        return dict(parse_json(state.read_text(encoding="utf-8"))) if state.exists() else {}

    async def plan_changes(
        self, series: Iterable[Patch], reverts: Iterable[Patch], ablations: Iterable[Ablation]
    ) -> dict[str, Content | None]:
        """Return the files that would change, with their new content (None: removed), and change nothing.

        :raise BuildError: a patch or an edit does not fit; the message says where, and what is there.
        """
        with tempdirs.temporary() as folder:
            scratch, file = folder / "tree", folder / "patch"
            scratch.mkdir()
            changed = self._changed()
            exists: dict[str, bool] = {}
            for patch, reverse in (*((one, False) for one in series), *((one, True) for one in reverts)):
                file.write_bytes(patch.text.encode("utf-8", "surrogateescape"))
                git = _GitApply(patch=patch, file=str(file), scratch=scratch)
                files = await git.files()
                if len(files | exists.keys()) > _MOST_FILES:
                    raise BuildError(
                        f"{patch.name}: expected a series that changes at most {_MOST_FILES} files, got more"
                    )
                self._copy_originals(files - exists.keys(), scratch, changed)
                await git.apply(reverse=reverse)
                exists |= {path: (scratch / path).is_file() for path in files}
                if (why := self._collision(exists, files)) is not None:
                    raise BuildError(f"{patch.name}: cannot be {'reverted' if reverse else 'applied'}: {why}")
            for ablation in ablations:
                edited = {edit.file for way in ablation.ways for edit in way}
                self._copy_originals(edited - exists.keys(), scratch, changed)
                exists |= dict.fromkeys(edited, True)
                for path, text in apply_ablation(ablation, lambda path: _text(scratch / path)).items():
                    (scratch / path).write_bytes(text.encode("utf-8", "surrogateescape"))
            found: dict[str, Content | None] = {}
            for path in sorted(exists):
                new = _content(scratch / path)
                if _content(self._pristine(path, changed)) != new:
                    found[path] = new
            return found

    def _copy_originals(self, paths: Iterable[str], scratch: Path, changed: Collection[str]) -> None:
        for path in paths:
            before = self._pristine(path, changed)
            if before.is_file():
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(before, scratch / path)

    def _collision(self, wanted: Mapping[str, bool], paths: Collection[str]) -> str | None:
        """Return why the unchanged tree cannot have the files of `paths` in the presence of the others, or None: a file
        is where another one has a folder, or the reverse.

        `wanted`: whether each file is to exist.
        """
        before = self._changed()

        def exists(path: str) -> bool:
            if path in wanted:
                return wanted[path]
            return before[path] if path in before else (self._tree / path).is_file()

        # Each folder that holds files, with one of them.
        inside = {
            str(above): one
            for one in sorted({*before, *wanted}, reverse=True)
            if exists(one)
            for above in PurePosixPath(one).parents
        }
        for path in (path for path in paths if wanted[path]):
            if (above := next((str(one) for one in PurePosixPath(path).parents if exists(str(one))), None)) is not None:
                return f"{path}: expected a folder {above}, which is a file of the source"
            below = [
                str(one.relative_to(self._tree)) for one in untrusted_files.walk(self._tree / path) if not one.is_dir()
            ]
            found = [one for one in below if exists(one)] + ([inside[path]] if path in inside else [])
            if found:
                return f"{path}: expected no folder of that name, got that of {min(found)}"
        return None

    def apply_changes(self, wanted: Mapping[str, Content | None]) -> None:
        """Bring the tree to its original state with these changes; also repairs what a killed run has left.

        :raise BuildError: a file cannot be where it is wanted; nothing is changed then.
        """
        if (
            why := self._collision({path: content is not None for path, content in wanted.items()}, wanted)
        ) is not None:
            raise BuildError(f"source: {why}")
        before = self._changed()
        self._remove_originals(before)
        for path in wanted.keys() - before.keys():
            if self._pristine(path, before).is_file():
                _write(self._folder / _ORIGINALS / path, _content(self._tree / path), self._folder)
        known = before | {path: (self._tree / path).is_file() for path in wanted.keys() - before.keys()}
        self._write_state(known)
        contents = {
            path: wanted[path] if path in wanted else _content(self._folder / _ORIGINALS / path) if existed else None
            for path, existed in known.items()
        }
        # First the removals: a folder may replace a file, and the reverse.
        for path, content in sorted(contents.items(), key=lambda one: one[1] is not None):
            _write(self._tree / path, content, self._folder)
        self._write_state({path: known[path] for path in wanted})
        self._remove_originals(wanted)

    def _remove_originals(self, changed: Collection[str]) -> None:
        """Remove the copies of files that are in their original state again."""
        originals = self._folder / _ORIGINALS
        for path in tuple(untrusted_files.walk(originals)):
            if not path.is_dir() and str(path.relative_to(originals)) not in changed:
                _write(path, None, self._folder)

    def _write_state(self, changed: Mapping[str, bool]) -> None:
        _write(self._folder / _STATE, Content(data=json.dumps(changed, sort_keys=True).encode()), self._folder)


def content_hashes(wanted: Mapping[str, Content | None]) -> dict[str, str]:
    """Return the changed files with the hashes of their new content and its executable bit; empty for a removed
    file.
    """

    def digest(content: Content) -> str:
        return hashlib.sha256(content.data).hexdigest() + ("+x" if content.executable else "")

    return {path: "" if content is None else digest(content) for path, content in wanted.items()}


def _content(path: Path) -> Content | None:
    return (
        Content(data=path.read_bytes(), executable=bool(path.stat().st_mode & stat.S_IXUSR)) if path.is_file() else None
    )


def _text(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def _write(path: Path, content: Content | None, folder: Path) -> None:
    """Write a file if it differs. Its time is always now, since objects made from its content in between are older.

    `folder`: contains the path; a new file is written there first, so that it is never there in part, even after a
    power cut. An empty folder counts as none: git has no empty folders, and a killed run may not have removed one.
    """
    if content is None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            for parent in path.parents:
                if parent == folder or parent.parent == folder:
                    break
                parent.rmdir()
        return
    if not path.is_symlink() and _content(path) == content:
        return
    for parent in reversed(path.parents):
        if parent.is_relative_to(folder) and not parent.is_dir():
            parent.mkdir()
            parent.chmod(0o755)
    if path.is_dir():
        for empty in (*reversed(tuple(untrusted_files.walk(path))), path):
            empty.rmdir()
    new = folder / _NEW
    with new.open("wb") as file:
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o755 if content.executable else 0o644)
    new.replace(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _GitApply:
    """Runs `git apply` of one patch, which is also in `file`, on the files in `scratch`."""

    patch: Patch
    file: str
    scratch: Path

    async def _run(self, *words: str) -> process.Finished:
        # The scratch folder may be inside a repository, whose paths git would take these for; and the user's settings
        # for white space would change bytes. GIT_DIR is outside of it, since a patch could make it a repository.
        nowhere = self.scratch.parent / "no-repository"
        environment = git_repository.git_environment() | {
            "GIT_CEILING_DIRECTORIES": str(self.scratch.parent),
            "GIT_DIR": str(nowhere),
        }
        argv = ["git", "apply", f"-p{self.patch.strip}", *words, self.file]
        return await process.run(argv, env=environment, folder=self.scratch, check=False)

    def _refused(self, stderr: str, *, reverse: bool) -> str:
        return explain_refusal(self.patch, stderr, lambda path: _text(self.scratch / path), reverse=reverse)

    async def files(self) -> frozenset[str]:
        """Return the files that the patch may touch; some may not exist.

        :raise BuildError: it is not a patch, or not one of text in regular files.
        """
        found: frozenset[str] = frozenset()
        # In reverse it names the old names of renamed files.
        for way in ((), ("-R",)):
            done = await self._run(*way, "--numstat", "--summary", "-z")
            if done.status != 0:
                raise BuildError(self._refused(done.stderr, reverse=False))
            found |= touched_files(done.stdout, self.patch.name)
        return found

    async def apply(self, *, reverse: bool) -> None:
        """:raise BuildError: the patch does not fit; the message says where."""
        if (why := has_wrong_counts(self.patch) or has_no_place(self.patch, reverse=reverse)) is not None:
            raise BuildError(why)
        done = await self._run("--verbose", *(["-R"] if reverse else []))
        if done.status == 0:
            return
        fits_otherwise = (await self._run("--check", *([] if reverse else ["-R"]))).status == 0
        why = self._refused(done.stderr, reverse=reverse)
        if fits_otherwise:
            why += (
                "\n    it is not in this source"
                if reverse
                else "\n    it is in this source already: --revert reverts it"
            )
        raise BuildError(why)
