"""Users' scripts: what reads them, and what is wrong with one before a guest starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.bugs import load, parse, shell_messages, syntax_check
from testbed.bugs.load import parse_mapping
from testbed.bugs.script_files import Language, Script, environment_names, script, script_mistakes
from testbed.errors import TopologyError
from testbed.topology.model import GuestModel

DISKS = {
    "data": {"type": "nvme", "size": "1G", "namespaces": {"n-2": {"size": "64M"}}},
    "split": {"type": "nvme", "size": "1G", "partitions": [{}]},
}
GUEST = {
    "guests": {
        "g0": {
            "disks": DISKS,
            "loops": {"l0": {"backing": "data/file", "size": "64M"}},
            "environment": {"DEV_OWN": "x"},
        }
    }
}
PLAIN = {"version": 1, "summary": "a test", "signature": [{"output": "BAD"}], "topology": GUEST}


@pytest.mark.parametrize(
    ("first", "interpreter", "language"),
    [
        ("echo", ("bash",), "bash"),
        ("#!/bin/sh", ("/bin/sh",), "sh"),
        ("#! /bin/dash -e ", ("/bin/dash", "-e"), "sh"),
        ("#!/usr/bin/env bash", ("/usr/bin/env", "bash"), "bash"),
        ("#!/usr/bin/env -S python3 -u", ("/usr/bin/env", "-S python3 -u"), "python"),
        ("#!/usr/bin/perl -w", ("/usr/bin/perl", "-w"), "perl"),
        ("#!/usr/bin/bpftrace", ("/usr/bin/bpftrace",), "other"),
        ("#!", ("bash",), "bash"),
    ],
)
def test_the_first_line_names_the_interpreter(first: str, interpreter: tuple[str, ...], language: Language) -> None:
    one = script("crash.sh", f"{first}\necho")
    assert (one.interpreter, one.language, one.path) == (interpreter, language, "/run/testbed/crash.sh")


def test_a_bug_file_may_name_the_interpreter_of_its_scripts() -> None:
    bug = parse_mapping(PLAIN | {"script": "#!/bin/sh\ntrue", "prepare": "true", "interpreter": "bash -eu"}).bug
    assert bug.main == Script(name="script", text="#!/bin/sh\ntrue", interpreter=("bash", "-eu"))
    assert bug.preparation is not None and bug.preparation.interpreter == ("bash", "-eu")


def test_a_name_of_a_file_has_nothing_that_messages_are_parsed_by() -> None:
    assert script("a b: 3", "").name == "a_b__3" and script("bin", "").path == "/run/testbed/_bin"


@pytest.fixture(scope="module")
def guest() -> GuestModel:
    return parse_mapping(PLAIN | {"script": "true"}).guest


def test_what_a_topology_makes(guest: GuestModel) -> None:
    assert set(environment_names(guest)) == {
        "SEED",
        "DEV_DATA",
        "DEV_N_2",
        "DEV_SPLIT",
        "DEV_SPLIT_P1",
        "DEV_L0",
        "NUM_DATA",
        "NUM_N_2",
        "NUM_SPLIT",
        "FILE_L0",
    }


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ('dd if="$DEV_LO"', "DEV_L0"),
        ("dd if=${DEV_LO}", "DEV_L0"),
        ('x=${DEV_LO:?}; [ "${#DEV_LO}" ]', "DEV_L0"),
        ('bash -c "dd if=\\$DEV_LO"', "DEV_L0"),
        ("mkfs $DEV_L0p1", "${DEV_L0}p1"),
        ("echo $FILE_LO", "FILE_L0"),
        ("echo $NUM_DATTA", "NUM_DATA"),
        ("echo $DVE_L0", "DEV_L0"),
        ("echo $SEEED", "SEED"),
        ("echo $DEV_OTHER", None),
        ("os.open(os.environ['DEV_LO'])", "DEV_L0"),
        ('open(getenv("DEV_LO"), O_RDWR)', "DEV_L0"),
        ("open $ENV{DEV_LO}", "DEV_L0"),
        ("DEV_X=1; echo $DEV_LO # DEV_LO=$DEV_L0", "DEV_L0"),
    ],
)
def test_a_variable_that_the_topology_does_not_make_is_a_mistake(
    guest: GuestModel, line: str, meant: str | None
) -> None:
    ((number, said),) = script_mistakes(f"# a comment\n{line}\n", guest)
    assert number == 2
    assert said.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in said


@pytest.mark.parametrize(
    "text",
    [
        'dd if="$DEV_L0" of=${FILE_L0} $SEED ${NUM_N_2} $DEV_SPLIT_P1',
        "echo $DEV_OWN",  # of the topology's environment
        "# $DEV_LO\necho a # $DEV_LO",
        "echo ${DEV_LO:-/dev/loop0} ${DEV_LO+there}",
        "os.environ.get('DEV_LO', '/dev/loop0')",
        "DEV_LO=/dev/loop0\necho $DEV_LO",
        "export DEV_LO=1; echo $DEV_LO",
        "read -r a DEV_LO; echo $DEV_LO",
        "for DEV_LO in a b; do echo $DEV_LO; done",
        "local a=1 DEV_LO; echo $DEV_LO",
        "mapfile -t FILE_S; echo ${FILE_S[0]}",
        "printf -v NUM_X %d 1; echo $NUM_X",
        "((NUM_X = 1)); echo $NUM_X",
        ": ${NUM_X:=1}; echo $NUM_X",
        "NUM_X+=1; NUM_Y[1]=2; echo $NUM_X $NUM_Y",
        "echo $SPEEDY $HOME $1 $? $FILE",
    ],
)
def test_other_variables_are_the_scripts_own_affair(guest: GuestModel, text: str) -> None:
    assert not list(script_mistakes(text, guest))


# A bundle may come from anybody.
@pytest.mark.parametrize(
    "text",
    [
        "read " * 40_000,
        "a" * 200_000,
        "$DEV_X" + "a" * 190_000,
        "\n".join(f"$DEV_{n}" for n in range(20_000)),
        "a[" * 100_000,
        "set -a " * 28_000,
    ],
    ids=range(6),
)
@pytest.mark.timeout(60)
def test_no_script_holds_up_this_machine(guest: GuestModel, text: str) -> None:
    assert len(list(script_mistakes(text, guest))) <= 50
    heard = shell_messages.Stream(shell_messages.Source(script("a", text)), errors=True)
    for line in (
        text.partition("\n")[0][:4096],
        "/run/testbed/a: line 1: " + "x" * 4000,
        "+" * 4096,
        "a" * 4000 + ": 3: x: not found",
    ):
        heard.failed_command(line)
        heard.why_not_output(line)


def test_a_byte_order_mark_is_a_mistake(guest: GuestModel) -> None:
    ((line, said),) = script_mistakes("\ufeff#!/bin/sh\necho", guest)
    assert line == 1 and said.startswith("expected text without a byte order mark, which hides the first line; sed -i ")


def test_windows_lines_are_a_mistake(guest: GuestModel) -> None:
    ((number, said),) = script_mistakes("#!/bin/bash\ntrue\r\nfalse\r\n", guest)
    assert number == 2 and "got CR LF" in said


def test_mistakes_of_scripts_are_named_by_the_file_and_line_where_they_stand(tmp_path: Path) -> None:
    text = (
        "version: 1\nsummary: a\nprepare: 'true $DEV_A'\nscript: |\n\n  true\n  true $DEV_B\nsignature: [{status: 0}]\n"
    )
    with pytest.raises(TopologyError) as caught:
        parse(text, "b.yaml")
    said = [(problem.file, problem.line, problem.message.partition(",")[0]) for problem in caught.value.problems]
    wanted = "expected a variable that the topology makes (SEED) or that the script sets"
    assert said == [("b.yaml", 3, f"in its line 1: {wanted}"), ("b.yaml", 7, wanted)]

    (tmp_path / "crash.sh").write_bytes(b"true\r\ntrue $DEV_B\n")
    (tmp_path / "b.yaml").write_text("version: 1\nsummary: a\nscript-file: crash.sh\nsignature: [{status: 0}]\n")
    with pytest.raises(TopologyError) as caught:
        load(tmp_path / "b.yaml")
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [
        (str(tmp_path / "crash.sh"), line) for line in (1, 2)
    ]


UNREADABLE = {
    "bash": ("if true; then\n  true\n", 3, "syntax error: unexpected end of file"),
    "a quote": ("echo 'a\n", 1, "unexpected EOF"),
    "a document without its end": ("cat <<EOF\na\n EOF\ntrue\n", 4, "here-document at line 1"),
    "of sh": ("#!/bin/sh\ncat <<EOF\na\n", 3, "here-document at line 2"),
    "python": ("#!/usr/bin/env python3\n\nprint 'a'\n", 3, "SyntaxError: "),
    "nested too deeply": ("#!/usr/bin/python3\n" + "(" * 5000, 1, "Error: "),
}


@pytest.mark.parametrize(("text", "line", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_script_that_cannot_be_read_is_a_mistake(text: str, line: int, said: str) -> None:
    ((number, found),) = syntax_check.syntax_mistakes(script("crash", text))
    assert said in found and (number == line or "nested" in text or "((" in text)


@pytest.mark.skipif(shutil.which("dash") is None, reason="another sh takes what dash does not")
def test_dash_does_not_take_what_bash_does() -> None:
    assert syntax_check.syntax_mistakes(script("a", "#!/bin/sh\na=(1 2)\n")) and not syntax_check.syntax_mistakes(
        script("a", "a=(1 2)\n")
    )


def test_what_is_only_read_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "env"))
    (tmp_path / "env").write_text(f"touch {tmp_path}/ran")
    for first in ("", "#!/bin/sh\n", "#!/usr/bin/perl\nBEGIN { system('false') }\n"):
        assert not syntax_check.syntax_mistakes(script("a", f"{first}touch {tmp_path}/ran\n"))
    assert not syntax_check.syntax_mistakes(script("a", f"#!/usr/bin/python3\nopen('{tmp_path}/ran', 'w')\n"))
    assert not syntax_check.syntax_mistakes(script("a", "shopt -s extglob\nrm -f !(a|b)\n"))
    assert not (tmp_path / "ran").exists()


BUG = """\
version: 1
summary: a test
kernels: {shows: [debian-5.10]}
prepare: 'true'
script: |
  echo BYPASSED
