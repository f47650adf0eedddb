import pytest

from testbed.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("2G", 2 << 30), ("512M", 512 << 20), ("4096", 4096), (4096, 4096), ("1 KiB", 1024), ("3T", 3 << 40), ("0", 0)]
)
def test_sizes_are_read_in_powers_of_1024(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "big", "-1", "1.5G", "1G2", "\u0661", True, None, "9" * 40, "2g"])
def test_what_is_no_size_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 2G"):
        parse_size(text)


@pytest.mark.parametrize(("size_bytes", "text"), [(2 << 30, "2G"), (1536, "1.5K"), (0, "0"), (33554432, "32M")])
def test_sizes_are_written_as_people_write_them(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
