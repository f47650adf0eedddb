"""Hosts with a fault: full or read-only disks, no memory, unusual paths; see `faults.py`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host import process
from testbed.store.kernels.kernel_files import KernelFiles
from tests.support import places
from tests.support.faults import expect
from tests.support.places import Places
from tests.support.values import APART, may_mount

WRITES = 'dd if=/dev/urandom of="$DEV_DATA" bs=1M count=200 oflag=direct; sleep 600\n'
TINY = "version: 1\nguests:\n  tiny: {cpus: 1, memory: 256M, disks: {data: {type: virtio-blk, size: 256M}}}\n"


def repro(script: str) -> tuple[str, ...]:
    return (
        "repro",
        "--script",
        script,
        "--expect",
        "^never$",
        "-k",
        "debian-6.1",
        "-n",
        "1",
        "--timeout",
        "120s",
        "-q",
        "--json",
        "-t",
        "tiny.yaml",
    )


@pytest.fixture
def own() -> Iterator[Places]:
    with places.made() as found:
        found.file("writes.sh", WRITES)
        found.file("ends.sh", "true\n")
        found.file("tiny.yaml", TINY)
        yield found


@pytest.fixture(scope="module")
def apart() -> tuple[str, ...]:
    """Start a shell that may mount; it runs its first argument, and then executes the rest."""
    if not may_mount():
        pytest.skip("small disks are mounted in a namespace, which this machine does not let us have")
    return APART


def mounted(apart: tuple[str, ...], how: str) -> tuple[str, ...]:
    return (*apart, "sh", "-ec", f'{how}; exec "$@"', "sh")


# $1: the cache, $2: a Python; then the command. The mounts end with this script, so it lists itself what is left
# there, after a `gc`.
_SMALL = """\
cache=$1 python=$2; shift 2
"$@" || status=$?
"$python" -m testbed gc --unused-for 9999d --larger-than 999T -q >/dev/null 2>&1 || true
find "$cache" '(' -path '*/scratch/*' -o -name '.unfinished-*' ')' >"$cache/../left"
exit "${status:-0}"
"""


def full(own: Places, apart: tuple[str, ...], how: str) -> tuple[str, ...]:
    """Return a prefix like `mounted`, with the cache or a part of it on the small disk; `left` lists what remains."""
    return (*apart, "sh", "-ec", f"{how}\n{_SMALL}", "sh", str(own.cache), sys.executable)


def nothing_is_left_there(own: Places) -> None:
    assert (own.cache.parent / "left").read_text() == ""


@pytest.mark.slow
async def test_the_disk_is_full_below_the_cache(own: Places, apart: tuple[str, ...]) -> None:
    small = full(own, apart, f"mount -t tmpfs -o size=48m,mode=700 tmpfs '{own.cache}/scratch'")
    with expect("host disk full: cache") as met:
        ended = met.by(await own.run(*repro("writes.sh"), within=small, status=None))
        assert "this machine's disk is full; make room there" in ended.err
        await own.nothing_left()
    nothing_is_left_there(own)
    assert list(own.state.glob("runs/*/**/console.log"))


@pytest.mark.slow
async def test_the_disk_is_full_where_a_template_is_made(own: Places, apart: tuple[str, ...]) -> None:
    shared = [path for path in own.cache.iterdir() if path.is_symlink() and path.name != "templates"]
    links = " && ".join(f"ln -s '{path.readlink()}' '{path}'" for path in shared)
    small = full(
        own, apart, f"mount -t tmpfs -o size=48m,mode=700 tmpfs '{own.cache}' && {links} && mkdir '{own.cache}/scratch'"
    )
    with expect("host disk full: template") as met:
        ended = met.by(await own.run(*repro("ends.sh"), within=small, status=None))
        assert "this machine's disk is full; make room there" in ended.err
        await own.nothing_left()
    nothing_is_left_there(own)
    assert list(own.state.glob("runs/*/**/console.log"))


@pytest.mark.slow
async def test_the_disk_is_full_below_the_runs(own: Places, apart: tuple[str, ...]) -> None:
    with expect("host disk full: runs") as met:
        for size in ("16k", "40k"):
            small = mounted(apart, f"mount -t tmpfs -o size={size},mode=700 tmpfs '{own.state}/runs'")
            ended = met.by(await own.run(*repro("ends.sh"), within=small, status=None))
            assert "No space left on device" in ended.err or "disk is full" in ended.err, ended
        await own.nothing_left()


# The first try of this seed prints nothing; the next one prints more than the disk can hold, so that this try or the
# one after it cannot be stored.
FILLS = '[ "$SEED" = 1 ] || yes it fills the disk | head -c 9M\n'
_KEPT = """\
runs=$1 kept=$2; shift 2
mount -t tmpfs -o size=10m,mode=700 tmpfs "$runs"
"$@" || status=$?
cp "$runs"/*/repro.json "$runs"/*/report.html "$runs"/*/junit.xml "$kept"
exit "${status:-0}"
"""


@pytest.mark.slow
async def test_a_disk_that_fills_up_keeps_the_results_so_far(own: Places, apart: tuple[str, ...]) -> None:
    small = (*apart, "sh", "-ec", _KEPT, "sh", str(own.state / "runs"), str(own.root))
    own.file("fills.sh", FILLS)
    words = [*repro("fills.sh"), "--seed", "0", "-j", "1", "--all"]
    words[words.index("-n") + 1] = "3"
    ended = await own.run(*words, within=small, status=2)
    assert re.search(r"No space left on device|this machine's disk is full", ended.err)
    document = json.loads((own.root / "repro.json").read_text())
    (kernel,) = document["kernels"]
    known = len(kernel["attempts"])
    assert document["result"] == "unfinished" and kernel["attempts"][0]["outcome"] == "miss" and known in (1, 2)
    assert document["partial"]["ended"] == known and re.search(
        r"No space left|disk is full", document["partial"]["why"]
    )
    for name in ("report.html", "junit.xml"):
        assert f"{known} of at most 3 tries ended; " in (own.root / name).read_text()
    await own.nothing_left()


@pytest.mark.slow
async def test_a_run_exceeds_its_disk_limit(own: Places) -> None:
    with expect("more than a run may take") as met:
        ended = met.by(await own.run(*repro("writes.sh"), status=None, TESTBED_RUN_LIMIT="32M"))
        assert "of this machine's disks, and may take 32M; allow more with TESTBED_RUN_LIMIT" in ended.err
        await own.nothing_left()
    assert list(own.state.glob("runs/*/**/console.log"))
    assert (
        "TESTBED_RUN_LIMIT=much: expected a size"
        in (await own.run(*repro("ends.sh"), status=2, TESTBED_RUN_LIMIT="much")).err
    )


