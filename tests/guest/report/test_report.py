"""Samples of control groups on a running guest, and the report of a real run in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.report import repeated
from testbed.errors import GuestLost
from testbed.guest.factory import GuestFactory
from testbed.guest.metrics import readings
from testbed.guest.metrics.cgroup_sampler import LOG, CgroupSampler, sampling_cgroups
from testbed.report import formats, results
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.units import MIB
from tests.guest.cli.test_compare import finish, start
from tests.support import chromium, junit, ktap

MODEL = GuestModel.model_validate({"disks": {"data": {"type": "virtio-blk", "size": "64M"}}})
_READ = """\
mkdir "/sys/fs/cgroup/$1" && echo 0 >"/sys/fs/cgroup/$1/cgroup.procs" || exit
exec dd "if=$2" of=/dev/null bs=64k count=32 iflag=direct status=none
"""


async def test_the_counters_of_a_cgroup_equal_those_of_kernel_and_disk(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", MODEL, kernel, logs) as guest:
        sampler = CgroupSampler(guest)
        assert (await sampler.sample())["groups"] == {}
        before = await readings.read_disk_bytes(guest)
        await guest.script(_READ, "a.slice", guest.disks["data"].path)
        await guest.script("mkdir -p '/sys/fs/cgroup/a.slice/memory.odd name'")
        sample = await sampler.sample()
        moved = (await readings.read_disk_bytes(guest))["data"][0] - before["data"][0]
        group = sample["groups"]["a.slice"]
        assert group["io"]["data"] == {"rbytes": 2 * MIB, "wbytes": 0, "rios": 32, "wios": 0} and moved == 2 * MIB
        stat = (await guest.run("cat", "/sys/fs/cgroup/a.slice/memory.stat")).stdout.split()
        assert group["file"] == int(stat[stat.index("file") + 1]) and group["oom_kill"] == 0
        assert set(sample["groups"]) == {"a.slice", "a.slice/memory.odd name"}
        # A sample leaves out groups whose counters have not changed, and lists a removed group once.
        # The kernel may charge some of a group's memory later.
        async with asyncio.timeout(60):
            while groups := (await sampler.sample())["groups"]:
                assert set(groups) == {"a.slice"}
        await guest.script("rmdir '/sys/fs/cgroup/a.slice/memory.odd name' && mkdir /sys/fs/cgroup/a.slice/other")
        changed = {
            name: group is None for name, group in (await sampler.sample())["groups"].items() if name != "a.slice"
        }
        assert changed == {"a.slice/memory.odd name": True, "a.slice/other": False}
        uptime = float((await guest.script("read -r up rest </proc/uptime; echo $up")).stdout)
        last = await sampler.sample()
        assert uptime <= last["guest_s"] + 0.01 and abs(last["monotonic_s"] - time.monotonic()) < 60


@pytest.mark.slow
async def test_samples_of_a_lost_guest_are_kept(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    with pytest.raises(GuestLost):
        async with factory.guest("g0", MODEL, kernel, logs) as guest, sampling_cgroups(guest, 0.05):
            await guest.script(_READ, "reader", guest.disks["data"].path)
            async with asyncio.timeout(60):
                while "reader" not in (logs / LOG).read_text():
                    await asyncio.sleep(0.05)
            os.kill(guest.pid, 9)
            await guest.run("sleep", "600", timeout_s=600)
    samples = [json.loads(line) for line in (logs / LOG).read_text().splitlines()]
    assert samples[-1]["groups"] or samples[-2]["groups"] or len(samples) > 2


# In a browser

_TOPOLOGY = """\
version: 1
guests:
  g0:
    disks:
      data: {type: virtio-blk, size: 1G}
      fast: {type: nvme, size: 1G}
    loops:
      l0: {backing: fast/disk.img, filesystem: xfs, size: 64M, direct-io: true}
    timeline:
      - {at: 700ms, do: "throttle fast iops-total=90000"}
"""


async def run(folder: Path) -> Path:
    """Run two scenarios, one with OOM kills and one with a disk; return the run's folder."""
    (folder / "two.yaml").write_text(_TOPOLOGY)
    words = (
        "compare",
        "oom-tmpfs",
        "read/nvme/ext4",
        "--topology",
        str(folder / "two.yaml"),
        "--ignore-stack",
        "--sample",
        "200ms",
    )
    code, out, err = await finish(await start(folder, *words))
    assert code == 0, err
    last_line = out.splitlines()[-1]
    assert last_line.startswith("verdict: PASS ")
    assert any(line.startswith("PASS    oom-tmpfs: base: oom_kill") for line in err.splitlines()), err
    assert "oom-tmpfs on base: waiting for SSH" in err
    assert "not used of the topology, for scenarios build stacks of their own: guests.g0.loops" in err
    return Path(last_line.removeprefix("verdict: PASS "))


