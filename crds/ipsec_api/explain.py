"""What is wrong with a field, in words that end with the remedy.

The value itself is never repeated: it may be a secret that landed in the wrong place.
"""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError


def faults(model: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """(field, message) of each fault of a spec, in the order of the fields."""
    found = error.errors(include_url=False, include_input=False)
    # pydantic counts a list without its bad entries: "too short" is a consequence then, no fault.
    return [
        (field_path(e["loc"]), explain(model, e))
        for e in found
        if e["type"] != "too_short" or not any(_inside(o["loc"], e["loc"]) for o in found)
    ]


def _inside(loc: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def field_path(loc: tuple[int | str, ...]) -> str:
    """``spec.identities[1].name`` of a location inside a spec."""
    path = "spec"
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def explain(model: type[BaseModel], error: Any) -> str:
    """A sentence with the remedy. The input itself is never in it."""
    context = error.get("ctx") or {}
    match error["type"]:
        case "missing":
            return "missing: set it"
        case "extra_forbidden":
            return _unknown_field(model, error["loc"])
        case "string_type":
            return "not text: put the value in quotes"
        case "int_type" | "int_from_float":
            return "not a whole number: write it without quotes"
        case "bool_type":
            return "neither true nor false: write one of them without quotes"
        case "tuple_type" | "list_type":
            return "not a list: write one - VALUE line for each entry"
        case "model_type" | "dict_type" | "model_attributes_type":
            return "not an object: write KEY: VALUE lines under it"
        case "enum" | "literal_error":
            return f"not one of the possible values: write {context.get('expected')}"
        case "greater_than_equal":
            return f"too small: write at least {context['ge']}"
        case "less_than_equal":
            return f"too large: write at most {context['le']}"
        case "too_long":
            return f"too many entries: at most {context['max_length']} are possible"
        case "too_short":
            return f"too few entries: at least {context['min_length']} are needed"
        case "string_too_long":
            return f"too long: at most {context['max_length']} characters are possible"
        case "string_too_short":
            return "empty: set a value, or remove the field"
        case "string_pattern_mismatch":
            return f"not of the form {context['pattern']}: correct it"
        case _:
            return str(error["msg"])


def _unknown_field(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    known = _fields_at(model, loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"unknown field: did you mean {close[0]}?" if close else "unknown field: remove it"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The names of the fields at a path, for suggestions."""
    schema = model.model_json_schema(by_alias=True)
    node = schema
    for part in loc:
        node = _resolve(schema, node)
        node = node.get("items", {}) if isinstance(part, int) else node["properties"].get(part, {})
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for branch in node.get("anyOf", []):
        if branch.get("type") != "null":
            node = branch
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node