@pytest.mark.slow
async def test_with_debug_there_are_the_log_and_the_traceback(own: Places) -> None:
    started = await own.start("--debug", *repro("writes.sh"), TESTBED_RUN_LIMIT="32M")
    _, err = await started.communicate()
    lines = err.decode().splitlines()
    assert any(re.fullmatch(r"debug: [\d.]+ debian-6\.1-1: g0: ready: SSH answered", line) for line in lines), lines
    assert "Traceback (most recent call last):" in lines and "TB200: see docs/errors.md" in lines
    await own.nothing_left()


async def test_the_cache_is_read_only(own: Places, apart: tuple[str, ...]) -> None:
    fixed = mounted(apart, f"mount --bind '{own.cache}' '{own.cache}' && mount -o remount,bind,ro '{own.cache}'")
    with expect("read-only cache") as met:
        ended = met.by(await own.run(*repro("ends.sh"), within=fixed, status=None))
        assert "Read-only file system" in ended.err and "TESTBED_CACHE" in ended.err
        await own.nothing_left()


async def test_no_folder_for_sockets_can_be_made(own: Places, apart: tuple[str, ...]) -> None:
    # The fallback in /tmp fails as well: its folder there has another mode.
    nowhere = mounted(apart, "own=/tmp/testbed-$(id -u); mkdir -p $own; mount -t tmpfs -o ro tmpfs $own")
    with expect("unwritable runtime dir") as met:
        ended = met.by(await own.run("ps", "--json", within=nowhere, status=None, XDG_RUNTIME_DIR="/proc/1"))
    assert (
        re.search(r"/tmp/testbed-\d+: expected a folder of uid \d+ with mode 0700", ended.err)
        and "set XDG_RUNTIME_DIR" in ended.err
    )


