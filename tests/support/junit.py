"""Checks JUnit XML by the rules of Jenkins' schema: elements, their order and attributes, and sums."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

_COUNTS = {"tests", "failures", "errors", "skipped", "time"}
_SUITE = {"name", *_COUNTS, "id", "timestamp", "hostname", "package", "disabled"}
# For each element: its required and optional attributes, and its children in their order.
_RULES: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "testsuites": (set(), {"name", *_COUNTS, "disabled"}, ("testsuite",)),
    "testsuite": ({"name", "tests"}, _SUITE, ("properties", "testcase", "system-out", "system-err")),
    "properties": (set(), set(), ("property",)),
    "property": ({"name", "value"}, {"name", "value"}, ()),
    "testcase": (
        {"name", "classname"},
        {"name", "classname", "time", "status", "assertions"},
        ("skipped", "error", "failure", "system-out"),
    ),
    "skipped": (set(), {"message"}, ()),
    "error": (set(), {"message", "type"}, ()),
    "failure": (set(), {"message", "type"}, ()),
    "system-out": (set(), set(), ()),
    "system-err": (set(), set(), ()),
}
_KINDS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def check(text: str) -> Xml.Element:
    """Return the root of a valid document.

    :raise ValueError: it is not valid; says why.
    """
    root = Xml.fromstring(text)
    if root.tag != "testsuites":
        raise ValueError(f"expected testsuites, got {root.tag}")
    _check(root)
    for suite in root:
        cases = suite.findall("testcase")
        if int(suite.attrib["tests"]) != len(cases):
            raise ValueError(f"expected {suite.attrib['tests']} tests, got {len(cases)}")
        for name, tag in _KINDS.items():
            if int(suite.attrib.get(name, "0")) != sum(case.find(tag) is not None for case in cases):
                raise ValueError(f"{name} is not what there are")
    return root


def _check(element: Xml.Element) -> None:
    if element.tag not in _RULES:
        raise ValueError(f"no such element: {element.tag}")
    needed, allowed, order = _RULES[element.tag]
    if not needed <= set(element.attrib) <= allowed:
        raise ValueError(f"{element.tag}: attributes {sorted(element.attrib)}")
    places = [order.index(child.tag) if child.tag in order else -1 for child in element]
    if -1 in places or places != sorted(places):
        raise ValueError(f"{element.tag}: children {[child.tag for child in element]}")
    if element.tag == "testcase" and sum(child.tag in _KINDS.values() for child in element) > 1:
        raise ValueError("a test has several outcomes")
    if "time" in element.attrib and float(element.attrib["time"]) < 0:
        raise ValueError("a time is negative")
    for child in element:
        _check(child)
