"""Bug files: valid ones, mistakes with their places, and the self-contained copy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.bugs import load, parse
from testbed.bugs.load import is_bug, parse_mapping, self_contained, to_yaml
from testbed.bugs.model import Case, json_schema
from testbed.errors import TopologyError

MUSEUM = Path(__file__).parents[3] / "topologies" / "bugs"
LEAST = "version: 1\nsummary: it breaks\nscript: 'true'\nsignature: [{status: 0}]\n"
WHOLE = """\
version: 1
summary: it breaks
source: a mail
kernels:
  shows: [debian-5.10]
  clean: [debian-6.1]
topology:
  guests:
    g0:
      memory: 512M
      disks:
        data: {type: nvme, size: 1G}
      timeline:
        - {at: 500ms, do: hang data 1s}
script: |
  echo one
  echo two
signature:
  - {console: "BUG: "}
  - {cgroup: a/b, counter: memory.events oom_kill, above: 1}
tries: 5
timeout: 90s
"""


def errors(text: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse(text, "b.yaml", folder)
    return [str(problem) for problem in caught.value.problems]


def test_the_least_bug_runs_on_a_plain_guest() -> None:
    case = parse(LEAST)
    assert (case.bug.tries, case.bug.timeout_s, case.bug.main.interpreter) == (20, 300, ("bash",))
    assert case.guest.cpus == 2 and not case.guest.disks


def test_a_whole_bug() -> None:
    case = parse(WHOLE)
    assert case.bug.kernels.shows == ("debian-5.10",) and case.bug.timeout_s == 90
    assert case.guest.memory == 512 << 20 and case.guest.timeline[0].at == 500_000
    assert [one.describe() for one in case.bug.signature] == ["console 'BUG: '", "a/b/memory.events oom_kill above 1"]


MISTAKES = {
    "nothing": (
        "version: 1\n",
        ["b.yaml:1:1: summary: expected this key, it is missing", "b.yaml:1:1: script: ", "b.yaml:1:1: signature: "],
    ),
    "a typing mistake": (LEAST + "trys: 3\n", ["b.yaml:5:1: trys: unknown key; did you mean 'tries'?"]),
    "a condition without keys": (
        LEAST.replace("{status: 0}", "{}"),
        [
            (
                "b.yaml:4:13: signature.0: expected one of console, output, expect, "
                "status, counter, hang and guest, got none"
            )
        ],
    ),
    "a pattern that is none": (
        LEAST.replace("{status: 0}", "{console: '(a'}"),
        [
            (
                "b.yaml:4:23: signature.0.console: expected a regular expression (RE2's: no lookaround, "
                "no back-references), got '(a': missing"
            )
        ],
    ),
    "a counter without its cgroup": (
        LEAST.replace("{status: 0}", "{counter: memory.current, above: 3}"),
        ["b.yaml:4:13: signature.0: expected a cgroup and its counter, got one of them"],
    ),
    "a pattern of which every line is one": (
        LEAST.replace("{status: 0}", "{output: 'BUG|'}, {console: .*}, {output: ^$}, {output: '[^0]'}"),
        [
            (
                "b.yaml:4:13: signature.0: expected a pattern that not every line matches, "
                "got output 'BUG|', which matches any line"
            ),
            "b.yaml:4:31: signature.1: expected a pattern that not every line matches, got console '.*'",
        ],
    ),
    "lines of a console": (
        LEAST.replace("{status: 0}", r"{console: a\nb}, {output: a\nb}"),
        [
            (
                r"b.yaml:4:13: signature.0: expected a pattern of one line, "
                r"got console 'a\\nb': the console is looked at line by line"
            )
        ],
    ),
    "what no try can show": (
        LEAST.replace(
            "{status: 0}",
            "{status: 125}, {cgroup: a, counter: memory.events oom, below: 0}, {console: x, above: 1, below: 5}",
        ),
        [
            "b.yaml:4:13: signature.0: expected another status than 125, by which a script says that it could not try",
            "b.yaml:4:28: signature.1: expected below with more than 0: no counter is below 0",
            "b.yaml:4:79: signature.2: expected above or below for a counter, and for nothing else",
        ],
    ),
    "a script that does nothing": (
        LEAST.replace("'true'", "|\n\n  #!/bin/sh\n  # later\n"),
        ["b.yaml:4:1: script: expected a script that does something, got none but comments and empty lines"],
    ),
    "an end that is none": (
        LEAST.replace("{status: 0}", "{guest: explodes}"),
        ["b.yaml:4:21: signature.0.guest: expected 'lost', 'panic', 'oops', "],
    ),
    "a hang that nobody waits for": (
        LEAST.replace("{status: 0}", "{hang: 60s}") + "timeout: 1min\n",
        ["b.yaml:4:20: signature.0.hang: expected less than the timeout of 1min, got 1min"],
    ),
    "a kernel on both sides": (
        LEAST + "kernels: {shows: [a, b], clean: [b]}\n",
        ["b.yaml:5:26: kernels.clean: expected kernels where it does not show, got b, where it does"],
    ),
    "mistakes of the topology and of the bug, each in its place": (
        WHOLE.replace("512M", "big").replace("tries: 5", "tries: 0").replace("nvme", "floppy"),
        [
            "b.yaml:10:15: topology.guests.g0.memory: expected a size such as 2G, got 'big'",
            "b.yaml:12:",
            "b.yaml:21:8: tries: input should be greater than or equal to 1, got 0",
        ],
    ),
    "a topology of two guests": (
        LEAST + "topology: {guests: {a: {}, b: {}}}\n",
        ["b.yaml:5:1: topology: expected one guest, on which the script runs, got 2 guests"],
    ),
    "a matrix": (
        LEAST + "topology: {matrix: {axes: {n: [1, 2]}}, guests: {a: {cpus: '${n}'}}}\n",
        ["b.yaml:5:1: topology: expected one guest, on which the script runs, got a matrix of 2 points"],
    ),
    "a file where there are none": (
        LEAST.replace("script: 'true'", "script-file: /etc/passwd") + "topology: x.yaml\n",
        [
            "b.yaml:3:14: script-file: expected the path of a script",
            "b.yaml:5:11: topology: expected a topology, or the path of",
        ],
    ),
    "two scripts": (
        LEAST + "script-file: x.sh\n",
        ["b.yaml:5:14: script-file: expected script or script-file, got both"],
    ),
    "an empty file": ("", ["b.yaml:1:1: expected a topology, got an empty file"]),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_every_mistake_is_said_at_its_place(text: str, expected: list[str]) -> None:
    said = errors(text)
    assert len(said) == len(expected), said
    for one, begin in zip(said, expected, strict=True):
        assert one.startswith(begin), said


def test_a_bug_file_that_lacks_its_signature_is_no_topology(tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    for text in (LEAST, LEAST.replace("signature:", "signatur:"), "script-file: x.sh\n"):
        file.write_text(text)
        assert is_bug(file)
    file.write_text("version: 1\nguests: {}\nsummary: x\n")
    assert not is_bug(file)


def test_files_are_relative_to_the_bugs_own(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "base.yaml").write_text(
        "version: 1\nguests: {g0: {memory: 512M, disks: {data: {type: nvme, size: 1G}}}}\n"
    )
    (tmp_path / "below" / "top.yaml").write_text("version: 1\nextends: ../base.yaml\nguests: {g0: {cpus: 1}}\n")
    (tmp_path / "below" / "crash.sh").write_text("echo here\n")
    file = tmp_path / "bug.yaml"
    file.write_text(LEAST.replace("script: 'true'", "script-file: below/crash.sh") + "topology: below/top.yaml\n")
    case = load(file)
    assert case.bug.script == "echo here\n" and (case.guest.cpus, case.guest.memory) == (1, 512 << 20)
    assert is_bug(file) and not is_bug(tmp_path / "base.yaml") and not is_bug(tmp_path / "none")
    # The self-contained copy is equal.
    assert parse_mapping(self_contained(file)) == case


def test_a_script_that_lies_elsewhere_is_not_read(tmp_path: Path) -> None:
    """The script could be any file of the caller, and would be copied into guests, run folders and bundles."""
    folder = tmp_path / "strangers"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "secret").write_text("root:secret\n")
    (folder / "link").symlink_to("../secret")
    (folder / "out").symlink_to("..")
    (folder / "below" / "crash.sh").write_text("true\n")
    (folder / "inside").symlink_to("below/crash.sh")
    for name in ("../secret", "link", "out/secret", "below/../../secret"):
        (folder / "bug.yaml").write_text(LEAST.replace("script: 'true'", f"script-file: {name}"))
        with pytest.raises(TopologyError, match=f"expected a file in {folder}, got one that lies elsewhere"):
            load(folder / "bug.yaml")
        with pytest.raises(TopologyError, match="lies elsewhere"):
            self_contained(folder / "bug.yaml")
    (folder / "bug.yaml").write_text(LEAST.replace("script: 'true'", "script-file: inside"))
    assert load(folder / "bug.yaml").bug.script == "true\n"


@pytest.mark.parametrize(
    "text",
    ["script-file: pipe.yaml\n", "script: x\ntopology: pipe.yaml\n", "script: x\ntopology: {extends: pipe.yaml}\n"],
)
def test_what_a_file_names_is_not_waited_for(text: str, tmp_path: Path) -> None:
    """Covers pipes behind links, too; only a pipe that the caller names, as a shell's <(...), is read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe.yaml").symlink_to("pipe")
    (tmp_path / "bug.yaml").write_text(LEAST.replace("script: 'true'\n", text))
    with pytest.raises(TopologyError, match="cannot be read: expected a file, got something else"):
        load(tmp_path / "bug.yaml")


