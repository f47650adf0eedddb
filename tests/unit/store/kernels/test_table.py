from pathlib import Path

import pytest

from testbed.errors import HostError, UsageError
from testbed.store.apt import Package
from testbed.store.kernels import kernel_files, kernel_image
from testbed.store.kernels.table import DebianKernel, LocalKernel, Series, load_table
from tests.support.kernel_images import TABLE, bzimage


def test_the_default_pair_stands_on_both_sides_of_the_series() -> None:
    assert TABLE.rows[TABLE.base].series is Series.BEFORE
    assert TABLE.rows[TABLE.patched].series is Series.AFTER
    assert {"debian-6.12", "debian-7.2"} <= TABLE.rows.keys()


def test_a_name_of_the_table_is_its_row() -> None:
    assert isinstance(TABLE.resolve("debian-6.1"), DebianKernel)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"debian-9\.9.*debian-5\.10, debian-6\.1.*BZIMAGE"):
        TABLE.resolve("debian-9.9")


def test_files_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    (tmp_path / "modules").mkdir()
    for deb in ("a.deb", "b.deb"):
        (tmp_path / deb).touch()
    local = TABLE.resolve(f"{tmp_path}/bzImage:{tmp_path}/modules")
    assert isinstance(local, LocalKernel) and local.bzimage and local.modules
    packages = TABLE.resolve(f"{tmp_path}/a.deb:{tmp_path}/b.deb")
    assert isinstance(packages, LocalKernel) and len(packages.debs) == 2
    for wrong in (f"{tmp_path}", f"{tmp_path}/bzImage:{tmp_path}/bzImage", f"{tmp_path}/bzImage:{tmp_path}/nowhere"):
        with pytest.raises(UsageError):
            TABLE.resolve(wrong)


@pytest.mark.parametrize(
    "spec", ["~nobody-is-called-so/x", "a:~nobody-is-called-so", "a:" * 90 + "!", ":" * 200, "~" * 200]
)
def test_any_name_is_answered_soon(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug's file may bring one along, and lie beside files with colons in their names."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a:a", "a:a:a"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="expected one of"):
        TABLE.resolve(spec)


def test_a_broken_table_is_an_error_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "kernels.yaml").write_text("version: 1\nbase: a\n")
    with pytest.raises(HostError, match=r"kernels\.yaml"):
        load_table(tmp_path / "kernels.yaml")


def test_the_release_is_read_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(bzimage("6.9.0-test"))
    assert kernel_image.kernel_release(tmp_path / "k") == "6.9.0-test"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a bzImage"),
        (b"\x7fELF".ljust(4096), "expected a bzImage"),
        (bzimage(size=0x900), "truncated"),
        (bzimage(""), "release"),
    ],
)
def test_what_is_no_bzimage_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "k").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        kernel_image.kernel_release(tmp_path / "k")


def test_a_local_kernel_is_keyed_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(bzimage())
    first = kernel_files.kernel_folder(TABLE.resolve(str(tmp_path / "k")), tmp_path)
    (tmp_path / "k").write_bytes(bzimage("6.9.1"))
    assert kernel_files.kernel_folder(TABLE.resolve(str(tmp_path / "k")), tmp_path) != first


class Archive:
    """An apt of which only the packages' dependencies matter."""

    def __init__(self, depends: dict[str, tuple[str, ...]]) -> None:
        self._depends = depends

    async def show(self, name: str) -> Package:
        return Package(name=name, version="1", depends=self._depends.get(name, ()), sha256="")


async def test_of_a_metapackage_all_packages_with_files_of_the_kernel_are_fetched() -> None:
    release = "7.2.13+deb14-cloud-amd64"
    parts = tuple(f"linux-{part}-{release}" for part in ("base", "binary", "modules"))
    archive = Archive(
        {"linux-image-cloud-amd64": (f"linux-image-{release}",), f"linux-image-{release}": ("dracut", "kmod", *parts)}
    )
    found = await kernel_files.kernel_packages(archive, "linux-image-cloud-amd64")  # type: ignore[arg-type]  # it has all that is asked
    assert sorted(package.name for package in found) == sorted((f"linux-image-{release}", *parts))
