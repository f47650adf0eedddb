"""A kernel's symbols as gdb reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.guest.debug.kallsyms import Symbol, address_of, make_elf, parse, read_elf

KALLSYMS = """\
ffffffff9b000000 T _text
ffffffff9b0001a0 t loop_queue_rq
ffffffff9c000000 D init_task
0000000000000000 T hidden
ffffffffc0001000 t lo_ioctl\t[loop]
rubbish
ffffffff9b000000 A absolute
"""


def test_lines_become_symbols_and_other_text_is_skipped() -> None:
    found = list(parse(KALLSYMS))
    assert found[1] == Symbol(0xFFFFFFFF9B0001A0, "t", "loop_queue_rq")
    assert [symbol.name for symbol in found] == ["_text", "loop_queue_rq", "init_task", "lo_ioctl", "absolute"]
    assert address_of(found, "init_task") == 0xFFFFFFFF9C000000 and address_of(found, "none") is None


def test_symbols_are_moved_in_the_elf_file() -> None:
    again = {symbol.name: symbol.address for symbol in read_elf(make_elf(parse(KALLSYMS), -0x1000))}
    assert again["loop_queue_rq"] == 0xFFFFFFFF9AFFF1A0 and "absolute" not in again


def test_nothing_is_a_file_too() -> None:
    assert list(read_elf(make_elf([]))) == []


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(60), make_elf(parse(KALLSYMS))[:-40]])
def test_a_file_that_is_no_elf_file_or_damaged_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a"):
        list(read_elf(data))


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_readelf_accepts_the_elf_file(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(make_elf(parse(KALLSYMS)))
    done = subprocess.run(["readelf", "-W", "-a", str(tmp_path / "s")], capture_output=True, text=True, check=True)
    assert "loop_queue_rq" in done.stdout and "arning" not in done.stderr + done.stdout