@pytest.mark.slow
async def test_no_memory_for_a_guest(own: Places) -> None:
    own.file("tiny.yaml", TINY.replace("256M,", "4G,", 1))
    little = ("prlimit", "--as=3000000000")
    with expect("no memory for a guest") as met:
        ended = met.by(await own.run(*repro("ends.sh"), within=little, status=None))
        assert "QEMU does not start" in ended.err and "memory" in ended.err
        await own.nothing_left()
    assert list(own.state.glob("runs/*/**/qemu.log"))


async def test_a_kernel_is_truncated(own: Places, kernel: KernelFiles) -> None:
    whole = kernel.bzimage.read_bytes()
    with expect("truncated kernel") as met:
        for size, said in (
            (len(whole) // 2, "truncated: its header promises"),
            (100, "expected a bzImage"),
            (0, "expected a bzImage"),
        ):
            (own.root / "bzImage").write_bytes(whole[:size])
            ended = met.by(await own.run("run", "gate", "-k", str(own.root / "bzImage"), "-q", "--json", status=None))
            assert said in ended.err
        await own.nothing_left()


@pytest.mark.slow
async def test_another_qemu_is_named(own: Places) -> None:
    """Create another QEMU beside the installed one, as after extracting a package to a folder."""
    for made_for_it in ("templates", "probes"):
        (own.cache / made_for_it).unlink()
    installed = process.find("qemu-system-x86_64").resolve()
    with tempfile.TemporaryDirectory(prefix="tb-qemu-") as prefix:
        Path(prefix).chmod(0o755)  # QEMU's user must be able to enter it
        other = Path(prefix) / "bin" / "qemu-system-x86_64"
        other.parent.mkdir()
        shutil.copy(installed, other)
        for beside in ("lib", "share"):
            (Path(prefix) / beside).symlink_to(installed.parent.parent / beside)
        try:
            await own.run("--qemu", str(other), "up", "tiny.yaml", "-q", "--cold")  # no template for this QEMU alone
            assert [words.split()[0] for words in own.processes().values() if "-machine" in words] == [str(other)]
        finally:
            await own.run("down", "--all")
        await own.nothing_left()
    assert (
        f"QEMU '{other}': there is no such program"
        in (await own.run("--qemu", str(other), "up", "tiny.yaml", "-q", status=2)).err
    )


@pytest.mark.slow
async def test_odd_paths_and_no_home() -> None:
    with places.made(name="a path, with späces=and ünicode") as own:
        # Relative paths start at the folder of the command or of its file; the supervisor works in another one.
        own.file("tiny.yaml", TINY.replace("256M}}}", "256M, image: an image.img}}}"))
        (own.root / "an image.img").write_bytes(b"of the image" + bytes(500))
        (own.root / "temporary files").mkdir()
        bare = (
            "env",
            "--unset=HOME",
            "--unset=XDG_CACHE_HOME",
            "--unset=XDG_STATE_HOME",
            f"TMPDIR={own.root}/temporary files",
        )
        relative = (
            *bare,
            *(
                f"TESTBED_{name}={os.path.relpath(path, own.root)}"
                for name, path in (("STATE", own.state), ("CACHE", own.cache))
            ),
        )
        with expect("spaces and unicode in paths, TMPDIR elsewhere, no HOME"):
            try:
                await own.run("up", "tiny.yaml", "-k", "debian-6.1", "-q", within=relative)
                assert (await own.run("ssh", "tiny", "--", "head -c 12 /dev/vdc", within=bare)).out == "of the image"
                await own.run("snapshot", "tiny", "good", within=bare)
                await own.run("restore", "tiny", "good", within=bare)
                assert (await own.run("ssh", "tiny", "--", "echo a  b", within=bare)).out == "a b\n"
                # What a guest could leave that controls its QEMU.
                with (own.state / "snapshots/tiny/good/disks/root.qcow2").open("r+b") as file:
                    file.seek(79)
                    file.write(b"\x04")
                said = (await own.run("restore", "tiny", "good", within=bare, status=2)).err
                assert "root.qcow2: expected a disk that stands alone, got one whose data is in another file" in said
            finally:
                await own.run("down", "--all", within=bare)
            await own.nothing_left()
        # Python's search for libraries runs gcc, which leaves some there.
        assert not list((own.root / "temporary files").glob("*testbed*"))
