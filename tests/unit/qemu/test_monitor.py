import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import HostError, WireBroken
from testbed.host.logfile import Log
from testbed.qemu import monitor
from testbed.qemu.monitor import Monitor
from testbed.qemu.qmp_command import QmpCommand
from tests.support.qmp_server import FakeQmp, fake_qmp


@asynccontextmanager
async def connected(
    folder: Path, answers: dict[str, Any]
) -> AsyncIterator[tuple[Monitor, FakeQmp, list[tuple[str, dict[str, Any]]]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    async with fake_qmp(folder / "qmp", answers) as fake:
        wire = Monitor("g0", Log(folder / "qmp.jsonl", print), lambda name, data: events.append((name, data)))
        await wire.connect(folder / "qmp")
        try:
            yield wire, fake, events
        finally:
            await wire.close()


async def test_commands_are_sent_in_order_and_logged(tmp_path: Path) -> None:
    async with connected(tmp_path, {"stop": {}, "cont": {}}) as (wire, fake, _):
        await wire.run((QmpCommand(execute="stop"), QmpCommand(execute="cont", arguments={"a": 1})))
        assert fake.asked[1:] == [("stop", {}), ("cont", {"a": 1})]
    logged = [json.loads(line) for line in (tmp_path / "qmp.jsonl").read_text().splitlines()]
    assert [record["execute"] for record in logged] == ["stop", "cont"]
    assert all(record["monotonic_s"] > 0 for record in logged)


async def test_a_refusal_names_the_command_and_stops_the_following_ones(tmp_path: Path) -> None:
    async with connected(tmp_path, {"device_add": RuntimeError("Bus 'port9' not found"), "cont": {}}) as (
        wire,
        fake,
        _,
    ):
        with pytest.raises(HostError, match=r"refused device_add .*port9.*Bus 'port9' not found"):
            await wire.run((QmpCommand(execute="device_add", arguments={"bus": "port9"}), QmpCommand(execute="cont")))
        assert ("cont", {}) not in fake.asked


async def test_a_missing_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_COMMAND_S", 0.05)
    async with connected(tmp_path, {}) as (wire, _, _), asyncio.timeout(10):
        with pytest.raises(HostError, match="expected an answer to query-status"):
            await wire.execute("query-status")


async def test_events_reach_the_handler(tmp_path: Path) -> None:
    async with connected(tmp_path, {"stop": {}}) as (wire, fake, events):
        fake.event("DEVICE_DELETED", {"device": "disk-data"})
        await wire.execute("stop")
        async with asyncio.timeout(10):
            while not events:
                await asyncio.sleep(0)
        assert events == [("DEVICE_DELETED", {"device": "disk-data"})]


@pytest.mark.parametrize("last", [b"", b'{"return": ', b"nonsense\r\n"])
async def test_a_connection_that_closes_during_a_command_raises_wire_broken(tmp_path: Path, last: bytes) -> None:
    async with connected(tmp_path, {}) as (wire, fake, _), asyncio.timeout(10):
        asked = asyncio.create_task(wire.execute("query-status"))
        while len(fake.asked) < 2:
            await asyncio.sleep(0)
        fake.say(last)
        fake.hang_up()
        with pytest.raises(WireBroken, match="query-status"):
            await asked
        await wire.closed()


NO_MESSAGES = {
    "100,000 levels": b"[" * 100_000,
    "100,000 mappings": b'{"a":' * 100_000,
    "a list": b"[1]",
    "a list of pairs": b'[["event", "STOP"]]',
    "a number": b"5",
    "not a number": b'{"return": NaN}',
    "5,000 digits": b'{"return": ' + b"1" * 5000 + b"}",
    "no UTF-8": b'{"return": "\xff"}',
    "no JSON": b"hello",
}


@pytest.mark.parametrize("said", NO_MESSAGES.values(), ids=NO_MESSAGES)
async def test_a_message_that_is_not_json_ends_the_connection(said: bytes, tmp_path: Path) -> None:
    async with connected(tmp_path, {}) as (wire, fake, _), asyncio.timeout(60):
        asked = asyncio.create_task(wire.execute("query-status"))
        while len(fake.asked) < 2:
            await asyncio.sleep(0)
        for writer in fake._writers:
            writer.write(said + b"\r\n")
        with pytest.raises(WireBroken, match="query-status"):
            await asked
