"""Records and sources of tests in the format of blktests."""

from testbed.api.blktests import TestResult, read_results

SOURCE = "test() {\n    true\n}\n"


def record(**words: str) -> str:
    return "".join(f"{key}\t{value}\n" for key, value in words.items())


def left(*parts: str) -> str:
    return "".join(f"{part}\0" for part in parts)


def one(text: str, printed: str = "", source: str = SOURCE, *, devices: bool = False) -> TestResult:
    (found,) = read_results("loop/001", text, printed, source, devices=devices)
    return found
