"""The JSON Schema of topology files, for editors; made from the models."""

from __future__ import annotations

import json

from testbed.topology.model import Topology


def json_schema() -> str:
    """The schema as it is published in `topologies/schema.json`."""
    schema = Topology.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
