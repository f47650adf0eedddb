"""What the testbed reads and writes is UTF-8, whatever the locale of the machine says."""

from __future__ import annotations

import ast
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "testbed"
# `.open` of these is no file's.
_OTHERS = {"os", "gzip", "lzma", "bz2", "tarfile", "webbrowser", "state", "self._ports[-1]"}
# Where the mode is among the arguments of a function that opens files.
_MODE = {"open": 1, "os.fdopen": 1, ".open": 0, ".makefile": 0}


def unnamed(source: str) -> Iterator[str]:
    """The calls that read or write text and leave its encoding to the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = ast.unparse(node.func)
        owner, dot, method = name.rpartition(".")
        if method in ("read_text", "write_text") and dot:
            yield ast.unparse(node)
        if owner in _OTHERS and name not in _MODE:
            continue
        place = _MODE.get(name, _MODE.get(f".{method}") if dot else None)
        if place is None:
            continue
        modes = [*node.args[place : place + 1], *(word.value for word in node.keywords if word.arg == "mode")]
        if not modes or "b" not in ast.unparse(modes[0]):
            yield ast.unparse(node)


def test_every_text_file_names_its_encoding() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {call}"
        for path in PACKAGE.rglob("*.py")
        for call in unnamed(path.read_text(encoding="utf-8"))
    }
    assert not found, "add encoding='utf-8'"


@pytest.mark.parametrize(
    "call", ["p.read_text()", "p.write_text(x)", "open(p)", "p.open()", "p.open('a')", "os.fdopen(3, 'w')"]
)
def test_calls_without_an_encoding_are_detected(call: str) -> None:
    assert list(unnamed(call)) == [ast.unparse(ast.parse(call))]
    assert (
        list(unnamed(call[:-1] + ", encoding='utf-8')" if call[-2] != "(" else call[:-1] + "encoding='utf-8')")) == []
    )


@pytest.mark.parametrize(
    "call", ["p.open('rb')", "open(p, 'wb')", "os.fdopen(3, 'wb')", "os.open(p, flags)", "gzip.open(p)"]
)
def test_binary_files_need_no_encoding(call: str) -> None:
    assert list(unnamed(call)) == []


LATIN = "de_DE.ISO-8859-1"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
BEGIN = "version: 1\nguests:\n  g0:\n    disks:\n      data: {type: virtio-blk, size: 1G, image: bücher€.img}\n"


@pytest.fixture(scope="module", params=["ascii", "latin"])
def locale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine whose locale is not UTF-8."""
    if request.param == "ascii":
        return ASCII
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("no localedef here (package locales)")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "ISO-8859-1", folder / LATIN], check=True)
    return {"LC_ALL": LATIN, "LOCPATH": str(folder)}


def command(env: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONIOENCODING", "PYTHONUTF8"))
    }
    return subprocess.run(
        [sys.executable, "-m", "testbed", *words], env=clean | env, capture_output=True, cwd=PACKAGE.parent
    )


@pytest.mark.slow
def test_file_names_are_utf8_in_any_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    folder = tmp_path / "bücher"
    folder.mkdir()
    (folder / "ä€.yaml").write_text(BEGIN, encoding="utf-8")
    with (folder / "bücher€.img").open("wb") as image:
        image.truncate(1 << 20)
    done = command(locale, "validate", folder / "ä€.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "ä€.yaml").write_text(BEGIN.replace("data:", "dätä€:"), encoding="utf-8")
    done = command(locale, "validate", folder / "ä€.yaml")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert "bücher/ä€.yaml:5:7: guests.g0.disks.dätä€: expected a name" in done.stdout.decode()


@pytest.mark.slow
def test_a_terminal_gets_its_encoding_and_escapes_for_other_characters(tmp_path: Path, locale: dict[str, str]) -> None:
    (tmp_path / "ä€.yaml").write_text("version: 1\nguests: {}\n", encoding="utf-8")
    words = [sys.executable, "-m", "testbed", "validate", str(tmp_path / "ä€.yaml")]
    ours, theirs = pty.openpty()
    done = subprocess.run(words, env=os.environ | locale, stdout=theirs, stderr=subprocess.PIPE, cwd=PACKAGE.parent)
    os.close(theirs)
    said = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 1, done.stderr
    expected = "ä\\u20ac.yaml:2:1".encode("latin-1") if locale["LC_ALL"] == LATIN else "ä€.yaml:2:1".encode()
    assert expected in said
