"""The built wheel in another project: its contents, and the example suite, run from another folder."""

import shutil
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.foreign_project import ROOT, Foreign, prepare


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    yield prepare(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_carries_what_it_needs(foreign: Foreign, tmp_path: Path) -> None:
    carried = set(zipfile.ZipFile(foreign.wheel).namelist())
    for folder in ("images", "topologies"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file():
                assert f"testbed/_shipped/{file.relative_to(ROOT)}" in carried
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "testbed").rglob("*.py")}
    assert code | {"testbed/py.typed"} <= carried
    own = {name for name in carried if not name.startswith(("testbed/", "loop_cgroup_testbed-"))}
    assert not own, "nothing else gets into somebody's site-packages"
    entry_points = next(name for name in carried if name.endswith("entry_points.txt"))
    assert "[pytest11]\ntestbed = testbed.pytest_plugin" in zipfile.ZipFile(foreign.wheel).read(entry_points).decode()
    done = foreign.run("-m", "pip", "check", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert foreign.run("-c", "import testbed; print(testbed.__file__)", folder=tmp_path).stdout.startswith(
        str(foreign.python.parents[1])
    )


@pytest.mark.slow
def test_the_example_suite_passes_from_the_wheel(foreign: Foreign, tmp_path: Path) -> None:
    suite = tmp_path / "their-project"
    shutil.copytree(ROOT / "tests/examples", suite, ignore=shutil.ignore_patterns("__pycache__"))
    done = foreign.run(
        "-m", "pytest", "-q", "-n", "2", "-rs", "--junitxml", "junit.xml", "--testbed-artifacts", "logs", folder=suite
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout and "lacks module no_such_module, CONFIG_NO_SUCH_OPTION" in done.stdout
    cases = {case.get("name"): case for case in ET.parse(suite / "junit.xml").iter("testcase")}
    told = {one.get("name"): one.get("value", "") for one in cases["test_commands[debian-6.1]"].iter("property")}
    assert told["testbed_kernel"].startswith("6.1.") and told["testbed_qemu"] and told["testbed_image"] == "bookworm"
    assert (
        len(told["testbed_kernel_sha256"]) >= 16
        and len(told["testbed_qemu_sha256"]) == 64
        and len(told["testbed_image_sha256"]) == 64
    )
    pair = {
        one.get("name"): one.get("value", "") for one in cases["test_the_reader_of_a_loop_device_pays"].iter("property")
    }
    assert pair["testbed_kernel_base"].startswith("5.10.") and pair["testbed_kernel_patched"].startswith("6.1.")
    assert (suite / "logs/test_guest-test_commands-debian-6.1/g0/console.log").exists()
    names = {name for name in cases if name and name.startswith("test_the_disk_is_of_its_kind")}
    points = [f"{kernel}-{disk}" for kernel in ("debian-5.10", "debian-6.1") for disk in ("virtio-blk", "nvme")]
    assert names == {f"test_the_disk_is_of_its_kind[{point}]" for point in points}
