"""Names, topologies and guests in the API."""

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

import testbed
from testbed.api import supervised_guest, topologies
from testbed.api.devices import Disk, Named
from testbed.errors import HostError, TopologyError, UsageError
from testbed.topology import Topology


def test_a_device_that_is_not_there_is_told_with_those_that_are() -> None:
    disk = Disk(name="data", path="/dev/vdc", number="254:32", serial="tb-data", size_bytes=1)
    disks = Named("one of the topology's disks", {"data": disk})
    assert f"{disks['data']}" == "/dev/vdc"
    with pytest.raises(UsageError, match="which are data; got 'dta'"):
        disks["dta"]


def test_a_topology_is_a_path_or_yaml_or_a_mapping(tmp_path: Path) -> None:
    text = "version: 1\nguests:\n  here: {}\n"
    (tmp_path / "t.yaml").write_text(text)
    some: tuple[topologies.Wanted, ...] = ("t.yaml", Path("t.yaml"), text, {"guests": {"here": {}}})
    for wanted in some:
        assert list(topologies.resolve_point(wanted, tmp_path, "it", None).guests) == ["here"]
    with pytest.raises(TopologyError, match=r"it:3:16: guests\.g0\.cpus"):
        topologies.resolve_point("version: 1\nguests:\n    g0: {cpus: 99}\n", tmp_path, "it", None)
    with pytest.raises(UsageError, match="it: expected a topology"):
        topologies.resolve_point(cast("topologies.Wanted", 3), tmp_path, "it", None)


def test_everything_public_is_there() -> None:
    for name in testbed.__all__:
        assert getattr(testbed, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testbed.nothing


async def test_modules_in_the_current_folder_are_not_run_for_a_guest_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be a stranger's."""
    asked: list[Any] = []

    async def run(words: list[Any], **how: Any) -> None:
        asked.extend(words)
        raise HostError("no more")

    monkeypatch.setattr("testbed.api.supervised_guest.process.run", run)
    topology = Topology.model_validate({"version": 1, "guests": {"g0": {}}})
    with pytest.raises(HostError, match="no more"):
        async with supervised_guest.start_supervised(
            topology, "k", {"g0": "k"}, cast(Any, None), tmp_path / "evidence", cold=False
        ):
            pass
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    words = [*asked[: asked.index("up")], "--version"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=environment)
    assert await done.wait() == 0 and not (tmp_path / "ran").exists()
