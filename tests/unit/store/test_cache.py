import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.cli import doctor
from testbed.errors import HostError
from testbed.host import other_users
from testbed.progress import Silent
from testbed.store import cache, image, unshare
from tests.support.fake_kernel_source import IMAGES
from tests.support.lock_holder import lock_holder


class Recorder(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


async def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    made: list[Path] = []

    async def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        (folder / "content").write_text("x")
        return {"n": len(made)}

    for _ in range(2):
        assert await cache.make_once(tmp_path / "key", make, Silent(), "thing") == tmp_path / "key"
    assert len(made) == 1 and made[0] != tmp_path / "key"
    assert cache.read_meta(tmp_path / "key") == {"n": 1}


async def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    made = 0

    async def make(folder: Path) -> dict[str, Any]:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return {}

    recorder = Recorder()
    await asyncio.gather(*(cache.make_once(tmp_path / "key", make, recorder, "thing") for _ in range(5)))
    assert made == 1
    assert (
        recorder.notes == [f"thing: waiting for another part of this command, which holds {tmp_path / 'key.lock'}"] * 4
    )


async def test_who_holds_a_lock_is_named_while_it_is_waited_for(tmp_path: Path) -> None:
    recorder = Recorder()

    async def make(folder: Path) -> dict[str, Any]:
        return {}

    with lock_holder(tmp_path / "key.lock") as other:
        assert other.stdin is not None
        waiting = asyncio.create_task(cache.make_once(tmp_path / "key", make, recorder, "thing"))
        while not recorder.notes:
            await asyncio.sleep(0)
        assert not waiting.done()
        other.stdin.close()
        await waiting
    (note,) = recorder.notes
    assert (
        note.startswith(f"thing: waiting for pid {other.pid} of {other_users.user_name(os.geteuid())}, since 20")
        and sys.executable in note
    )
    assert note.endswith(f", which holds {tmp_path / 'key.lock'}")
    await cache.make_once(tmp_path / "another", make, recorder, "thing")
    assert stat.S_IMODE((tmp_path / "another.lock").stat().st_mode) == 0o600, "nobody else can open it, and hold it"


async def test_a_failure_half_way_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    async def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise HostError("no network")

    with pytest.raises(HostError, match="no network"):
        await cache.make_once(tmp_path / "key", fail, Silent(), "thing")
    assert not (tmp_path / "key").exists()
    assert not list(tmp_path.glob(".unfinished-*"))


async def test_what_a_killed_run_left_is_swept_away(tmp_path: Path) -> None:
    leftover = tmp_path / ".unfinished-key-abc"
    leftover.mkdir()
    (leftover / "half").write_text("x")

    async def make(folder: Path) -> dict[str, Any]:
        return {}

    await cache.make_once(tmp_path / "key", make, Silent(), "thing")
    assert not leftover.exists()


async def test_no_room_is_said_with_its_place(tmp_path: Path) -> None:
    async def make(folder: Path) -> dict[str, Any]:
        raise OSError(28, "No space left on device", str(folder / "root.ext4"))

    with pytest.raises(HostError, match=r"image: .*root\.ext4: No space left on device; the cache is"):
        await cache.make_once(tmp_path / "key", make, Silent(), "image")


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_record_says_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / cache.META).write_text(content)
    with pytest.raises(HostError, match="remove"):
        cache.read_meta(tmp_path)


def test_the_record_is_json(tmp_path: Path) -> None:
    (tmp_path / cache.META).write_text(json.dumps({"a": 1}))
    assert cache.read_meta(tmp_path) == {"a": 1}


async def test_where_there_can_be_no_namespaces_no_image_is_built_and_the_doctor_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await unshare.why_unavailable() == ""
    monkeypatch.setattr(unshare, "_APART", ("sh", "-c", "echo no such luck >&2; exit 1"))
    with pytest.raises(
        HostError,
        match="mmdebstrap cannot have namespaces of its own: no such luck; `testbed doctor` says what that needs",
    ):
        await image.build_image("bookworm", IMAGES, tmp_path, Silent())
    assert "an image cannot be built" in " ".join(complaint.what for complaint in await doctor.find_complaints(None))


def test_what_others_of_its_users_own_goes_with_an_unfinished_folder(tmp_path: Path) -> None:
    """An unprivileged user needs a program in the same kind of user namespace to remove the folder."""
    (folder := tmp_path / "unfinished").mkdir()
    making = ("sh", "-c", 'mkdir -m 700 "$0/theirs" && touch "$0/theirs/file" && chown -R 5:5 "$0/theirs"', str(folder))
    subprocess.run([*unshare._as_root(), *making], check=True)
    assert (folder / "theirs").stat().st_uid != os.geteuid()
    assert unshare.remove(folder) and not folder.exists()
