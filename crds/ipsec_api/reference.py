"""``docs/resources.md``: every field, its values and default, and what this release does with it.

``python -m ipsec_api.reference`` writes the page; ``--check`` writes nothing and fails where it
differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ipsec_api import features
from ipsec_api.algorithms import DhGroup, EncryptionAlgorithm, HashAlgorithm, insecure_names
from ipsec_api.kinds import KINDS, MODE_CONFIG, PEER, POLICY, Kind
from ipsec_api.structural import CRD_DIR, crd

PAGE: Final = CRD_DIR.parent / "docs" / "resources.md"

_INTRODUCTION: Final = """\
<!-- Generated from the models by python -m ipsec_api.reference: edit those instead. -->
# Resources

API group `kubeipsec.dev/v1alpha1`, namespaced, category `ipsec` (`kubectl get ipsec`). References
are to objects of the same namespace. A field marked **not yet** is known to the API, and a resource
that sets it is refused with the reason `NotYetSupported` and the words in its line. Every field
that has a default may be left out. Durations are hours, minutes and seconds: `8h`, `1h30m`, `45s`.

Pre-shared keys are in Secrets. A value that begins with `0x` is hexadecimal, anything else is taken
as it is, without one trailing newline. While a key is being changed on both sides, put the old one
into the same Secret as `psk-previous` (in general the name of the key, then `-previous`): a peer
that still has it is let in.

Two policies may not claim the same traffic: the older resource has it, the newer one is refused
with the reason `Overlap`. Policies that overlap need different priorities; the lower one is looked
at first.
"""

#: Long lists of values are named once, below the tables.
_ALGORITHMS: Final = {
    "encAlgorithms": "cipher",
    "authAlgorithms": "hash",
    "hash": "hash",
    "prf": "hash",
    "dhGroups": "group",
    "pfsGroup": "group",
}


def render() -> str:
    """The page."""
    parts = [_INTRODUCTION]
    for kind in KINDS:
        parts.append(f"\n## {kind.name} (`{kind.short_name}`)\n\n{kind.description}\n")
        if kind is MODE_CONFIG and not features.MODE_CONFIG_BUILT:
            parts.append("\n**Not yet**: the whole kind is refused.\n")
        parts.append("\n| field of spec | values | default | meaning |\n|---|---|---|---|\n")
        schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        unbuilt = _unbuilt(kind)
        for path, node, required in _rows(schema["properties"]["spec"], ""):
            parts.append(_row(path, node, required, unbuilt.get(path)))
    parts.append(_names())
    return "".join(parts)


def _unbuilt(kind: Kind) -> dict[str, str]:
    """Field path to remedy."""
    if kind is PEER:
        rows = {row.field: row.remedy for row in features.PEER}
        return rows | {f"authentication.{r.field}": r.remedy for r in features.AUTHENTICATION}
    if kind is POLICY:
        rows = {row.field: row.remedy for row in features.POLICY}
        rows["selectors[].srcFrom"] = rows.pop("selectors")
        return rows
    return {}


def _rows(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, child, name in node.get("required", [])
        if here == "identities":
            name_of_entry = child["items"]["properties"]["name"]
            yield "identities[].name", name_of_entry, True
            note = {**child["items"], "description": "And every field of `authentication`."}
            yield "identities[].*", note, False
        elif child["type"] == "array":
            yield from _rows(child["items"], here + "[]")
        else:
            yield from _rows(child, here)


def _row(path: str, node: Mapping[str, Any], required: bool, remedy: str | None) -> str:
    meaning = node["description"]
    if remedy is not None:
        meaning += f" **Not yet** ({remedy})."
    default = "**required**" if required else _default(node)
    return f"| `{path}` | {_values(path, node)} | {default} | {meaning} |\n"


def _default(node: Mapping[str, Any]) -> str:
    if "default" not in node:
        return ""
    value = node["default"]
    if isinstance(value, bool):
        value = str(value).lower()
    return ", ".join(f"`{v}`" for v in value) if isinstance(value, tuple | list) else f"`{value}`"


def _values(path: str, node: Mapping[str, Any]) -> str:
    kind = _ALGORITHMS.get(path.rpartition(".")[2])
    match node["type"]:
        case "array":
            inner = kind or _values("", node["items"])
            return f"list of {inner}, up to {node['maxItems']}"
        case "object":
            return "object" if "properties" in node else "map of text"
        case "integer":
            return f"{node['minimum']} to {node['maximum']}" if "maximum" in node else "number"
        case "boolean":
            return "`true`, `false`"
        case _ if kind:
            extra = [v for v in ("auto", "none") if v in node["enum"]]
            return " or ".join([kind, *(f"`{v}`" for v in extra)])
        case _ if "enum" in node:
            return ", ".join(f"`{v}`" for v in node["enum"])
        case _:
            return "text"


def _names() -> str:
    insecure = insecure_names()

    def listed(names: Iterable[str]) -> str:
        marks = []
        for name in names:
            note = " (insecure)" if name in insecure else ""
            note += " (not yet)" if name in features.ALGORITHMS else ""
            marks.append(f"`{name}`{note}")
        return ", ".join(marks)

    return (
        "\n## Names of algorithms\n\n"
        "Insecure ones need `allowInsecure: true` on the peer.\n\n"
        f"- cipher: {listed(EncryptionAlgorithm)}\n"
        f"- hash: {listed(HashAlgorithm)}\n"
        f"- group: {listed(DhGroup)}\n"
    )


def main(arguments: Iterable[str]) -> int:
    """Write the page, or with ``--check`` say whether it differs. Returns the exit code."""
    text = render()
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    if list(arguments) == ["--check"]:
        sys.stdout.write(f"docs/{PAGE.name}: differs: run python -m ipsec_api.reference\n")
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    sys.stdout.write(f"docs/{PAGE.name}: written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
