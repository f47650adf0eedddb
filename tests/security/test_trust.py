"""Arguments for QEMU's command line: those of a file are refused until its reader has seen and trusted them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from testbed import bugs
from testbed.api import topologies
from testbed.bugs import Case
from testbed.bugs.load import parse_mapping, self_contained
from testbed.cli.app import app
from testbed.cli.trust import trust_command
from testbed.errors import HostError, TopologyError, UsageError
from testbed.topology import load, load_points, trust
from testbed.topology.base import Model
from testbed.topology.load import parse
from testbed.topology.model import Document, GuestModel, Topology
from testbed.topology.unused import load_for_scenarios
from testbed.vms.supervisor import VmSpec

GUEST = "version: 1\nguests:\n  g0:\n"
PYTHON_NAMES = {
    "qemu_args": f"{GUEST}    qemu_args: [-chardev]\n",
    "cpu_model": f"{GUEST}    cpu_model: max\n",
    "read_only": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G, read_only: true}}}}\n",
    "iops_total": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G, throttle: {{iops_total: 1}}}}}}\n",
    "zone_size": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G, zoned: {{zone_size: 1M}}}}}}\n",
    "direct_io": (
        f"{GUEST}    disks: {{data: {{type: nvme, size: 1G}}}}\n"
        "    loops: {l: {backing: data/x, direct_io: true}}\n"
    ),
    "memory_max": f"{GUEST}    cgroups: {{tenant: {{memory_max: 1M}}}}\n",
    "script_name": "version: 1\nsummary: it breaks\nscript: 'true'\nscript_name: x\nsignature: [{status: 0}]\n",
}


@pytest.mark.parametrize(("name", "text"), PYTHON_NAMES.items(), ids=PYTHON_NAMES)
def test_keys_have_only_their_name_in_the_file(name: str, text: str) -> None:
    """The models once also accepted `qemu_args`, which the check for `qemu-args` did not find."""
    with pytest.raises(TopologyError, match=f"{name}: unknown key"):
        (parse if text.startswith(GUEST) else bugs.parse)(text, "x.yaml")


def test_models_of_files_do_not_accept_field_names() -> None:
    def every(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for below in model.__subclasses__():
            yield from every(below)

    models = list(every(Model))
    assert {GuestModel, Document, Case} <= set(models)
    for model in models:
        config = model.model_config
        assert not config.get("populate_by_name") and not config.get("validate_by_name"), model


WORDS = ("-chardev", "file,id=x,path=/root/x")
FILES = {
    "base.yaml": "version: 1\nguests: {g0: {qemu-args: [-chardev, 'file,id=x,path=/root/x']}}\n",
    "top.yaml": "version: 1\nextends: base.yaml\nguests: {g0: {memory: 512M}}\n",
    "matrix.yaml": "version: 1\nextends: base.yaml\nmatrix: {axes: {c: [1, 2]}}\nguests: {g0: {cpus: '${c}'}}\n",
    "bug.yaml": "version: 1\nsummary: it breaks\ntopology: top.yaml\nscript-file: s.sh\nsignature: [{status: 0}]\n",
    "inside.yaml": (
        "version: 1\nsummary: it breaks\ntopology: {extends: base.yaml}\nscript: 'true'\nsignature: [{status: 0}]\n"
    ),
    "s.sh": "exit 0\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESTBED_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def words(path: Path) -> tuple[str, ...]:
    """Return a file's arguments for QEMU, from its last point if there are several."""
    if path.name in ("bug.yaml", "inside.yaml"):
        return bugs.load(path).guest.qemu_args
    return list(load_points(path).values())[-1].guests["g0"].qemu_args


def trusted(path: Path) -> bool:
    found = words(path)
    assert found == WORDS
    return trust.are_trusted(found)


USED = {
    "base.yaml": ("base.yaml",),
    "top.yaml": ("top.yaml", "base.yaml"),
    "matrix.yaml": ("matrix.yaml", "base.yaml"),
    "bug.yaml": ("bug.yaml", "top.yaml", "base.yaml", "s.sh"),
    "inside.yaml": ("inside.yaml", "base.yaml"),
}


@pytest.mark.parametrize(("file", "used"), USED.items(), ids=USED)
def test_trust_covers_included_files_until_one_changes(file: str, used: tuple[str, ...], folder: Path) -> None:
    assert not trusted(folder / file)
    trust_command([str(folder / file)])
    assert set(trust.list_trusted().values()) == {str(folder / name) for name in used} and trusted(folder / file)
    for name in used:
        text = (folder / name).read_text()
        (folder / name).write_text(f"# changed\n{text}")
        assert not trusted(folder / file), name
        (folder / name).write_text(text)
        assert trusted(folder / file)
    (folder / "other.yaml").write_text(f"# a stranger's\n{FILES['top.yaml']}")
    assert not trusted(folder / "other.yaml")
    trust_command([str(folder / used[-1])], forget=True)
    assert not trusted(folder / file)


