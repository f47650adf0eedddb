"""Bundles that are refused: archives, manifests, and bugs that reach beyond their guest."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.bugs import bundle as bundles
from testbed.bugs import bundle_rules
from testbed.errors import UsageError
from testbed.hashing import file_sha256
from testbed.topology import trust
from tests.support.bundles import BUG, entry, rewritten

EVIL = {
    "an absolute name": (entry("/etc/passwd"), "stays inside the bundle"),
    "a name that escapes": (entry("guests/../../x"), "stays inside the bundle"),
    "a symbolic link": (
        entry("guests/link", type=tarfile.SYMTYPE, linkname="/etc/passwd", data=b""),
        "expected plain files",
    ),
    "a hard link": (entry("guests/hard", type=tarfile.LNKTYPE, linkname="bug.yaml", data=b""), "expected plain files"),
    "a device": (entry("guests/sda", type=tarfile.BLKTYPE, data=b""), "expected plain files"),
    "a fifo": (entry("guests/pipe", type=tarfile.FIFOTYPE, data=b""), "expected plain files"),
    "a file twice": (entry("bug.yaml"), "it is there twice"),
    "a file that nobody named": (entry("guests/more"), "it is not the file that the manifest names"),
    "a hidden file": (entry(".bashrc"), "plain letters"),
    "a kernel's configuration": (entry("kernels/x/config"), "expected of a kernel its bzImage"),
    "a module elsewhere": (entry("kernels/x/early/more/x.ko"), "expected of a kernel its bzImage"),
    "a kernel that is no folder": (entry("kernels/x"), "expected of a kernel its bzImage"),
}


@pytest.mark.parametrize(("extra", "why"), EVIL.values(), ids=EVIL)
def test_an_archive_that_would_do_harm_is_refused(
    run: Path, tmp_path: Path, extra: tuple[tarfile.TarInfo, bytes], why: str
) -> None:
    bundles.pack(run, tmp_path / "a.tar", {})
    with pytest.raises(UsageError, match=why):
        bundles.read(rewritten(tmp_path / "a.tar", tmp_path / "evil.tar", extra))


def test_a_manifest_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, data in (("manifest.json", b"[" * 100_000), ("bug.yaml", BUG.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UsageError, match="expected a bundle of `testbed bundle`"):
        bundles.read(tmp_path / "evil.tar")


TOPOLOGY = "topology: {guests: {g0: "


HOOKS = {
    "an image": (
        f"{TOPOLOGY}{{disks: {{d: {{type: nvme, size: 1G, image: /x.img}}}}}}}}}}\n",
        "d.image: it names a file of this machine",
    ),
    "a guest's kernel": (f"{TOPOLOGY}{{kernel: debian-6.1}}}}}}\n", "the guest's kernel: it names a file"),
    "a topology": ("topology: /etc/x.yaml\n", "topology: expected a topology, or the path"),
    "another's topology": ("topology: {extends: ../x.yaml}\n", "topology.extends: expected the path"),
    "a script": ("script-file: ../x.sh\n", "script-file"),
    "QEMU's own words by Python's name": (f"{TOPOLOGY}{{qemu_args: ['-monitor']}}}}}}\n", "qemu_args: unknown key"),
    "a kernel's file": ("kernels: {shows: [/boot/vmlinuz]}\n", "expected a name of the table"),
    "a kernel's file in this folder": (
        "kernels: {clean: [pyproject.toml]}\n",
        "'pyproject.toml': expected a name of the table",
    ),
    "a kernel that was built here": ("kernels: {shows: [built-mine]}\n", "'built-mine': expected a name of the table"),
    "no YAML": ("]\n", "not YAML"),
}


def with_bug(run: Path, tmp_path: Path, text: str) -> Path:
    """A bundle whose bug says more."""
    body = BUG.replace("kernels: {shows: [debian-6.1]}\n", "") if text.startswith("kernels") else BUG
    (run / "bug.yaml").write_text(body + text)
    if not (tmp_path / "a.tar").exists():
        (run / "bug.yaml").write_text(BUG)
        bundles.pack(run, tmp_path / "a.tar", {})
        (run / "bug.yaml").write_text(body + text)
    return rewritten(
        tmp_path / "a.tar",
        tmp_path / "e.tar",
        change=lambda name, data: (body + text).encode() if name == "bug.yaml" else data,
    )


@pytest.mark.parametrize(("text", "why"), HOOKS.values(), ids=HOOKS)
def test_a_bug_that_reaches_beyond_its_guest_is_refused(run: Path, tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)this bundle is refused:.*{re.escape(why)}"):
        bundles.read(with_bug(run, tmp_path, text))
    if not text.startswith(("kernels", "]")):
        with pytest.raises(UsageError, match="cannot go to another machine"):
            bundles.pack(run, tmp_path / "c.tar", {})
        assert not (tmp_path / "c.tar").exists()


def test_words_for_qemu_itself_are_refused_unless_their_bundle_is_trusted_by_its_hash(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_CONFIG", str(tmp_path / "config"))
    evil = with_bug(run, tmp_path, f"{TOPOLOGY}{{qemu-args: [-chardev, 'file,id=x,path=/root/x']}}}}}}\n")
    for trusted in ("", "1", "yes", trust.content_hash((run / "bug.yaml").read_text())):
        monkeypatch.setenv(trust.VARIABLE, trusted)
        with pytest.raises(
            UsageError, match=r"qemu-args: .*-chardev file,id=x,path=/root/x; .*: testbed trust [0-9a-f]{64}"
        ) as refused:
            bundles.read(evil)
    monkeypatch.delenv(trust.VARIABLE)
    # The whole file's does not count either: what is hashed is what was read.
    trust.trust_sources({file_sha256(evil): "x"})
    with pytest.raises(UsageError, match="testbed trust"):
        bundles.read(evil)
    trust.trust_sources({str(refused.value).rsplit(maxsplit=1)[-1]: "x"})
    assert trust.are_trusted(bundles.read(evil).case.guest.qemu_args)
    # Any other one is still refused, with the same words as well.
    other = with_bug(run, tmp_path, f"{TOPOLOGY}{{cpus: 1, qemu-args: [-chardev, 'file,id=x,path=/root/x']}}}}}}\n")
    with pytest.raises(UsageError, match="testbed trust"):
        bundles.read(other)


def test_sizes_are_bounded_before_anything_is_read() -> None:
    large = [bundle_rules.Member(name=name, size_bytes=5 << 30, is_file=True) for name in ("manifest.json", "bug.yaml")]
    said = list(bundle_rules.find_refusals(large))
    assert any("bytes in all" in one for one in said) and any("expected at most 8388608" in one for one in said)
    many = (bundle_rules.Member(name=f"f{number}", size_bytes=0, is_file=True) for number in range(30_000))
    assert list(bundle_rules.find_refusals(many)) == ["expected at most 20000 entries"]


MANIFESTS = {
    "another version": ({"version": 2}, "version"),
    "true for 1": ({"version": True}, "version: .*expected 1, got true"),
    "a seed that is no number": ({"seed": "5"}, "seed: "),
    "a seed below 0": ({"seed": -1}, "seed: "),
    "a fraction": ({"seed": 1.5}, "seed: "),
    "an infinite seed": ({"seed": float("inf")}, "finite number, got Infinity"),
    "a seed of 5,000 digits": ({"seed": 10**300}, "at most 64 bits"),
    "a list of files": ({"files": ["bug.yaml"]}, "files: "),
    "a path as a kernel": ({"with_kernels": ["../x"]}, "with_kernels.0: "),
    "no hosts": ({"host": None}, "host: "),
    "kernels that are words": ({"kernels": ["debian-6.1"]}, "kernels.0: "),
}


@pytest.mark.parametrize(("change", "why"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_none_is_refused(run: Path, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    bundles.pack(run, tmp_path / "a.tar", {})
    evil = rewritten(
        tmp_path / "a.tar",
        tmp_path / "e.tar",
        last=lambda name, data: json.dumps(json.loads(data) | change).encode() if name == "manifest.json" else data,
    )
    with pytest.raises(UsageError, match=f"(?s)this bundle is refused:.*{why}"):
        bundles.read(evil)


def test_a_manifest_that_says_a_key_twice_is_refused(run: Path, tmp_path: Path) -> None:
    bundles.pack(run, tmp_path / "a.tar", {})
    evil = rewritten(
        tmp_path / "a.tar",
        tmp_path / "e.tar",
        last=lambda name, data: b'{"seed": 1,' + data[1:] if name == "manifest.json" else data,
    )
    with pytest.raises(UsageError, match="each key once, got 'seed' twice"):
        bundles.read(evil)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_row_of_headers_is_refused(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("long")
    header.type = kind
    (tmp_path / "evil.tar").write_bytes(header.tobuf() * 3000 + tarfile.TarInfo("bug.yaml").tobuf() + bytes(1024))
    with pytest.raises(UsageError, match=r"this bundle is refused:\n.*at most 8 headers of one file"):
        bundles.read(tmp_path / "evil.tar")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=8)), min_size=1, max_size=4))
def test_a_damaged_bundle_is_refused_or_read_never_a_traceback(
    run: Path, tmp_path: Path, cuts: list[tuple[int, bytes]]
) -> None:
    if not (tmp_path / "a.tar").exists():
        bundles.pack(run, tmp_path / "a.tar", {})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    for at, new in cuts:
        data[at : at + len(new)] = new
    (tmp_path / "d.tar").write_bytes(data)
    try:
        assert bundles.read(tmp_path / "d.tar").plain
    except UsageError as error:
        assert "refused" in str(error)
