"""Archives of a hostile guest that tries to write elsewhere or to fill the host's memory."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from testbed.api import files
from testbed.errors import HostError
from testbed.store import archives


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), mode
    return info, data


def archive(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # of the three that the tests use
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return path


def sparse(name: str, size: int, *places: tuple[int, int]) -> tarfile.TarInfo:
    """Make the header of a sparse file in GNU tar's oldest format (`tar --format=gnu`)."""

    class Sparse(tarfile.TarInfo):
        def tobuf(self, *_: object, **__: object) -> bytes:
            header = bytearray(super().tobuf(tarfile.GNU_FORMAT))
            fields = b"".join(tarfile.itn(number, 12, tarfile.GNU_FORMAT) for place in places for number in place)  # type: ignore[attr-defined]  # no stub has it
            header[386 : 386 + len(fields)] = fields
            header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]  # no stub has it
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            return bytes(header)

    info = Sparse(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, sum(size for _, size in places) & 0xFFFF
    return info


def chain() -> list[tuple[tarfile.TarInfo, bytes]]:
    """Make links whose path exceeds PATH_MAX, so that a check of their target stops early (CVE-2025-4517)."""
    links, deep, steps = [], "", "abcdefghijklmnop"
    for step in steps:
        folder = "d" * 247
        links += [
            entry(f"{deep}{folder}", tarfile.DIRTYPE, mode=0o755),
            entry(f"{deep}{step}", tarfile.SYMTYPE, folder),
        ]
        deep += f"{folder}/"
    short = "/".join(steps)
    return [
        *links,
        entry(f"{short}/{'l' * 254}", tarfile.SYMTYPE, "../" * len(steps)),
        entry("escape", tarfile.SYMTYPE, f"{short}/{'l' * 254}/../.."),
        entry("escape/owned", data=b"owned"),
    ]


# Archives that are refused, and entries that are left out and named.
HOSTILE = {
    "below a link": [entry("out", tarfile.SYMTYPE, "../.."), entry("out/owned", data=b"owned")],
    "a way up": [entry("../owned", data=b"owned")],
    "a path of this machine": [entry("/tmp/testbed-owned", data=b"owned")],
    "a file larger than any": [(sparse("owned", 1 << 50), b"")],
}
LEFT_OUT = {
    "a chain of links": (chain()[:-1], "escape (a link to"),
    "a link out": ([entry("out", tarfile.SYMTYPE, "../..")], "out (a link to '../..', out of what is copied)"),
    "a link to a path": (
        [entry("out", tarfile.SYMTYPE, "/etc/passwd")],
        "out (a link to '/etc/passwd', out of what is copied)",
    ),
    "a link by a link": (
        [
            entry("d", tarfile.DIRTYPE, mode=0o755),
            entry("here", tarfile.SYMTYPE, "d"),
            entry("out", tarfile.SYMTYPE, "here/../.."),
        ],
        "out (a link to 'here/../..', out of what is copied)",
    ),
    "a hard link": ([entry("owned", tarfile.LNKTYPE, "../../secret")], "owned (a hard link to '../../secret')"),
    "a hard link to a link": (
        [entry("x", tarfile.SYMTYPE, "../../secret"), entry("owned", tarfile.LNKTYPE, "x")],
        "owned (a hard link to 'x')",
    ),
    "a pipe": ([entry("pipe", tarfile.FIFOTYPE)], "pipe (a pipe)"),
    "a device": ([entry("null", tarfile.CHRTYPE)], "null (a device)"),
}


def test_nothing_of_an_archive_gets_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for number, entries in enumerate(HOSTILE.values()):
        with pytest.raises(HostError, match="what the guest gave cannot be unpacked"):
            archives.unpack(archive(tmp_path / "tar", *entries), tmp_path / "in" / str(number))
    for number, (entries, named) in enumerate(LEFT_OUT.values(), start=len(HOSTILE)):
        left_out = archives.unpack(archive(tmp_path / "tar", *entries), tmp_path / "in" / str(number))
        assert any(message.startswith(named) for message in left_out), (named, left_out)
    inside = tmp_path / "in"
    assert not [path for path in tmp_path.rglob("*") if "owned" in path.name]
    assert all(path.resolve().is_relative_to(inside) for path in inside.rglob("*") if path.is_symlink())
    assert not Path("/tmp/testbed-owned").exists()


@pytest.mark.parametrize("places", [((0, 5), (3, 5)), ((4096, 5), (0, 5)), ((0, 1 << 40),), ((-5, 5),)])
def test_a_sparse_file_whose_places_are_nonsense_is_refused(
    places: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    (tmp_path / "tar").write_bytes(sparse("file", 8192, *places).tobuf() + bytes(10240))
    with pytest.raises(HostError, match="cannot be unpacked"):
        archives.unpack(tmp_path / "tar", tmp_path / "in")


def test_a_map_of_a_sparse_file_without_end_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MOST_IN_A_ROW", 100_000)
    header = tarfile.TarInfo("map")
    header.size = 1 << 30
    header.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "1",
        "GNU.sparse.name": "map",
    }
    (tmp_path / "tar").write_bytes(header.tobuf(tarfile.PAX_FORMAT) + b"100000000\n" + b"0\n" * (8 << 20))
    os.truncate(tmp_path / "tar", (1 << 30) + 2048)
    tracemalloc.start()
    try:
        with pytest.raises(HostError, match="expected at most 100000 bytes of headers of one file, got more"):
            archives.unpack(tmp_path / "tar", tmp_path / "in")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def header(kind: bytes, data: bytes = b"", name: str = "h", size: int | None = None) -> bytes:
    """Make a header and its data, as they are in an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def pax(*records: tuple[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    data = b""
    for keyword, value in records:
        rest = f" {keyword}={value}\n".encode()
        length = next(length for length in range(len(rest), len(rest) + 10) if length == len(rest) + len(str(length)))
        data += str(length).encode() + rest
    return header(kind, data)


ROWS = {
    "long names": header(tarfile.GNUTYPE_LONGNAME, b"long\0"),
    "long links": header(tarfile.GNUTYPE_LONGLINK, b"long\0"),
    "pax headers": pax(("path", "long")),
    "pax headers of all that follows": pax(("path", "long"), kind=tarfile.XGLTYPE),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_headers_without_end_are_refused(row: bytes, tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(row * 3000 + header(tarfile.REGTYPE, b"x") + bytes(1024))
    with pytest.raises(HostError, match="expected at most 8 headers of one file, got more"):
        archives.unpack(tmp_path / "tar", tmp_path / "in")
    # tarfile raises this in one call, outside of the code that converts its errors.
    with pytest.raises(tarfile.TarError), archives.open_archive(tmp_path / "tar"):
        pass


# The parsers of Python before 3.11.10 and 3.12.6 take hours (CVE-2024-6232).
@pytest.mark.timeout(120)
def test_a_pax_header_takes_linear_time(tmp_path: Path) -> None:
    digits = "1" * 1_000_000
    (tmp_path / "tar").write_bytes(
        pax(("comment", digits), ("path", "named")) + header(tarfile.REGTYPE, b"x") + bytes(1024)
    )
    assert archives.unpack(tmp_path / "tar", tmp_path / "in") == ()
    assert (tmp_path / "in" / "named").read_bytes() == b"x"


NONSENSE = {
    "digits alone": header(tarfile.XHDTYPE, b"1" * 1_000_000),
    "a record beyond its header": header(tarfile.XHDTYPE, b"99999 path=x\n"),
    "a record of no length": header(tarfile.XHDTYPE, b"0 path=x\n"),
    "a record without an end": header(tarfile.XHDTYPE, b"10 path=xyz"),
    "a name of 1 MB": pax(("path", "x" * 900_000)),
    "a size below nothing": pax(("size", "-1024")),
    "places of 5,000 digits": pax(("GNU.sparse.map", "1" * 5000), ("GNU.sparse.size", "1")),
    "sparse as nobody packs": pax(("GNU.sparse.size", "9"), ("GNU.sparse.offset", "0"), ("GNU.sparse.numbytes", "1")),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_a_pax_header_that_is_damaged_is_refused(nonsense: bytes, tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(nonsense + header(tarfile.REGTYPE, b"x") + bytes(1024))
    with pytest.raises(HostError, match="cannot be unpacked"):
        archives.unpack(tmp_path / "tar", tmp_path / "in")


def test_what_headers_say_is_not_kept(tmp_path: Path) -> None:
    """Covers headers of one entry, and global headers, of which tarfile would copy all into each entry."""
    more = pax(*((f"comment.{number}", "x") for number in range(2000)), kind=tarfile.XGLTYPE)
    entries = (pax(("comment", "x" * 500_000)) + header(tarfile.REGTYPE, name=f"f{number}") for number in range(60))
    (tmp_path / "tar").write_bytes(more + b"".join(entries) + bytes(1024))
    tracemalloc.start()
    try:
        with archives.open_archive(tmp_path / "tar") as tar:
            assert [member.name for member in tar] == [f"f{number}" for number in range(60)]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_thousands_of_empty_files_are_no_row_of_headers(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(
        b"".join(header(tarfile.REGTYPE, name=f"f{number}") for number in range(5000)) + bytes(1024)
    )
    with archives.open_archive(tmp_path / "tar") as tar:
        assert sum(1 for _ in tar) == 5000


def test_a_link_that_was_there_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    target = tmp_path / "in"
    target.mkdir()
    (target / "folder").symlink_to(tmp_path)
    (target / "file").symlink_to(tmp_path / "secret")
    for name in ("folder/secret", "file"):
        with pytest.raises(HostError, match="cannot be unpacked"):
            archives.unpack(archive(tmp_path / "tar", entry(name, data=b"owned")), target)
    assert (tmp_path / "secret").read_text() == "secret"


def test_what_is_compressed_is_not_blown_up(tmp_path: Path) -> None:
    packed = archive(tmp_path / "tar", entry("zeroes", data=bytes(20_000_000)), mode="w:gz")
    with pytest.raises(HostError, match="cannot be unpacked"):
        archives.unpack(packed, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_name_without_end_costs_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "tar").write_bytes(header.tobuf())
    os.truncate(tmp_path / "tar", (1 << 30) + 2048)
    tracemalloc.start()
    try:
        with pytest.raises(HostError, match="expected at most 16777216 bytes of one header"):
            archives.unpack(tmp_path / "tar", tmp_path / "in")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_what_a_guest_packs_comes_whole(tmp_path: Path) -> None:
    """Packs as a guest does: sparse files, folders, and links of both kinds within the folder. Others are named."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / ("n" * 200)).write_text("long")
    (source / "program").write_text("#!/bin/sh\n")
    (source / "program").chmod(0o4755)
    os.link(source / "program", source / "same")
    (source / "link").symlink_to("/etc/passwd")
    (source / "loop").symlink_to(".")
    (source / "sub" / "up").symlink_to("../program")
    os.mkfifo(source / "pipe")
    with (source / "holes").open("wb") as file:
        file.write(b"begin")
        file.seek(32 << 20)
        file.write(b"middle")
        file.truncate(64 << 20)
    for _ in range(2):  # into what is there as well
        subprocess.run(["sh", "-c", files._PACK, "sh", source, tmp_path / "tar"], check=True)
        left_out = archives.unpack(tmp_path / "tar", target)
        assert sorted(left_out) == ["./pipe (a pipe)", "link (a link to '/etc/passwd', out of what is copied)"]
    unpacked = {str(path.relative_to(target)): path for path in target.rglob("*")}
    assert unpacked.keys() == {"sub", "sub/empty", f"sub/{'n' * 200}", "sub/up", "program", "same", "loop", "holes"}
    assert unpacked["same"].read_text() == unpacked["program"].read_text() == "#!/bin/sh\n"
    assert unpacked["same"].samefile(unpacked["program"]) and unpacked["sub/up"].readlink() == Path("../program")
    assert unpacked["holes"].read_bytes() == (source / "holes").read_bytes()
    assert unpacked["holes"].stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE(unpacked["program"].stat().st_mode) & 0o7111 == 0o111 & ~_umask()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old
