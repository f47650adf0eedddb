"""Topology files of strangers: names, YAML, other files, arguments for QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import HostError, TopologyError, UsageError
from testbed.guest.factory import GuestFactory
from testbed.qemu import disk_files
from testbed.qemu.blockdev import Storage
from testbed.topology import GuestModel, load
from testbed.topology.load import parse

GUEST = "version: 1\nguests:\n  g0:\n    "


@pytest.mark.parametrize(
    "text",
    [
        "disks: {'data,file=/etc/passwd': {type: nvme, size: 1G}}",
        "disks: {data: {type: nvme, size: 1G, serial: 'a,drive=b'}}",
        "disks: {../../etc/passwd: {type: nvme, size: 1G}}",
        "disks: {data: {type: nvme, size: 1G, image: ../../etc/passwd}}",
        "loops: {l0: {backing: ../../etc/passwd, size: 64M}}",
        "loops: {l0: {backing: 'data/$(reboot)', size: 64M}}",
        "cgroups: {/../../x: {}}",
        "image: ../../etc/passwd",
        "image: bookworm,snapshot=off",
        "cpu-model: 'max -drive file=/etc/passwd'",
        'append: ["a\\nb"]',
        "environment: {'A;reboot': x}",
        "networks: {'lan,fd=3': {}}",
        "networks: {../x: {}}",
        "memory: 1G,share=on",
        "disks: {data: {type: 'nvme,x=y', size: 1G}}",
        "disks: {data: {type: nvme, size: 1G, partitions: [{name: 'a b', size: 1M}]}}",
        "filesystems: {'data;reboot': {type: ext4}}",
    ],
)
def test_names_with_special_characters_are_mistakes(text: str) -> None:
    with pytest.raises(TopologyError, match=r"x\.yaml:"):
        parse(GUEST + text + "\n", "x.yaml")


async def test_an_image_may_be_a_link_to_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "mine.img").symlink_to("/etc/passwd")
    wanted = Storage(file=tmp_path / "disk", format="qcow2", size_bytes=1 << 30, image=(tmp_path / "mine.img", "raw"))
    with pytest.raises(
        HostError, match=r"mine\.img: expected an image of a disk or a file system, got a link to /etc/passwd"
    ):
        await disk_files.make_disk_files(wanted)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch owned']\n", "a: &a [*a, *a]\n", "&a [*a]\n"])
def test_yaml_creates_no_objects_and_no_cycles(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TopologyError):
        parse(text, "x.yaml")
    assert not (tmp_path / "owned").exists()


def test_extending_another_file_does_not_reveal_its_content(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("version: 1\nextends: ../../../../../../etc/passwd\n")
    with pytest.raises(TopologyError) as found:
        load(tmp_path / "x.yaml")
    assert "root:" not in str(found.value)


async def test_qemu_args_are_refused_unless_they_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """This also holds if the values did not come from a file."""
    monkeypatch.setenv("TESTBED_TRUST_QEMU_ARGS", "1")
    factory = GuestFactory.__new__(GuestFactory)
    with pytest.raises(
        UsageError,
        match="nobody checks them: -chardev file,id=x,path=/root/x; expected them from a file that you trust",
    ):
        await factory._machine(GuestModel.model_validate({"qemu-args": ["-chardev", "file,id=x,path=/root/x"]}), None)  # type: ignore[arg-type]  # it comes no further
