"""Builds a kernel module that makes a kernel print a warning or an oops, from one of the kernel's own modules: no
compiler, no headers.

Debian's cloud kernels have no lkdtm, and the headers of the newest need a compiler and a libc that a test machine may
lack. Everything in which a module must match its kernel is in every module of that kernel: the vermagic, the size of
`struct module` and the offset of the pointer to the init function, and the size of an entry of the WARN table. The rest
is some bytes of x86 code. The module has no symbol versions, which kernels with CONFIG_MODULE_FORCE_LOAD accept (all of
Debian's).

Sources: elf(5), include/linux/module.h, include/asm-generic/bug.h, arch/x86/include/asm/bug.h, lib/bug.c of 5.10 to
7.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_EHDR, _SHDR, _SYM, _RELA = (
    struct.Struct("<16sHHIQQQIHHHHHH"),
    struct.Struct("<IIQQQQIIQQ"),
    struct.Struct("<IBBHQQ"),
    struct.Struct("<QQq"),
)
_PROGBITS, _SYMTAB, _STRTAB, _RELOCATIONS = 1, 2, 3, 4
_WRITE, _ALLOC, _EXEC, _INFO = 1, 2, 4, 0x40
_ABS64, _PC32 = 1, 2
_THIS_MODULE = ".gnu.linkonce.this_module"
# BUGFLAG_WARNING, and TAINT_WARN (9) in the bits that x86 uses for it.
_WARNING = 1 | 9 << 8
# Until 5.18 the table's pointers are relative to their entry and not to themselves: 4 bytes less, so there is more text
# before the name.
_FILE, _LINE = "././tests/support/splat.py", 42
_EAGAIN = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What all modules of a kernel have in common."""

    vermagic: bytes
    this_module: bytes  # with the name taken out
    name_at: int
    init_at: int
    bug_entry_bytes: int  # 12; 16 since 6.19, with a format


def template(module: bytes) -> Template:
    """Read it from a module of the kernel that contains a WARN, such as virtio_blk.ko."""
    head = _EHDR.unpack_from(module)
    headers = [_SHDR.unpack_from(module, head[6] + number * head[11]) for number in range(head[12])]
    names = module[headers[head[13]][4] :]
    found = {names[one[0] : names.index(b"\0", one[0])].decode(): module[one[4] : one[4] + one[5]] for one in headers}
    info = dict(word.split(b"=", 1) for word in found[".modinfo"].split(b"\0") if b"=" in word)
    this = found[_THIS_MODULE]
    name_at = this.index(info[b"name"] + b"\0")
    # Its relocations are those of the init and exit functions; init comes first in struct module.
    init_at = min(at for at, _, _ in _RELA.iter_unpack(found[f".rela{_THIS_MODULE}"]))
    pointers = len(found[".rela__bug_table"]) // _RELA.size
    bug_entry_bytes = 16 if len(found["__bug_table"]) * 3 == pointers * 16 else 12
    return Template(
        vermagic=info[b"vermagic"],
        this_module=this.replace(info[b"name"], bytes(len(info[b"name"]))),
        name_at=name_at,
        init_at=init_at,
        bug_entry_bytes=bug_entry_bytes,
    )


@dataclass(frozen=True, slots=True)
class At:
    """An address in the module's data, which begins with 64 bytes of zeros."""

    offset: int


@dataclass(slots=True)
class _Section:
    name: str
    flags: int
    data: bytearray
    relocations: list[tuple[int, int, str, int]] = field(default_factory=list)  # where, kind, symbol, addend


