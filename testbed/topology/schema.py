"""The JSON Schema of topology files, for editors; made from the models."""

from __future__ import annotations

import json
from typing import Any

from testbed.topology.model import Document

_PLACEHOLDER = {"type": "string", "pattern": r"\$\{[a-z][a-z0-9-]*\}", "description": "an axis of the matrix"}


def json_schema() -> str:
    """The schema as it is published in `topologies/schema.json`."""
    schema = Document.model_json_schema(by_alias=True)
    for name, definition in schema["$defs"].items():
        if name != "Matrix":
            definition["properties"] = {
                key: _or_placeholder(of) for key, of in definition.get("properties", {}).items()
            }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _or_placeholder(of: dict[str, Any]) -> dict[str, Any]:
    """A property's schema, for which a placeholder may stand; mappings and lists hold theirs further in."""
    if of.get("type") in ("object", "array") or "$ref" in of:
        return of
    outer: dict[str, Any] = {key: of[key] for key in ("default", "description", "title") if key in of}
    return {**outer, "anyOf": [{key: value for key, value in of.items() if key not in outer}, _PLACEHOLDER]}
