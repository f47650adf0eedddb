"""The text of report.html; tests/guest/report/test_report.py opens a page in a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from testbed.report.html import html
from testbed.report.schema import Document, Line
from testbed.report.wording import quantity
from testbed.units import MIB
from tests.support.run_results import alone, changed, document, failed, lost, passed, skipped
from tests.unit.guest.metrics.test_samples import disk, write
from tests.unit.report.test_formats import EVIL, evil


class Page(HTMLParser):
    """Counts elements, and keeps scripts and attributes. Asserts that all elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "img", "input"):
            self._open.append(tag)
        if tag == "script" and not any(name == "type" for name, _ in attrs):
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"] and self.scripts:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.text += data


def every(folder: Path) -> Document:
    return document(folder, passed(folder), skipped(folder), failed(folder), lost(folder))


def data(text: str) -> list[Any]:
    return [
        json.loads(gzip.decompress(base64.b64decode(packed))) for packed in re.findall(r'class="data">([^<]*)<', text)
    ]


def test_the_page_shows_the_run_and_its_results(tmp_path: Path) -> None:
    text = html(every(tmp_path), tmp_path)
    page = Page(text)
    words = " ".join(page.text.split())
    for said in (
        "Base against patched FAIL",
        "4, 1 PASS, 1 FAIL, 1 INFRA, 1 SKIP",
        "the patched kernel still shows what the series is to close",
        "./tb compare",
        "q" * 64,
        "i" * 64,
        "disk reads",
        "32 MiB",
        "holds: x",
        "10.00 %, a finding",
        "dd invoked oom-killer",
        "disk data (nvme, 1G)",
        "On base an action of the timeline never began: when mark never: unplug data",
    ):
        assert said in words, said
    assert page.tags["table"] >= 6 and page.tags["caption"] == page.tags["table"]
    assert all(f'<section id="{part}"' in text for part in ("verdicts", "cases", "setup"))


def test_every_table_header_has_a_scope(tmp_path: Path) -> None:
    heads = re.findall(r"<th\b([^>]*)>", html(every(tmp_path), tmp_path))
    assert heads and all('scope="col"' in head or 'scope="row"' in head for head in heads)


def test_the_page_may_run_only_its_own_scripts_and_fetch_nothing(tmp_path: Path) -> None:
    text = html(every(tmp_path), tmp_path)
    page = Page(text)
    (policy,) = (value for name, value in page.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0] and "http" not in policy
    (script,) = page.scripts
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    library = re.search(r'id="library">([^<]*)<', text)
    assert library is not None
    drawn = gzip.decompress(base64.b64decode(library[1]))
    assert base64.b64encode(hashlib.sha256(drawn).digest()).decode() in policy and b"plotly.js v" in drawn[:200]
    fetched = [
        value
        for name, value in page.attributes
        if name in ("src", "href") and not value.startswith(("#", "./", "data:"))
    ]
    assert fetched == []


def test_text_of_a_guest_stays_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028" + EVIL
    line = Line(kind=hostile, seconds=None, text=hostile, expected=False)
    found = evil(tmp_path)
    for number in range(len(found.scenarios)):
        for path in ("reason", "claim", *(f"{side}.reason" for side in found.kernels)):
            found = changed(found, f"scenarios.{number}.{path}", hostile)
        for side in found.kernels:
            found = changed(found, f"scenarios.{number}.{side}.console", [line])
    found = changed(found, "kernels.base.origin", hostile)
    found = changed(found, "command", ["testbed", hostile])
    found = changed(found, "topology.guests.g0.disks", {hostile: {"type": "nvme", "size": 1 << 30}})
    write(tmp_path / "guests" / "g", "samples.jsonl", disk(1.0, 0, 0), disk(2.0, MIB, 1))
    write(tmp_path / "guests" / "g", "timeline.jsonl", {"guest_s": 1.5, "do": hostile})
    name = {"guest_s": 1.5, "groups": {hostile: {"file": MIB}}}
    write(tmp_path / "guests" / "g", "cgroups.jsonl", name)
    plain, text = html(every(tmp_path), tmp_path), html(found, tmp_path)
    page = Page(text)
    assert len(page.scripts) == 1 and page.tags["script"] >= Page(plain).tags["script"]
    assert page.tags.get("img", 0) <= 1 and "<img src=x" not in text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)" in page.text
    assert any(
        hostile in json.dumps(plots, ensure_ascii=False) or "alert(2)" in json.dumps(plots) for plots in data(text)
    )


def test_plots_have_every_kernel_and_a_common_scale(tmp_path: Path) -> None:
    write(tmp_path / "guests" / "g", "samples.jsonl", disk(1.0, 0, 0), disk(2.0, 3 * MIB, 1))
    (plots,) = data(html(document(tmp_path, passed(tmp_path)), tmp_path))
    bandwidth = next(plot for plot in plots if plot["title"] == "Disk bandwidth")
    assert [side["side"] for side in bandwidth["sides"]] == ["base", "patched"] and bandwidth["most"] == 3


def test_logs_outside_the_run_folder_are_not_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(tmp_path / "other", "samples.jsonl", disk(1.0, 0, 0), disk(2.0, MIB, 1))
    run.mkdir()
    found = document(run, passed(run))
    for side in found.kernels:
        found = changed(found, f"scenarios.0.{side}.evidence", "../other")
    text = html(found, run)
    assert data(text) == [] and "../other" not in text


def test_kernels_judged_alone_have_their_own_verdicts(tmp_path: Path) -> None:
    words = " ".join(Page(html(document(tmp_path, alone(passed(tmp_path))), tmp_path)).text.split())
    assert "PASS as base" in words and "Each kernel shows what is expected of it" in words


def test_a_page_of_many_cases_has_a_search_and_stays_small(tmp_path: Path) -> None:
    one = document(tmp_path, passed(tmp_path))
    (case,) = one.scenarios
    cases = [case.model_copy(update={"name": f"gate/{number}"}) for number in range(1000)]
    many = one.model_copy(update={"scenarios": cases})
    text = html(many, tmp_path)
    assert 'id="filter"' in text and 'id="filter"' not in html(one, tmp_path)
    assert len(text.encode()) < 10_000_000
    assert len(re.findall(r"<details[^>]* open", text)) == 0


def test_numbers_are_formatted_with_their_units() -> None:
    assert quantity(33554432, "bytes") == ("32", "MiB")
    assert quantity(17 << 10, "bytes") == ("17", "KiB")
    assert quantity(12, "bytes") == ("12", "bytes")
    assert quantity(1234567.0, "kills") == ("1,234,567", "kills")
    assert quantity(0.12345, "s/MiB") == ("0.1235", "s/MiB")
    assert quantity(2, "s") == ("2.00", "s")