class Opened:
    """A page, and what went wrong in it: each message on its console, and each request to another address."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.wrong.append(request.url) if not _own(request) else None)

    async def draw(self, count: int) -> None:
        """Scroll through all plots until they are drawn."""
        for number in range(count):
            await self.page.locator(".plots").nth(number).scroll_into_view_if_needed()
            await self.page.locator(".plots").nth(number).locator(".js-plotly-plot").first.wait_for(timeout=60_000)
        await self.drawn()

    async def drawn(self) -> None:
        """Wait until all plots of the page are drawn."""
        await self.until("[...document.querySelectorAll('.plots')].every((one) => one.dataset.state === 'drawn')")
        await self.until("[...document.querySelectorAll('.plot')].every((box) => box.querySelector('.main-svg'))")

    async def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true. It is evaluated from here: the page's policy forbids eval()."""
        async with asyncio.timeout(120):
            while not await self.page.evaluate(expression):
                await asyncio.sleep(0.05)


def _own(request: Any) -> bool:
    return str(request.resource_type) == "document" or str(request.url).startswith("data:")


async def opened(browser: Any, page: Path, **how: Any) -> Opened:
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
    view = Opened(await context.new_page())
    await view.page.goto(page.as_uri())
    return view


def ink(colour: str) -> int:
    """Return how light a colour rgb() is."""
    return sum(int(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3])


async def look(browser: Any, folder: Path, kept: Path) -> None:
    """Check tables, plots and hovering."""
    view = await opened(browser, folder / "report.html")
    page = view.page
    assert (await page.locator("h1").inner_text()).split() == ["Base", "against", "patched", "PASS"]
    assert await page.locator("table.verdicts tbody tr").count() == 2
    assert await page.locator("table:has(caption:text('Measures')) tbody tr").count() == 8
    assert "killed process" in (await page.locator("table.log").first.inner_text()).lower()
    assert await page.evaluate("document.querySelector('.topology img').naturalWidth") > 100
    await view.draw(2)
    titles = [title.strip() for title in await page.locator("figcaption strong").all_inner_texts()]
    for title in (
        "Disk bandwidth, MiB/s",
        "Disk requests, requests/s",
        "Disk latency, ms",
        "Control groups' memory, MiB",
    ):
        assert title in titles, titles
    captions = " ".join(await page.locator("figcaption").all_inner_texts())
    assert "oom_kill" in captions and "1 action of the timeline" in captions and "fast read p99" in captions
    plot = page.locator(".plot").first
    await plot.scroll_into_view_if_needed()
    # The pointer must move over a plot that does not move; others above it may still be drawn.
    hover = plot.locator(".hoverlayer .legend text, .hoverlayer .hovertext").first
    async with asyncio.timeout(120):
        while not await hover.is_visible():
            box = await plot.locator(".nsewdrag").first.bounding_box()
            for share in (0.3, 0.5, 0.7):
                await page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
                await page.wait_for_timeout(100)
    assert any(letter.isdigit() for letter in await plot.locator(".hoverlayer").text_content())
    await page.locator(".as-table summary").first.click()
    await view.until("document.querySelectorAll('.table-of-plot')[0]?.querySelectorAll('tbody tr').length >= 4")
    await page.screenshot(path=str(kept / "light.png"), full_page=True)
    assert view.wrong == []


_WHERE = (
    "[document.activeElement.className, document.activeElement.tagName, "
    "document.activeElement.getAttribute('href')].join(' ')"
)


async def wait(browser: Any, folder: Path) -> None:
    """Check that plots of closed cases are drawn when the page is idle, and printed, and fit when opened."""
    view = await opened(browser, folder / "report.html")
    page = view.page
    await page.evaluate("document.querySelectorAll('details.case').forEach((one) => { one.open = false; })")
    await view.drawn()
    await page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert await page.locator("details.case:not([open])").count() == 0
    await page.evaluate("dispatchEvent(new Event('afterprint'))")
    await page.locator("details.case summary").first.click()
    fits = "(box) => Math.abs(box.querySelector('.main-svg').clientWidth - box.clientWidth) < 2"
    await view.until(f"({fits})(document.querySelector('details.case .plot'))")
    assert await page.locator("details.case .plot").first.is_visible() and view.wrong == []