signature: [{output: BYPASSED}, {expect: ^BYPASSED$}]
"""


def cli(tmp_path: Path, *words: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "testbed", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_validate_reads_the_scripts_and_looks_for_the_kernels_of_a_bug(tmp_path: Path) -> None:
    done = cli(tmp_path, "validate", "b.yaml", b_yaml=BUG)
    assert done.returncode == 0 and "1 valid" in done.stderr
    assert "b.yaml: note: signature 1: 'BYPASSED' matches line 1 of the script itself, 'echo BYPASSED'" in done.stderr
    assert "signature 2" not in done.stderr
    wrong = BUG.replace("debian-5.10]", "debian-9], clean: [built-nothing, /no/bzImage]").replace(
        "  echo", "  $DEV_X\n  echo"
    )
    done = cli(tmp_path, "validate", "b.yaml", b_yaml=wrong)
    assert done.returncode == 1 and done.stdout.count("\n") == 4
    for said in (
        "3:19: kernels.shows.0: kernel 'debian-9'",
        "kernels.clean.0: kernel 'built-nothing'",
        "kernels.clean.1: ",
        "6:1: script: expected a variable",
    ):
        assert f"b.yaml:{said}" in done.stdout or said in done.stdout
    done = cli(tmp_path, "validate", "b.yaml", b_yaml=BUG.replace("echo B", "if echo B").replace("'true'", "'('"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("b.yaml:4:10: prepare: in its line 2: syntax error")
    assert done.stdout.splitlines()[1].startswith("b.yaml:7:1: script: syntax error")


@pytest.mark.slow
def test_verbs_that_run_bugs_look_before_they_start_a_guest(tmp_path: Path) -> None:
    (tmp_path / "crash.sh").write_bytes(b"#!/bin/bash\ntrue $DEV_LO\ntrue\r\n")
    done = cli(tmp_path, "repro", "--script", "crash.sh")
    assert (
        done.returncode == 2
        and "crash.sh:2:1: script: expected a variable" in done.stderr
        and "crash.sh:3:1: script: " in done.stderr
    )
    for words in (("repro", "b.yaml"), ("reduce", "b.yaml"), ("bisect", "b.yaml", "--run", "debian-6.1")):
        done = cli(tmp_path, *words, b_yaml=BUG.replace("echo B", "if echo B"))
        assert "b.yaml:7:1: script: syntax error" in done.stderr, done


def test_the_plan_of_a_bug_is_that_of_its_guest(tmp_path: Path) -> None:
    done = cli(
        tmp_path, "plan", "b.yaml", b_yaml=BUG + "topology: {guests: {g0: {disks: {data: {type: nvme, size: 1G}}}}}\n"
    )
    assert done.returncode == 0 and "nvme" in done.stdout
    assert done.stdout.endswith(
        "which find $SEED, $DEV_DATA, $NUM_DATA\nbash /run/testbed/prepare\nbash /run/testbed/script\n"
    )
    done = cli(tmp_path, "plan", "b.yaml", "--point", "a=b", b_yaml=BUG)
    assert done.returncode == 2 and "a bug has one guest, and no matrix" in done.stderr
