"""Full compatibility of two versions of an Avro record: the older reader reads the newer writer's bytes and the reverse.

Rules (Avro specification, schema resolution): a field present on one side only needs a default on the side that reads
it; a type may gain null or be promoted only where both directions stay readable, so a change of type is refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

_UNREAD = ("doc", "default", "aliases")


def problems(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Why ``old`` and ``new`` cannot read each other's records, one line per field; empty when they can."""
    where = path or new.get("name", "")
    if old.get("name") != new.get("name"):
        return [f"{where}: renamed from {old.get('name')} to {new.get('name')}"]
    before = {f["name"]: f for f in old["fields"]}
    after = {f["name"]: f for f in new["fields"]}
    found = []
    for name in sorted(before.keys() - after.keys()):
        if "default" not in before[name]:
            found.append(f"{where}.{name}: removed, and older readers have no default for it")
    for name in sorted(after.keys() - before.keys()):
        if "default" not in after[name]:
            found.append(f"{where}.{name}: added without a default, so older records cannot be read")
    for name in sorted(before.keys() & after.keys()):
        found += _type_problems(before[name]["type"], after[name]["type"], f"{where}.{name}")
    return found


def _type_problems(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        kind = old["type"]
        if kind == "record":
            return problems(old, new, where)
        if kind in ("array", "map"):
            part = "items" if kind == "array" else "values"
            return _type_problems(old[part], new[part], f"{where}[]")
    if _shape(old) == _shape(new):
        return []
    return [f"{where}: type changed from {json.dumps(_shape(old))} to {json.dumps(_shape(new))}"]


def _shape(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_shape(s) for s in schema]
    if isinstance(schema, dict):
        if set(schema) == {"type"}:
            return _shape(schema["type"])
        return {k: _shape(v) for k, v in schema.items() if k not in _UNREAD}
    return schema


def fingerprint(schema: dict[str, Any]) -> str:
    """SHA-256 of a schema's canonical JSON, 16 hex digits: a published version whose fingerprint moved was edited."""
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
