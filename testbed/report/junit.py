"""A run's results as JUnit's XML, which CI systems read: a test case for each case, or for each kernel of it where each is judged alone.

FAIL is a failure. INVALID and INFRA are errors: they say nothing about the kernel. SKIP is skipped. What the run stood on are properties.
A partial run has one more test, which is an error: nothing that reads the file takes it for complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as Xml

from testbed.report import wording

# What XML 1.0 cannot hold, not even escaped.
_IMPOSSIBLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KINDS = {"FAIL": "failure", "INVALID": "error", "INFRA": "error", "SKIP": "skipped"}


def junit(document: dict[str, Any]) -> str:
    """The whole file."""
    tests, left_out = list(_tests(document)), wording.omitted_cases(document)
    count = {
        "tests": len(tests) + bool(left_out),
        "failures": sum(_KINDS.get(verdict) == "failure" for _, verdict, _, _ in tests),
        "errors": sum(_KINDS.get(verdict) == "error" for _, verdict, _, _ in tests) + bool(left_out),
        "skipped": sum(_KINDS.get(verdict) == "skipped" for _, verdict, _, _ in tests),
        "time": f"{document['took_s']:.3f}",
    }
    root = Xml.Element("testsuites", _words(name="testbed", **count))
    suite = Xml.SubElement(
        root,
        "testsuite",
        _words(name=" ".join(document["command"][1:]) or document["run"], id=document["run"], **count),
    )
    properties = Xml.SubElement(suite, "properties")
    for name, value in _properties(document):
        Xml.SubElement(properties, "property", _words(name=name, value=value))
    for name, verdict, reason, case in tests:
        test = Xml.SubElement(
            suite, "testcase", _words(classname=case["scenario"], name=name, time=f"{_took_s(document, case):.3f}")
        )
        if verdict in _KINDS:
            line = wording.first_line(reason)
            kind = {} if verdict == "SKIP" else {"type": verdict}
            Xml.SubElement(test, _KINDS[verdict], _words(message=line, **kind)).text = _clean(reason)
        Xml.SubElement(test, "system-out").text = _clean("\n".join(_said(document, case)))
    if left_out:
        test = Xml.SubElement(suite, "testcase", _words(classname="testbed", name="the whole run", time="0.000"))
        Xml.SubElement(test, "error", _words(message=left_out, type="PARTIAL")).text = _clean(left_out)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _tests(document: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, verdict, reason and case of each test."""
    alone = wording.is_judged_alone(document)
    for case in document["scenarios"]:
        if not alone:
            yield case["name"], case["verdict"], case["reason"], case
        for side in document["kernels"] if alone else ():
            yield f"{case['name']} on {side}", case[side]["verdict"], case[side]["judgement"], case


def _properties(document: dict[str, Any]) -> Iterator[tuple[str, object]]:
    yield "run", document["run"]
    yield "verdict", document["verdict"]
    yield "command", " ".join(document["command"])
    for side, kernel in document["kernels"].items():
        for key in ("name", "release", "origin", "sha256"):
            yield f"kernel.{side}.{key}", kernel[key]
    for key in ("name", "sha256"):
        yield f"image.{key}", document["image"][key]
    for key in ("kernel", "cores", "memory_bytes", "accelerator"):
        yield f"host.{key}", document["host"][key]
    yield "qemu.version", document["host"]["qemu"]
    yield "qemu.sha256", document["host"].get("qemu_sha256", "")


def _took_s(document: dict[str, Any], case: dict[str, Any]) -> float:
    return sum(float(case[side]["took_s"]) for side in document["kernels"])


def _said(document: dict[str, Any], case: dict[str, Any]) -> Iterator[str]:
    yield case["claim"]
    for side in document["kernels"]:
        for name, measure in case[side]["measures"].items():
            yield f"{side}: {name}: {measure['value']} {measure['unit']} ({measure['source']})"
        yield from (f"kernel log: {said}" for said in wording.unexpected(case, [side]))
        yield f"{side}: evidence: {case[side]['evidence']}"


def _words(**words: object) -> dict[str, str]:
    return {name: _clean(str(value)) for name, value in words.items()}


def _clean(text: str) -> str:
    return _IMPOSSIBLE.sub("\ufffd", text)
