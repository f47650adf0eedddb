"""Mutates inputs: by bytes, words and lines for any format, by members and nodes for known formats. Pure."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

# An input of this size reveals quadratic time; YAML, the slowest format, takes 0.3 s for it.
SWOLLEN_BYTES = 64 << 10
_BLOCK = 512
_NUMBERS = (
    *b"0 -1 1 00 7 255 65536 2147483648 4294967296".split(),
    *b"9223372036854775808 18446744073709551615 18446744073709551616".split(),
    *b"1e400 -1e400 1e-400 0.1 NaN Infinity 0x10 1_0 -0 1.0 .5 5.".split(),
    *(b"9" * 400, b"9" * 4400, "\u00b2".encode(), "\u0663".encode()),
)
_ODD = (
    *(
        b"",
        b"\0",
        b"\n",
        b"\r\n",
        b"\r",
        b"\t",
        b" ",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\x1b[2J",
        b"\x85",
        b"\\",
        b"'",
        b'"',
    ),
    *("\u2028".encode(), "\ufeff".encode(), "\u0085".encode(), "\U0001f600".encode()),
    *rb"../ / // %s {} ${x} \u0000 \ud800 null true [] { } &a *a <<:".split(),
)
_OPENING = (b"[", b"{", b"(", b"<", b"- ", b'{"a":', b"[[", b"* ", b'"', b"\\")
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, float("inf"), float("nan")),
    *(
        "",
        "x",
        "\0",
        "\ud800",
        "\x1b[2J",
        "\u00b2",
        "9" * 4400,
        "a\nb",
        "../x",
        "/etc/passwd",
        "\U0001f600",
        "\u2028",
        "1.5",
    ),
    *([], {}, [[]], [None], {"": None}, ["x", 1], {"x": "y"}),
)


def mutated(data: bytes, rng: random.Random, words: Sequence[bytes], mutators: Sequence[Mutator]) -> bytes:
    """Return an input with one to four changes; half of them change its structure, if `mutators` know it."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        if mutators and rng.random() < 0.5:
            data = rng.choice(mutators)(data, rng)
        elif words and rng.random() < 0.2:
            data = _put(data, rng.choice(words), rng)
        else:
            data = rng.choice(_GENERAL)(data, rng)
    return data