async def press(browser: Any, folder: Path) -> None:
    """Check that the keyboard alone reaches and operates everything."""
    view = await opened(browser, folder / "report.html")
    page = view.page
    await view.draw(2)
    await page.evaluate("window.scrollTo(0, 0)")
    reached: set[str] = set()
    for _ in range(400):
        await page.keyboard.press("Tab")
        where = await page.evaluate(
            "(() => { const e = document.activeElement; "
            "return e.className + ' ' + e.tagName + ' ' + (e.getAttribute('href') || ''); })()"
        )
        if where.strip() == "BODY":
            break
        reached.add(where)
    words = " ".join(reached)
    for element in ("skip A #verdicts", "#setup", "plot", "SUMMARY", "scroll", "console.log"):
        assert element in words, (element, sorted(reached))
    assert await page.evaluate(
        "[...document.querySelectorAll('.plot')].every((box) => box.tabIndex === 0 && box.getAttribute('aria-label'))"
    )
    await page.locator(".plot").first.focus()
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("ArrowRight")
    assert " seconds: " in await page.locator("#spoken").inner_text()
    case = page.locator("details.case").first
    await case.locator("summary").first.focus()
    await page.keyboard.press("Enter")
    assert not await case.evaluate("(one) => one.open")
    assert view.wrong == []


async def adapt(browser: Any, folder: Path, kept: Path) -> None:
    """Check the page in dark colours, in a narrow window, and on paper."""
    for name, how in (("dark", {"color_scheme": "dark"}), ("narrow", {"viewport": {"width": 390, "height": 800}})):
        view = await opened(browser, folder / "report.html", **how)
        await view.draw(2)
        style = "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()"
        paper, text = await view.page.evaluate(style)
        assert (ink(paper) < ink(text)) is (name == "dark")
        drawn = await view.page.evaluate("getComputedStyle(document.querySelector('.plot .xtick text')).fill")
        assert (ink(drawn) > 380) is (name == "dark")
        assert await view.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await view.page.screenshot(path=str(kept / f"{name}.png"), full_page=True)
        if name == "dark":
            await view.page.locator("details.case summary").first.click()
            await view.page.emulate_media(media="print")
            paper, text = await view.page.evaluate(style)
            assert ink(paper) == 3 * 255 and ink(text) == 0
            assert not await view.page.locator("nav").is_visible()
            await view.page.pdf(path=str(kept / "paper.pdf"), format="A4")
            assert (kept / "paper.pdf").stat().st_size > 20_000
        assert view.wrong == []


async def thousand(browser: Any, folder: Path) -> None:
    """Check that a report of a thousand cases opens and can be searched.

    `./tb bench report` measures how fast; the limits here are for a slow machine.
    """
    document = repeated(results.read(str(folder), folder.parent), 1000)
    page = folder / "thousand.html"
    began = time.monotonic()
    formats.write_atomically(formats.FORMATS["html"](document, folder), page)
    written_s, began = time.monotonic() - began, time.monotonic()
    assert page.stat().st_size < 10_000_000
    view = await opened(browser, page)
    opened_s = time.monotonic() - began
    assert written_s < 60 and opened_s < 30
    assert await view.page.locator("table.verdicts tbody tr").count() == 1000
    await view.page.locator("#filter-name").fill("/999")
    assert await view.page.locator("#filter-count").inner_text() == "1 of 1000"
    await view.page.locator("table.verdicts tbody tr:visible a").click()
    await view.page.locator("details.case[open] .plots").scroll_into_view_if_needed()
    await view.page.locator("details.case[open] .js-plotly-plot").first.wait_for(timeout=60_000)
    assert view.wrong == []


@pytest.mark.slow
@pytest.mark.skipif(chromium.lacks() is not None, reason=str(chromium.lacks()))
async def test_the_report_of_a_real_run_in_a_browser(tmp_path: Path) -> None:
    folder = await run(tmp_path)
    kept = Path(os.environ.get("TESTBED_SCREENSHOTS") or tmp_path / "screenshots")
    kept.mkdir(parents=True, exist_ok=True)
    document = json.loads((folder / "results.json").read_text())
    published = json.loads(Path(results.__file__).with_name("results.schema.json").read_text())
    jsonschema.Draft202012Validator(published).validate(document)
    junit.check((folder / "junit.xml").read_text())
    (whole,) = ktap.parse((folder / "results.ktap").read_text())
    assert [test.status for test in whole.tests] == ["ok", "ok"]
    async with chromium.browser() as browser:
        await look(browser, folder, kept)
        await wait(browser, folder)
        await press(browser, folder)
        await adapt(browser, folder, kept)
        await thousand(browser, folder)
