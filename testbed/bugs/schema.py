"""The JSON Schema of bug files, for editors; made from the models."""

from __future__ import annotations

import json

from testbed.bugs.model import Document
from testbed.topology.model import Document as TopologyDocument


def json_schema() -> str:
    """The schema as it is published in `topologies/bugs/schema.json`; an inline topology is described by that of topologies."""
    schema = Document.model_json_schema(by_alias=True)
    topology = TopologyDocument.model_json_schema(by_alias=True)
    definitions = topology.pop("$defs")
    # Its version is the bug file's.
    topology["required"] = [key for key in topology.get("required", []) if key != "version"]
    schema["$defs"] = definitions | schema["$defs"]
    schema["properties"]["topology"] = {
        "anyOf": [{"type": "string", "pattern": r"\.yaml$"}, topology],
        "description": "of one guest: here, or in a file",
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
