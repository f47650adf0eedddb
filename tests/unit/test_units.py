import re

import pytest

from testbed.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2G", 2 << 30),
        ("512M", 512 << 20),
        ("4096", 4096),
        (4096, 4096),
        ("1 KiB", 1024),
        ("3T", 3 << 40),
        ("0", 0),
        ("4MiB", 4 << 20),
        ("512B", 512),
    ],
)
def test_sizes_are_parsed_in_powers_of_1024(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "big", "-1", "1.5G", "1G2", "\u0661", True, None, "9" * 40, "2g", "1iB", "2Gi", "2GBB"]
)
def test_errors_of_sizes_have_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 2G"):
        parse_size(text)


@pytest.mark.parametrize(("size_bytes", "text"), [(2 << 30, "2G"), (1536, "1.5K"), (0, "0"), (33554432, "32M")])
def test_sizes_are_formatted_with_units(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("2GB", "2GiB for 2147483648 bytes (powers of 1024), or 2000000000"),
        ("20 MB", "20MiB for 20971520 bytes (powers of 1024), or 20000000"),
        ("4kB", "4KiB for 4096 bytes (powers of 1024), or 4000"),
        ("1Tb", "1TiB for 1099511627776 bytes (powers of 1024), or 1000000000000"),
    ],
)
def test_ambiguous_units_are_refused(text: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"expected a size such as 2G, got '{text}'; write {instead}")):
        parse_size(text)
