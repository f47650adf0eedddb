"""Formats a run's results as JUnit XML for CI systems: a test case for each case, or for each kernel of a case if
kernels are judged alone.

FAIL is a failure. INVALID and INFRA are errors: they say nothing about the kernel. SKIP is skipped. The setup of the
run is in properties. A partial run has one more test, which is an error, so that no reader takes it for complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from testbed.report import wording
from testbed.report.schema import Case, Document

# Characters that XML 1.0 cannot hold, not even escaped.
_IMPOSSIBLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KINDS = {"FAIL": "failure", "INVALID": "error", "INFRA": "error", "SKIP": "skipped"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    name: str
    verdict: str
    reason: str
    case: Case

    @property
    def kind(self) -> str | None:
        """The XML element of its verdict; None for PASS."""
        return _KINDS.get(self.verdict)


def junit(document: Document) -> str:
    """Return the text of junit.xml."""
    tests, omitted = list(_tests(document)), wording.omitted_cases(document)
    kinds = [test.kind for test in tests]
    count = {
        "tests": len(tests) + bool(omitted),
        "failures": kinds.count("failure"),
        "errors": kinds.count("error") + bool(omitted),
        "skipped": kinds.count("skipped"),
        "time": f"{document.took_s:.3f}",
    }
    root = Xml.Element("testsuites", _attributes(name="testbed", **count))
    command = " ".join(document.command[1:])
    suite = Xml.SubElement(root, "testsuite", _attributes(name=command or document.run, id=document.run, **count))
    properties = Xml.SubElement(suite, "properties")
    for name, value in _properties(document):
        Xml.SubElement(properties, "property", _attributes(name=name, value=value))
    for test in tests:
        _add_test(suite, test, document)
    if omitted:
        element = Xml.SubElement(
            suite, "testcase", _attributes(classname="testbed", name="the whole run", time="0.000")
        )
        Xml.SubElement(element, "error", _attributes(message=omitted, type="PARTIAL")).text = _clean(omitted)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_test(suite: Xml.Element, test: _Test, document: Document) -> None:
    took_s = sum(test.case.sides[side].took_s for side in document.kernels)
    element = Xml.SubElement(
        suite, "testcase", _attributes(classname=test.case.scenario, name=test.name, time=f"{took_s:.3f}")
    )
    if test.kind is not None:
        type_ = {} if test.verdict == "SKIP" else {"type": test.verdict}
        message = _attributes(message=wording.first_line(test.reason), **type_)
        Xml.SubElement(element, test.kind, message).text = _clean(test.reason)
    Xml.SubElement(element, "system-out").text = _clean("\n".join(_output(document, test.case)))


def _tests(document: Document) -> Iterator[_Test]:
    alone = wording.is_judged_alone(document)
    for case in document.scenarios:
        if not alone:
            yield _Test(name=case.name, verdict=case.verdict, reason=case.reason, case=case)
        for name in document.kernels if alone else ():
            side = case.sides[name]
            yield _Test(
                name=f"{case.name} on {name}", verdict=str(side.verdict), reason=side.judgement or "", case=case
            )


def _properties(document: Document) -> Iterator[tuple[str, object]]:
    yield "run", document.run
    yield "verdict", document.verdict
    yield "command", " ".join(document.command)
    for side, kernel in document.kernels.items():
        yield f"kernel.{side}.name", kernel.name
        yield f"kernel.{side}.release", kernel.release
        yield f"kernel.{side}.origin", kernel.origin
        yield f"kernel.{side}.sha256", kernel.sha256
    yield "image.name", document.image.name
    yield "image.sha256", document.image.sha256
    yield "host.kernel", document.host.kernel
    yield "host.cores", document.host.cores
    yield "host.memory_bytes", document.host.memory_bytes
    yield "host.accelerator", document.host.accelerator
    yield "qemu.version", document.host.qemu
    yield "qemu.sha256", document.host.qemu_sha256


def _output(document: Document, case: Case) -> Iterator[str]:
    yield case.claim
    for name in document.kernels:
        side = case.sides[name]
        for what, measure in side.measures.items():
            yield f"{name}: {what}: {measure.value} {measure.unit} ({measure.source})"
        yield from (f"kernel log: {line}" for line in wording.unexpected_lines(case, [name]))
        yield f"{name}: evidence: {side.evidence}"


def _attributes(**attributes: object) -> dict[str, str]:
    return {name: _clean(str(value)) for name, value in attributes.items()}


def _clean(text: str) -> str:
    return _IMPOSSIBLE.sub("\ufffd", text)