def swollen(data: bytes, rng: random.Random, limit_bytes: int = SWOLLEN_BYTES) -> bytes:
    """Return the input with a piece of it, or a few characters, repeated up to a size: this reveals quadratic time or
    memory.
    """
    at = rng.randrange(len(data) + 1)
    lines = data.splitlines(keepends=True)
    pieces = (
        data[at : at + rng.choice((1, 1, 2, 3, 8, 64))],
        rng.choice(lines) if lines else b"",
        rng.choice((*_OPENING, *_ODD[1:], b"x", b"=?x?q?a?= ", b"a: ", b"ab,", b"1 ")),
    )
    piece = rng.choice(pieces) or b"a"
    times = max(1, (limit_bytes - len(data)) // len(piece))
    return data[:at] + piece * times + data[at:]


def _put(data: bytes, word: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    over = rng.choice((0, 0, len(word), rng.randrange(20)))
    return data[:at] + word + data[at + over :]


def _odd(data: bytes, rng: random.Random) -> bytes:
    return _put(data, rng.choice(_ODD), rng)


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return _put(data, rng.choice(_NUMBERS), rng)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(_NUMBERS) + data[one.end() :]


def _byte(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(len(data))
    return (
        data[:at] + bytes([rng.choice((rng.randrange(256), data[at] ^ 1 << rng.randrange(8), 0, 255))]) + data[at + 1 :]
    )


def _delete(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 4, 16, 64, 512)) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _copy(data: bytes, rng: random.Random) -> bytes:
    begin, at = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    return data[:at] + data[begin : begin + rng.choice((1, 8, 40, 200))] + data[at:]


def _nest(data: bytes, rng: random.Random) -> bytes:
    return _put(data, rng.choice(_OPENING) * rng.choice((2, 20, 300, 1200)), rng)


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return _copy(data, rng)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[one]
        case 1:
            lines.insert(other, lines[one])
        case 2:
            lines[one], lines[other] = lines[other], lines[one]
        case 3:
            lines[one] = lines[one].rstrip(b"\r\n")
        case 4:
            lines[one] = b" " * rng.choice((1, 2, 4)) + lines[one]
    return b"".join(lines)


_GENERAL: tuple[Mutator, ...] = (_odd, _number, _byte, _delete, _cut, _copy, _nest, _line, _line)


def json_node(data: bytes, rng: random.Random) -> bytes:
    """Change one node of a JSON document (also YAML): another value, none, twice, or a node of another place."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return _number(data, rng)
    places = list(_places({"": plain}))
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            other, there = rng.choice(places)
            if isinstance(other, dict) or there < len(other):
                holder[key] = other[there]
        case 2 if isinstance(holder, dict):
            holder[rng.choice(("x", "", str(key).upper(), "on", f"{key} ", "name"))] = holder[key]
        case 2:
            holder.append(holder[key])
        case _:
            holder[key] = rng.choice(_VALUES)
    try:
        # A moved node may contain itself by now.
        return json.dumps(plain).encode()
    except (ValueError, RecursionError):
        return data


def _places(holder: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list) and depth < 40:
            yield from _places(holder[key], depth + 1)


# Offsets and lengths of the fields of a tar header (POSIX.1-1988, GNU tar's sparse ones in 386-495).
_FIELDS = (
    *((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)),
    *((386, 24), (482, 1), (483, 12)),
)
_IN_A_FIELD = (
    *(
        b"",
        b"a/" * 49,
        b"\x80" + b"\0" * 10 + b"\1",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"\0",
        b"ustar  \0",
        b"\xff\xfe",
    ),
    *b"../x /etc/passwd 0 1 2 5 L K x g S V 777777777777 00000000001 00000001000 7777777777777777777777777".split(),
    *b"boot/vmlinuz-1 lib/modules/1/a.ko manifest.json bug.yaml".split(),
)
_BODIES = (
    *(b"20 path=\xff\0/../../etc\n", b"12 size=-1\n", b"30 GNU.sparse.map=0,1,2,3,4,5\n", b"x" * 600),
    *(b"99999 a=b\n", b"-1 a=b\n", b""),
)


def tar_member(data: bytes, rng: random.Random) -> bytes:
    """Change one header of a tar and fix its checksum; or repeat a header, or put another kind of member before it."""
    headers = [at for at in range(0, len(data), _BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return _byte(data, rng)
    at = rng.choice(headers)
    header = bytearray(data[at : at + _BLOCK].ljust(_BLOCK, b"\0"))
    what = rng.randrange(4)
    if what == 0:
        end = rng.choice([*headers, len(data)])
        return data[:at] + data[at:end] + data[at:]
    for _ in range(rng.choice((1, 1, 2))):
        begin, size = rng.choice(_FIELDS)
        header[begin : begin + size] = rng.choice(_IN_A_FIELD)[:size].ljust(size, b"\0")
    body = b""
    if what == 1:
        body = rng.choice(_BODIES)
        header[124:136] = b"%011o\0" % len(body)
        header[156:157] = rng.choice((b"L", b"K", b"x", b"g", b"0"))
        body = body.ljust(-(-len(body) // _BLOCK) * _BLOCK, b"\0")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + body + data[at if what == 1 else at + _BLOCK :]


def inside_gzip(data: bytes, rng: random.Random) -> bytes:
    """Change the content of a gzip stream in the input, and compress it again."""
    at = data.find(b"\x1f\x8b\x08")
    if at < 0:
        return _byte(data, rng)
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(data[at:], 1 << 20)
    except zlib.error:
        return _byte(data, rng)
    packer = zlib.compressobj(1, wbits=31)
    return data[:at] + packer.compress(rng.choice(_GENERAL)(plain, rng)) + packer.flush() + stream.unused_data
