from testbed import counters

# Printed by Debian 6.1 in a guest.
IO_STAT = """\
254:32 rbytes=33816576 wbytes=0 rios=264 wios=0 dbytes=0 dios=0
259:0
7:0 rbytes=33554432 wbytes=0 rios=32 wios=0 dbytes=0 dios=0 cost.usage=12
"""


def test_io_stat_is_read_by_device() -> None:
    found = counters.parse_io_stat(IO_STAT)
    assert found["254:32"]["rbytes"] == 33816576
    assert found["259:0"] == {}
    assert found["7:0"]["cost.usage"] == 12


def test_an_empty_io_stat_has_no_devices() -> None:
    assert counters.parse_io_stat("") == {}


def test_flat_files_are_read_and_lines_of_other_forms_left_out() -> None:
    assert counters.parse_flat("anon 4096\nfile 33816576\nsome avg10=0.00\n") == {"anon": 4096, "file": 33816576}


def test_sections_are_split_by_their_headings() -> None:
    assert counters.sections("noise\n== a\n1\n2\n== b\n== c\n3\n") == {"a": "1\n2\n", "b": "", "c": "3\n"}
