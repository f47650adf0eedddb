"""The same without fixtures: the program opens the testbed itself."""

import asyncio

import testbed


async def main() -> str:
    async with testbed.open_testbed() as tb, tb.vm({"guests": {"g0": {"cpus": 1}}}, kernel="debian-6.1") as vm:
        return (await vm.run("uname -r")).stdout


def test_it() -> None:
    assert asyncio.run(main()).startswith("6.1.")
