"""Processes in the build jail: all of them end with the build, however it ends."""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from testbed.host import tempdirs, untrusted_files
from testbed.store import cache, gc
from testbed.store.kernels import build_jail
from testbed.store.kernels.build_jail import BuildJail
from tests.security.test_build_jail import MARK, NAMES, WAYS, left_asleep, ways


@ways
async def test_it_ends_with_its_status_and_by_a_signal_of_ours_with_all_that_it_started(
    tmp_path: Path, way: BuildJail
) -> None:
    assert (await build_jail.run_in_jail(way, ["sh", "-c", "exit 3"], folder=Path("/"), check=False)).status == 3
    assert (await build_jail.run_in_jail(way, ["sh", "-c", "kill -9 $$"], folder=Path("/"), check=False)).status == 137
    (tmp_path / "out").mkdir()
    build_jail.give_ownership(way, tmp_path / "out")
    stays = f"(trap '' TERM; sleep {MARK}) & while :; do sleep 0.1; done"
    script = f"trap 'echo ended >{tmp_path}/out/ended; exit 2' TERM; echo up >{tmp_path}/out/up; {stays}"
    running = asyncio.create_task(
        build_jail.run_in_jail(
            way, ["sh", "-c", script], folder=tmp_path / "out", mounts=build_jail.Mounts(write=(tmp_path / "out",))
        )
    )
    while not (tmp_path / "out/up").exists():
        assert not running.done()
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tmp_path / "out/ended").read_text() == "ended\n"
    assert not left_asleep()


_RUNNING = """\
import asyncio, sys
from pathlib import Path
from testbed.store.kernels import build_jail
from testbed.store.kernels.build_jail import BuildJail
from tests.security import test_build_jail
out = Path(sys.argv[1])
way = test_build_jail.WAYS[int(sys.argv[2])]
build_jail.give_ownership(way, out)
script = f"(trap '' TERM; exec sleep 3602) & echo up >{out}/new; mv {out}/new {out}/up; wait"
asyncio.run(build_jail.run_in_jail(way, ["sh", "-c", script], folder=out, mounts=build_jail.Mounts(write=(out,))))
"""


def sleepers() -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [path] if b"sleep\x003602" in path.read_bytes() else []
    return found


@pytest.mark.parametrize("way", range(len(WAYS)), ids=NAMES)
def test_all_of_it_ends_with_a_testbed_that_is_killed(tmp_path: Path, way: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", _RUNNING, tmp_path, str(way)], cwd=Path(__file__).parents[2])
    while not (tmp_path / "up").exists():
        assert child.poll() is None
        os.sched_yield()
    assert sleepers()
    child.kill()
    child.wait()
    while sleepers():
        os.sched_yield()


def test_a_folder_that_is_nested_without_end_is_listed_measured_and_removed(tmp_path: Path) -> None:
    nest = f"import os\nfor _ in range({sys.getrecursionlimit() * 3}): os.mkdir('d'); os.chdir('d')"

    def nested(folder: Path) -> Path:
        folder.mkdir(parents=True)
        subprocess.run([sys.executable, "-c", nest], cwd=folder, check=True)
        return folder

    assert len(tuple(untrusted_files.walk(nested(tmp_path / "deep")))) > sys.getrecursionlimit()
    untrusted_files.remove_folder(tmp_path / "deep")
    source = nested(tmp_path / "cache/sources/git-x/out-x").parent
    (source / cache.META).write_text("{}")
    assert [piece.folder for piece in gc.list_entries(tmp_path / "cache")] == [source] and gc.remove(source)
    with tempdirs.temporary() as scratch:
        nested(scratch / "tmp")
    assert not (tmp_path / "deep").exists() and not source.exists() and not scratch.exists()
