"""The pages docs/adding-a-*.md: each one's changes, made in a copy of the project, give what the page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.report import results
from tests.support import docs_pages
from tests.support.run_results import document, failed, passed

ROOT = docs_pages.ROOT
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("adding-*.md"))


def run(copy: Path, *words: str) -> str:
    """Run Python in a copy of the project, with folders of its own; return what it prints."""
    places = {name: str(copy / name.lower()) for name in ("TESTBED_CACHE", "TESTBED_STATE", "TESTBED_CONFIG")}
    for folder in places.values():
        Path(folder).mkdir(mode=0o700, exist_ok=True)
    env = os.environ | places | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def command(copy: Path, *words: str) -> str:
    return run(copy, "-m", "testbed", *words)


def topology(copy: Path, page: str) -> str:
    """Write the page's topology into the copy; return its name."""
    (copy / "my.yaml").write_text(docs_pages.example(page, "yaml"))
    return "my.yaml"


@pytest.mark.parametrize("page", PAGES)
def test_the_changes_of_a_page_fit_the_code_and_its_style(page: str, tmp_path: Path) -> None:
    files = [name for name in docs_pages.apply(page, tmp_path) if name.endswith(".py")]
    for verb in (["check"], ["format", "--check"]) if files else ():
        words = [sys.executable, "-m", "ruff", *verb, "--config", str(ROOT / "pyproject.toml"), "--no-cache", *files]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_profile_is_one_row(tmp_path: Path) -> None:
    docs_pages.apply("adding-a-profile", tmp_path)
    assert "185 requests a second" in command(tmp_path, "profiles", "--markdown")
    file = topology(tmp_path, "adding-a-profile")
    load = "from pathlib import Path; from testbed.topology.load import load;"
    throttle = f"{load} from testbed.qemu.blockdev import throttle_of;"
    shown = run(tmp_path, "-c", f"{throttle} print(throttle_of(load(Path({file!r})).guests['g0'].disks['data']))")
    assert "iops_total=185" in shown and "bps_total=160000000" in shown
    words = "from testbed.hardware.commands import parse_throttle; print(parse_throttle(['hdd-15000', 'scale=0.5']))"
    assert "bps_total=80000000" in run(tmp_path, "-c", words)


def test_a_filesystem_is_two_rows_and_a_word(tmp_path: Path) -> None:
    docs_pages.apply("adding-a-filesystem", tmp_path)
    file = topology(tmp_path, "adding-a-filesystem")
    command(tmp_path, "validate", file)
    steps = (
        "from pathlib import Path; from testbed.topology.load import load;"
        "from testbed.guest.setup.block_stack import plan_stack;"
        f"print(plan_stack(load(Path({file!r})).guests['g0'], {{'data': '/dev/vda'}}))"
    )
    shown = run(tmp_path, "-c", steps)
    assert "mkfs.ext2 -q -F" in shown and "-t ext2" in shown
    with pytest.raises(AssertionError, match="ext2 needs at least 64K"):
        (tmp_path / file).write_text((tmp_path / file).read_text().replace("size: 1G", "size: 32K"))
        command(tmp_path, "validate", file)


def test_a_kernel_is_one_row_and_a_flavour_one_file(tmp_path: Path) -> None:
    docs_pages.apply("adding-a-kernel", tmp_path)
    assert "debian-6.1-rt" in command(tmp_path, "kernel", "list")
    shown = run(
        tmp_path,
        "-c",
        "from pathlib import Path; from testbed.store.kernels import builder;"
        "from testbed.store.kernels.table import load_table;"
        "row = load_table(Path('images/kernels.yaml')).resolve('debian-6.1-rt');"
        "print(row.package, row.series.value, builder.list_flavours(Path('images')))",
    )
    assert shown.startswith("linux-image-rt-amd64 after") and "kcsan" in shown


# The function that the page's ablation edits, as Debian's 6.1 and 6.12 have it.
_HANDLE_CMD = """\
	if (cmd_blkcg_css)
		kthread_associate_blkcg(cmd_blkcg_css);
	if (cmd_memcg_css)
		old_memcg = set_active_memcg(
			mem_cgroup_from_css(cmd_memcg_css));
"""


def test_an_ablation_is_one_row(tmp_path: Path) -> None:
    docs_pages.apply("adding-an-ablation", tmp_path)
    (tmp_path / "loop.c").write_text(_HANDLE_CMD)
    apply = (
        "from pathlib import Path; from testbed.store.kernels.ablations import ABLATIONS, apply_ablation;"
        "print(apply_ablation(ABLATIONS['issuer-not-active'], lambda _: Path('loop.c').read_text()))"
    )
    assert "set_active_memcg(NULL)" in run(tmp_path, "-c", apply)
    (tmp_path / "loop.c").write_text("moved")
    with pytest.raises(AssertionError, match="its place has moved in this source"):
        run(tmp_path, "-c", apply)


def test_a_report_format_is_a_function_and_a_row(tmp_path: Path) -> None:
    docs_pages.apply("adding-a-report-format", tmp_path)
    made = tmp_path / "run"
    made.mkdir()
    (made / "results.json").write_text(results.text(document(made, passed(made), failed(made))))
    words = [sys.executable, "-m", "testbed", "report", str(made), "--format", "csv"]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    # The command ends as the run did: it failed.
    assert done.returncode == 1, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head == "case,kernel,verdict,measure,value,unit"
    assert "gate,base,PASS,disk reads,33554432,bytes" in lines and len(lines) == 4


def test_a_scenario_is_a_file_and_a_row(tmp_path: Path) -> None:
    """tests/guest/scenarios/test_scenarios.py runs it."""
    docs_pages.apply("adding-a-scenario", tmp_path)
    assert "tail/virtio-blk/ext4" in command(tmp_path, "scenarios", "--markdown")


def test_a_disk_kind_is_a_class_a_case_and_two_rows(tmp_path: Path) -> None:
    docs_pages.apply("adding-a-disk-kind", tmp_path)
    file = topology(tmp_path, "adding-a-disk-kind")
    command(tmp_path, "validate", file)
    plan = (
        "from pathlib import Path; import dataclasses, json; from testbed.qemu import blockdev;"
        "from testbed.topology.load import load;"
        f"disk = load(Path({file!r})).guests['g0'].disks['data'];"
        "made = blockdev.plan_storage('data', disk, Path('/scratch'));"
        "print(json.dumps([dataclasses.asdict(one) for one in blockdev.plug_commands('data', disk, 0, made)]))"
    )
    added = [one["arguments"] for one in json.loads(run(tmp_path, "-c", plan)) if one["execute"] == "device_add"]
    assert [one["driver"] for one in added] == ["pvscsi", "scsi-hd"]
    assert added[0]["bus"] == "port0" and added[1]["serial"] == "tb-data"