def test_a_file_that_changes_while_it_is_read_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is a stranger's that extends itself, and is the caller's own when it is read again."""
    trust_command([str(folder / "base.yaml")])
    texts = iter(["version: 1\nextends: base.yaml\nguests: {g0: {memory: 512M}}\n", FILES["base.yaml"]])
    monkeypatch.setattr(sys.modules["testbed.topology.load"], "read_file", lambda _: next(texts))
    assert not trusted(folder / "base.yaml")


@pytest.mark.parametrize("said", ["1", "true", "*", "/", "yes,no", f"{'0' * 64}"])
def test_trust_does_not_come_from_the_shell_session(said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.VARIABLE, said)
    with pytest.raises(UsageError) as refused:
        trust.check_trusted(words(folder / "top.yaml"))
    message = str(refused.value)
    assert f"testbed trust {folder / 'top.yaml'}" in message and "-chardev file,id=x,path=/root/x" in message
    assert ("trusts nothing, it takes SHA-256 hashes of files" in message) == (not trust.is_hash(said))


def test_trusted_hashes_can_come_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [trust.content_hash(FILES[name]) for name in USED["top.yaml"]]
    monkeypatch.setenv(trust.VARIABLE, hashes[0])
    assert not trusted(folder / "top.yaml")
    monkeypatch.setenv(trust.VARIABLE, trust.variable_with(hashes[1]))
    assert trusted(folder / "top.yaml") and not trusted(folder / "bug.yaml")


def test_text_is_trusted_by_its_hash_only(folder: Path) -> None:
    for wanted in (FILES["base.yaml"], {"guests": {"g0": {"qemu-args": list(WORDS)}}}):
        found = topologies.resolve_point(wanted, folder, "a test", None).guests["g0"].qemu_args
        with pytest.raises(
            UsageError, match=r"if you have read a test and trust it: testbed trust [0-9a-f]{64}"
        ) as refused:
            trust.check_trusted(found)
        trust_command([str(refused.value).split()[-1]])
        trust.check_trusted(topologies.resolve_point(wanted, folder, "a test", None).guests["g0"].qemu_args)
    for plain in (
        GuestModel.model_validate({"qemu-args": list(WORDS)}),
        Topology.model_validate(json.loads(whole(folder))).guests["g0"],
    ):
        with pytest.raises(UsageError, match="they are from no file"):
            trust.check_trusted(plain.qemu_args)


def whole(folder: Path) -> str:
    return json.dumps(load(folder / "top.yaml").model_dump(mode="json", by_alias=True, exclude_unset=True))


def test_untrusted_files_are_refused_before_a_kernel_is_built(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"testbed trust .*top\.yaml"):
        load_for_scenarios(folder / "top.yaml", limits=None, kernel=False, ignore=False)
    trust_command([str(folder / "top.yaml")])
    trust.check_trusted(
        load_for_scenarios(folder / "top.yaml", limits=None, kernel=False, ignore=False).guest.qemu_args
    )


def test_trust_in_a_bug_covers_its_parts_and_no_other_mapping(folder: Path) -> None:
    plain = self_contained(folder / "bug.yaml")
    trust_command([str(folder / "bug.yaml")])
    case = bugs.load(folder / "bug.yaml")
    plain["topology"]["guests"]["g0"]["memory"] = "256M"
    assert trust.are_trusted(parse_mapping(plain, sources=trust.sources_of(case.guest.qemu_args)).guest.qemu_args)
    assert not trust.are_trusted(parse_mapping(plain).guest.qemu_args)


def test_a_supervisor_trusts_only_what_its_command_trusted(folder: Path) -> None:
    spec = VmSpec(
        name="g0",
        topology=json.loads(whole(folder)),
        file="x",
        point="",
        guest="g0",
        kernel="k",
        networks="",
        evidence="",
        cold=False,
    )
    assert not VmSpec.from_json(spec.to_json()).trusted
    assert VmSpec.from_json(replace(spec, trusted=True).to_json()).trusted


def test_only_the_callers_own_trust_list_is_read(folder: Path) -> None:
    trust_command([str(folder / "top.yaml")])
    path = trust.trust_file()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o622)
    with pytest.raises(HostError, match="that nobody else may write"):
        words(folder / "top.yaml")
    path.chmod(0o600)
    path.write_text(f"{path.read_text()}# all files\n")
    with pytest.raises(HostError, match="expected a SHA-256 and a file's name in each line, got '# all files'"):
        words(folder / "top.yaml")
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(HostError, match="cannot be read"):
        words(folder / "top.yaml")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(HostError, match="that nobody else may write"):
        words(folder / "top.yaml")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_the_trust_list_of_another_user_is_refused(folder: Path) -> None:
    trust_command([str(folder / "top.yaml")])
    os.chown(trust.trust_file(), 12345, 12345)
    with pytest.raises(HostError, match="expected a file of uid 0"):
        words(folder / "top.yaml")


def test_trust_shows_the_arguments_and_trusts_nothing_else(folder: Path) -> None:
    (folder / "none.yaml").write_text("version: 1\nguests: {g0: {}}\n")
    for what, why in (("none.yaml", "one without any"), ("gone.yaml", "cannot be read"), ("s.sh", "s.sh")):
        with pytest.raises((UsageError, TopologyError), match=why):
            trust_command([str(folder / "top.yaml"), str(folder / what)])
    assert trust.list_trusted() == {}
    with pytest.raises(UsageError, match="trust --forget: expected a file or a hash"):
        trust_command(None, forget=True)
    assert (
        CliRunner().invoke(app, ["trust", str(folder / "top.yaml")]).output
        == f"{folder / 'top.yaml'}: g0: {' '.join(WORDS)}\n"
    )
    assert CliRunner().invoke(app, ["trust"]).output.splitlines() == [
        f"{one}  {name}" for one, name in trust.list_trusted().items()
    ]
