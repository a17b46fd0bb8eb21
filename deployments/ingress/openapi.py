"""The OpenAPI document of the routes. Bodies are parsed by the dialects, each as it needs to, so what
they hold comes from the dialects' wire types, not from the routes' signatures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

# How pydantic names a type whose name another one has, too: with its module.
_LONG_NAME = re.compile(r"\w+?__dialects__([a-z_]+?)__wire(?:_[a-z]+)?__(\w+)")


def openapi_document(routes: Sequence[BaseRoute], bodies: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The document of `routes`; `bodies` are the types of what is posted, by path. Takes some 0.1 s."""
    document = get_openapi(title="erllama", version="1", routes=routes)
    kinds = list(dict.fromkeys(bodies.values()))
    refs, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    for path, kind in bodies.items():
        content = {"application/json": {"schema": refs[kind, "validation"]}}
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions.get("$defs", {}))
    short: dict[str, Any] = json.loads(_LONG_NAME.sub(r"\1.\2", json.dumps(document)))
    return short
