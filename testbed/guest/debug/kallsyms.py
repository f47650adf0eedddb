"""Converts a kernel's symbols, from /proc/kallsyms or a System.map, to an ELF file for gdb that has only them. Pure.

Formats: elf(5); a line of kallsyms and of System.map is `ADDRESS TYPE NAME`, a module's with `[MODULE]` behind.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# gdb needs functions to be in a section: one that covers all of them, without contents, so that gdb reads the guest's
# memory.
_TEXT_KINDS, _DATA_KINDS = frozenset("tTwW"), frozenset("dDbBrRvV")
_EHDR, _SHDR, _SYM = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 2, 3, 8
_STT_OBJECT, _STT_FUNC, _STB_GLOBAL = 1, 2, 1
_SHN_ABS = 0xFFF1
_X86_64 = 62
# Twice KSYM_NAME_LEN (include/linux/kallsyms.h): in a hostile file, many symbols could share one name as long as the
# file.
_LONGEST_NAME = 1024
_ADDRESS = re.compile("[0-9a-fA-F]{1,16}")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol; `kind` is the letter that nm(1) shows."""

    address: int
    kind: str
    name: str


def parse(text: str) -> Iterator[Symbol]:
    """Yield the symbols of kallsyms or a System.map; skips other lines and hidden addresses (0)."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or len(words[1]) != 1:
            continue
        address = int(words[0], 16) if _ADDRESS.fullmatch(words[0]) else 0
        if address:
            yield Symbol(address, words[1], words[2])


def address_of(symbols: Iterable[Symbol], name: str) -> int | None:
    """Return the address of a symbol; None if there is no such symbol."""
    return next((symbol.address for symbol in symbols if symbol.name == name), None)


def make_elf(symbols: Iterable[Symbol], offset: int = 0) -> bytes:
    """Return an ELF file with the symbols, each moved by `offset`."""
    kept = [symbol for symbol in symbols if symbol.kind in _TEXT_KINDS | _DATA_KINDS]
    code = [symbol.address + offset for symbol in kept if symbol.kind in _TEXT_KINDS]
    low, high = (min(code), min(max(code) + 4096, (1 << 64) - 1)) if code else (0, 0)
    names, table = bytearray(b"\0"), bytearray(_SYM.pack(0, 0, 0, 0, 0, 0))
    for symbol in kept:
        is_code = symbol.kind in _TEXT_KINDS
        info = _STB_GLOBAL << 4 | (_STT_FUNC if is_code else _STT_OBJECT)
        table += _SYM.pack(len(names), info, 0, 1 if is_code else _SHN_ABS, (symbol.address + offset) % (1 << 64), 0)
        names += symbol.name.encode() + b"\0"
    section_names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    at = _EHDR.size
    placed: list[tuple[int, bytes]] = []
    for part in (bytes(table), bytes(names), section_names):
        placed.append((at, part))
        at += len(part)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = _EHDR.pack(ident, 2, _X86_64, 1, 0, 0, at, 0, _EHDR.size, 0, 0, _SHDR.size, 5, 4)
    (tab_at, tab), (str_at, strings), (names_at, _) = placed
    sections = (
        _SHDR.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        _SHDR.pack(1, _SHT_NOBITS, 6, low, _EHDR.size, high - low, 0, 0, 16, 0),
        _SHDR.pack(7, _SHT_SYMTAB, 0, 0, tab_at, len(tab), 3, 1, 8, _SYM.size),
        _SHDR.pack(15, _SHT_STRTAB, 0, 0, str_at, len(strings), 0, 0, 1, 0),
        _SHDR.pack(23, _SHT_STRTAB, 0, 0, names_at, len(section_names), 0, 0, 1, 0),
    )
    return header + b"".join(part for _, part in placed) + b"".join(sections)


def read_elf(data: bytes) -> Iterator[Symbol]:
    """Yield the symbols of an ELF file such as a vmlinux, all as code.

    :raise ValueError: it is no 64-bit ELF file, or damaged.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("expected a 64-bit ELF file")
    try:
        header = _EHDR.unpack_from(data, 0)
        sections = [_SHDR.unpack_from(data, header[6] + number * header[11]) for number in range(header[12])]
        table = next((one for one in sections if one[1] == _SHT_SYMTAB), None)
        if table is None:
            return
        strings = sections[table[6]]
        names = data[strings[4] : strings[4] + strings[5]]
        for at in range(table[4], table[4] + table[5], _SYM.size):
            name, _, _, _, value, _ = _SYM.unpack_from(data, at)
            if name and value:
                end = names.index(b"\0", name, name + _LONGEST_NAME)
                yield Symbol(value, "T", names[name:end].decode(errors="replace"))
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise ValueError(f"expected a whole ELF file: {error}") from error