class Code:
    """An init function; `call` and `warn` add to it, and it ends with -EAGAIN, so that nothing stays loaded."""

    def __init__(self, of: Template) -> None:
        self._of = of
        self.text = _Section(
            ".text", _ALLOC | _EXEC, bytearray(b"\xf3\x0f\x1e\xfa\x48\x83\xec\x08")
        )  # endbr64; sub $8,%rsp
        self.data = _Section(".data", _ALLOC | _WRITE, bytearray(64))
        self.bugs = _Section("__bug_table", _ALLOC | _WRITE, bytearray())
        self.needs: list[str] = []

    def string(self, text: str) -> At:
        """Put a text into the data."""
        at = len(self.data.data)
        self.data.data += text.encode() + b"\0"
        return At(at)

    def call(self, function: str, *arguments: At | int) -> None:
        """Call an exported function of the kernel with at most two arguments."""
        self.needs.append(function)
        for argument, movabs in zip(arguments, (b"\x48\xbf", b"\x48\xbe"), strict=False):  # %rdi, %rsi
            self.text.data += movabs
            if isinstance(argument, At):
                self.text.relocations.append((len(self.text.data), _ABS64, ".data", argument.offset))
            self.text.data += struct.pack("<q", 0 if isinstance(argument, At) else argument)
        self.text.data += b"\x49\xbb"  # movabs ..,%r11
        self.text.relocations.append((len(self.text.data), _ABS64, function, 0))
        self.text.data += bytes(8) + b"\x31\xc0\x41\xff\xd3"  # xor %eax,%eax; call *%r11

    def warn(self) -> None:
        """WARN_ON(1)."""
        at = len(self.text.data)
        self.text.data += b"\x0f\x0b"  # ud2
        here = len(self.bugs.data)
        for offset, symbol, addend in ((0, ".text", at), (4, ".data", self.string(_FILE).offset + 4)):
            # A format (6.19) stands between the two.
            place = here + offset + (self._of.bug_entry_bytes - 12 if offset else 0)
            self.bugs.relocations.append((place, _PC32, symbol, addend))
        self.bugs.data += bytes(self._of.bug_entry_bytes - 4) + struct.pack("<HH", _LINE, _WARNING)

    def null(self) -> None:
        """Write to address 0."""
        self.text.data += b"\x31\xc0\x89\x00"  # xor %eax,%eax; mov %eax,(%rax)

    def module(self) -> bytes:
        """Return the module, named `splat`."""
        self.text.data += (
            b"\x48\x83\xc4\x08\xb8" + struct.pack("<i", -_EAGAIN) + b"\xc3"
        )  # add $8,%rsp; mov ..,%eax; ret
        this = _Section(_THIS_MODULE, _ALLOC | _WRITE, bytearray(self._of.this_module))
        this.data[self._of.name_at : self._of.name_at + 5] = b"splat"
        words = (b"license=GPL", b"depends=", b"retpoline=Y", b"name=splat", b"vermagic=" + self._of.vermagic)
        info = _Section(".modinfo", _ALLOC, bytearray(b"\0".join(words) + b"\0"))
        this.relocations.append((self._of.init_at, _ABS64, "init_module", 0))
        return _elf([self.text, self.data, self.bugs, info, this], self.needs)


def _elf(sections: list[_Section], needs: list[str]) -> bytes:
    """Build a relocatable file; `needs`: the kernel functions that it calls."""
    strings, symbols, numbers = bytearray(b"\0"), bytearray(_SYM.size), dict[str, int]()

    def add(name: str, bound: int, section: int) -> None:
        numbers[name] = len(symbols) // _SYM.size
        symbols.extend(_SYM.pack(len(strings), bound, 0, section, 0, 0))
        strings.extend(name.encode() + b"\0")

    for at, section in enumerate(sections, 1):
        add(section.name, 3, at)  # STB_LOCAL, STT_SECTION
    local = len(numbers) + 1
    add("init_module", 1 << 4 | 2, 1)
    add("__this_module", 1 << 4 | 1, len(sections))
    for name in dict.fromkeys(needs):
        add(name, 1 << 4, 0)
    related = [(at, one) for at, one in enumerate(sections, 1) if one.relocations]
    table = len(sections) + len(related) + 1
    # Name, type, flags, data, link, info, size of an entry.
    rows: list[tuple[str, int, int, bytes, int, int, int]] = [
        (one.name, _PROGBITS, one.flags, bytes(one.data), 0, 0, 0) for one in sections
    ]
    for at, one in related:
        data = b"".join(
            _RELA.pack(where, numbers[symbol] << 32 | kind, addend) for where, kind, symbol, addend in one.relocations
        )
        rows.append((f".rela{one.name}", _RELOCATIONS, _INFO, data, table, at, _RELA.size))
    rows.append((".symtab", _SYMTAB, 0, bytes(symbols), table + 1, local, _SYM.size))
    rows.append((".strtab", _STRTAB, 0, bytes(strings), 0, 0, 0))
    titles = "\0".join(["", *(row[0] for row in rows), ".shstrtab", ""]).encode()
    rows.append((".shstrtab", _STRTAB, 0, titles, 0, 0, 0))
    body, headers = bytearray(_EHDR.size), bytearray(_SHDR.size)
    for title, kind, flags, data, link, info, entry_bytes in rows:
        body += bytes(-len(body) % 64)
        at = titles.index(b"\0" + title.encode() + b"\0") + 1
        headers += _SHDR.pack(at, kind, flags, 0, len(body), len(data), link, info, 64, entry_bytes)
        body += data
    body += bytes(-len(body) % 64)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    body[: _EHDR.size] = _EHDR.pack(
        ident, 1, 62, 1, 0, 0, len(body), 0, _EHDR.size, 0, 0, _SHDR.size, len(rows) + 1, len(rows)
    )
    return bytes(body + headers)