@pytest.mark.parametrize("text", [LEAST, WHOLE])
def test_a_bug_that_is_written_is_the_same_bug(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    again = to_yaml(self_contained(file), "made by\nhand")
    assert again.startswith("# made by\n# hand\n")
    assert parse(again) == parse(text)
    assert to_yaml(self_contained(file)) == to_yaml(self_contained(file))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_script_survives_being_written(script: str) -> None:
    plain = {"version": 1, "summary": "s", "script": script, "signature": [{"output": "on"}, {"output": "1:30"}]}
    try:
        expected = parse_mapping(plain)
    except TopologyError:
        return
    assert parse(to_yaml(plain)) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), st.text(max_size=6)), max_size=4))
def test_a_mutated_file_is_a_bug_or_an_error_never_a_traceback(cuts: list[tuple[int, int, str]]) -> None:
    text = WHOLE
    for at, length, new in cuts:
        text = text[:at] + new + text[at + length :]
    try:
        assert isinstance(parse(text), Case)
    except TopologyError as error:
        assert error.problems


def test_the_published_schema_is_the_models() -> None:
    assert (MUSEUM / "schema.json").read_text() == json_schema()


@pytest.mark.parametrize("file", sorted(MUSEUM.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_piece_of_the_museum_is_valid_and_names_its_kernels_and_source(file: Path) -> None:
    bug = load(file).bug
    assert bug.kernels.shows and bug.kernels.clean and bug.source
