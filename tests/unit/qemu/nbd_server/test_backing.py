"""Backings of an export: the volatile cache, and a file."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from testbed.qemu.nbd_server.backing import DiscardingBacking, FileBacking, VolatileCache
from tests.support.nbd_server import KIB, Memory, Sparse

writes = st.lists(st.tuples(st.integers(0, 60 * KIB), st.binary(min_size=1, max_size=4 * KIB)), max_size=12)


@given(done=writes, room=st.integers(1, 64 * KIB))
def test_a_cache_returns_what_was_written_and_a_flush_writes_it_to_the_backing(
    done: list[tuple[int, bytes]], room: int
) -> None:
    below, plain = Memory(64 * KIB), Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=room, lies=False)
    for offset, data in done:
        cache.write(offset, data)
        plain.write(offset, data)
        assert cache.read(0, 64 * KIB) == plain.data
    cache.flush()
    assert below.data == plain.data


def test_a_power_cut_loses_unflushed_blocks_and_the_same_seed_loses_the_same_ones() -> None:
    def survivors(seed: int) -> bytes:
        below = Memory(1024 * KIB)
        cache = VolatileCache(below, room_bytes=1 << 20, lies=False)
        cache.write(0, b"f" * 8 * KIB)
        cache.flush()
        cache.write(8 * KIB, b"u" * 400 * KIB)
        lost = cache.settle(0.5, seed)
        assert below.read(0, 8 * KIB) == b"f" * 8 * KIB
        assert lost == 100 - below.data.count(b"u") // (4 * KIB) and 20 < lost < 80
        return bytes(below.data)

    assert survivors(1) == survivors(1) != survivors(2)


def test_a_lying_cache_loses_flushed_blocks() -> None:
    below = Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=1 << 20, lies=True)
    cache.write(0, b"x" * 4 * KIB)
    cache.flush()
    assert below.read(0, 4 * KIB) == bytes(4 * KIB)
    assert cache.settle(0.0) == 1


def test_a_full_cache_writes_out_the_oldest_block() -> None:
    below = Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=8 * KIB, lies=True)
    for number in range(3):
        cache.write(number * 4 * KIB, bytes([number + 1]) * 4 * KIB)
    assert below.read(0, 4 * KIB) == b"\1" * 4 * KIB
    assert below.read(4 * KIB, 8 * KIB) == bytes(8 * KIB)


def test_a_file_is_written_read_and_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * KIB))
    with path.open("r+b") as file:
        store = FileBacking(file.fileno(), room_bytes=128 * KIB)
        store.write(4 * KIB, b"y" * 4 * KIB)
        assert path.read_bytes()[4 * KIB : 8 * KIB] == b"y" * 4 * KIB
        store.trim(4 * KIB, 4 * KIB)
        assert store.read(0, 128 * KIB) == bytes(128 * KIB), "also what it has not grown to"


def test_a_discarding_backing_reads_as_zeros() -> None:
    store = DiscardingBacking(64 * KIB)
    store.write(0, b"z")
    assert store.read(0, 2) == b"\0\0"


def test_a_large_trim_does_not_fill_the_cache_and_can_be_lost_as_a_write_can() -> None:
    below = Sparse(1 << 42)
    cache = VolatileCache(below, room_bytes=64 * KIB, lies=False)
    cache.trim(2 * KIB, 1 << 40)
    # All but the last 16 blocks, which are in the cache and can be lost; the cut ones at both ends have taken the place
    # of two.
    end = (1 << 40) // (4 * KIB)
    assert below.trimmed[0] == (4 * KIB, (end - 17) * 4 * KIB)
    cache.flush()
    numbers = sorted(offset // (4 * KIB) for offset, length in below.trimmed[1:] if length == 4 * KIB)
    assert numbers == list(range(end - 16, end))


def test_a_disk_that_ends_within_a_block_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(5 * KIB))
    with (tmp_path / "disk").open("r+b") as file:
        cache = VolatileCache(FileBacking(file.fileno()), room_bytes=64 * KIB, lies=False)
        cache.write(4 * KIB, b"x" * KIB)
        cache.flush()
    assert (tmp_path / "disk").read_bytes() == bytes(4 * KIB) + b"x" * KIB
