"""Topology files: what one extends, and texts that are no topology."""

from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.topology import load
from tests.support.topologies import errors


def test_an_extending_file_merges_replaces_and_removes(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "version: 1\nguests:\n  g0:\n    cpus: 4\n    append: [one, two]\n    disks:\n      a: {type: nvme, size: 1G}\n"
        "      b: {type: nvme, size: 1G}\n"
    )
    (tmp_path / "top.yaml").write_text(
        "version: 1\nextends: base.yaml\nguests:\n  g0:\n    append: [three]\n    disks:\n      a: {size: 2G}\n      "
        "b: null\n"
    )
    guest = load(tmp_path / "top.yaml").guests["g0"]
    assert guest.cpus == 4 and guest.append == ("three",)
    assert {name: (disk.type, disk.size) for name, disk in guest.disks.items()} == {"a": ("nvme", 2 << 30)}


def test_a_mistake_is_reported_in_the_file_that_contains_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "version: 1\nguests:\n  g0:\n    disks:\n      a: {type: nvme, size: 1G, profil: hdd-7200}\n"
    )
    messages = errors("version: 1\nextends: base.yaml\nguests: {g0: {cpus: 99}}\n", tmp_path / "top.yaml")
    assert messages[1:] == [
        f"{tmp_path}/base.yaml:5:33: guests.g0.disks.a.profil: unknown key; did you mean 'profile'?"
    ]
    assert messages[0].startswith(f"{tmp_path}/top.yaml:3:21: guests.g0.cpus: ")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("extends: top.yaml", "does one extend itself?"),
        ("extends: none.yaml", "none.yaml:1:1: cannot be read"),
        ("extends: /etc/passwd", "expected the path of a .yaml file, relative to this one, got '/etc/passwd'"),
        ("extends: ../../etc/passwd", "expected the path of a .yaml file"),
        ("extends: 5", "expected the path of a .yaml file"),
    ],
)
def test_an_invalid_extends_is_reported(said: str, message: str, tmp_path: Path) -> None:
    found = errors(f"version: 1\n{said}\nguests: {{g0: {{}}}}\n", tmp_path / "top.yaml")
    assert any(message in line for line in found), found


def test_a_text_without_a_file_cannot_extend() -> None:
    assert "expected the path of a .yaml file" in errors("version: 1\nextends: base.yaml\nguests: {g0: {}}\n")[0]


@pytest.mark.parametrize(
    "text",
    ["", "[", "a", "- 1", "version: 1", "&a [*a]", "{" * 5000, "version: 1\nguests: {}\n", "\x00", "a: !!binary x"],
)
def test_an_invalid_text_is_an_error_with_a_place(text: str) -> None:
    assert all(message.startswith("a.yaml:") for message in errors(text))


def test_a_missing_or_binary_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\n# \xff\n")
    with pytest.raises(TopologyError, match=r"latin\.yaml:2:3: expected UTF-8"):
        load(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "version: 1\nguests: {g: {append: ['\x1b[2J']}}\n",
            "a.yaml:2:24: not YAML: the character U+001B must not stand in it",
        ),
        ("version: true\nguests: {g: {}}\n", "a.yaml:1:10: version: expected 1, got true"),
        ("version: 1.0\nguests: {g: {}}\n", "a.yaml:1:10: version: expected 1, got 1.0"),
        ("version: 1\nguests: {g: {cpus: two}}\n", "guests.g.cpus: expected a whole number, got 'two'"),
        ("version: 1\nguests: {g: {cpus: 99999999999999999999999999}}\n", "guests.g.cpus: "),
        ("version: 1\nguests: {g: {sample: 11min}}\n", "guests.g.sample: expected at most 10min, got '11min'"),
        (f"version: 1\nguests: {{g: {{append: {'x' * 5000}}}}}\n", "guests.g.append: expected a list, got 'xxx"),
    ],
)
def test_messages_use_the_keys_of_the_file_and_stay_short(text: str, said: str) -> None:
    (message,) = errors(text)
    assert said in message and len(message) < 400, message


def test_aliases_cannot_multiply_without_bound() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert any("more than" in message for message in errors(bomb))
