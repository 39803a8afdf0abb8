"""Policies: how each context is ranked, and business rules. One TOML file, read once; docs/ranking.md explains each number."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

CandidateKind = Literal["list", "item", "cart"]
Step = Literal["features", "list", "previous_list", "on_demand"]
STEPS: tuple[Step, ...] = get_args(Step)
PACKAGED = Path(__file__).with_name("policies.toml")
DEFAULT_CONTEXT = "homepage"


class PolicyError(ValueError):
    """A policy file that cannot be used; says which line."""


@dataclass(frozen=True)
class Rule:
    """A business rule: items that match are blocked, or get ``add`` to their score. Exactly one of item, category, attribute.

    Attributes:
      value: of the attribute.
      contexts: where it holds; empty for everywhere.
    """

    kind: Literal["boost", "block"]
    item: str | None = None
    category: str | None = None
    attribute: str | None = None
    value: str | None = None
    add: float = 0.0
    contexts: tuple[str, ...] = ()

    def holds_in(self, context: str) -> bool:
        """Whether it is for that context."""
        return not self.contexts or context in self.contexts


@dataclass(frozen=True)
class ContextPolicy:
    """How one context is ranked; policies.toml says what each number means. ``deadlines_ms``: in the order of STEPS."""

    name: str
    candidates: CandidateKind
    preference: float
    session: float
    session_items: int
    session_candidates: int
    diversity: float
    calibration: float
    max_per_category: int
    explore_slot: int
    explore_below: float
    cache_seconds: float
    deadlines_ms: tuple[float, ...]
    rules: tuple[Rule, ...] = ()

    def deadline(self, step: Step) -> float:
        """Seconds that a step of a request may take."""
        return self.deadlines_ms[STEPS.index(step)] / 1000


@dataclass(frozen=True)
class Policies:
    """Every context by name."""

    contexts: Mapping[str, ContextPolicy]

    def of(self, context: str) -> ContextPolicy:
        """The policy of a context; raises KeyError that names the known ones."""
        try:
            return self.contexts[context]
        except KeyError:
            raise KeyError(f"no context {context!r}; known: {', '.join(self.contexts)}") from None


def load(path: Path | None = None) -> Policies:
    """Policies of a file over the packaged ones, or the packaged ones; raises PolicyError."""
    packaged = parse(PACKAGED.read_text("utf-8"), PACKAGED.name, Policies({}))
    if path is None:
        return packaged
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"policies {path}: {error}") from error
    return parse(text, str(path), packaged)


def parse(text: str, name: str, base: Policies) -> Policies:
    """Policies of a TOML text; contexts, and keys of a context, that it leaves out are those of ``base``.

    Raises:
      PolicyError: not TOML, an unknown key, a value of another type or outside its range, a key missing.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{name}: {error}") from error
    reader = _Reader(text, name)
    reader.only(document, "", ("contexts", "rules"))
    contexts = reader.table(document, "", "contexts")
    names = tuple(dict.fromkeys((*base.contexts, *contexts)))
    rules = reader.rules(reader.table(document, "", "rules"), names)
    made = {c: reader.context(c, reader.table(contexts, "contexts", c), base.contexts.get(c)) for c in names}
    return Policies({c: _with_rules(p, base.contexts.get(c), rules) for c, p in made.items()})


def _with_rules(policy: ContextPolicy, base: ContextPolicy | None, rules: tuple[Rule, ...]) -> ContextPolicy:
    held = (*(base.rules if base else ()), *(r for r in rules if r.holds_in(policy.name)))
    values = {f.name: getattr(policy, f.name) for f in fields(policy)}
    return ContextPolicy(**{**values, "rules": held})


# name -> (type, lowest, highest)
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "preference": (float, 0, 10), "session": (float, 0, 10), "session_items": (int, 0, 50), "session_candidates": (int, 0, 100),
    "diversity": (float, 0, 1), "calibration": (float, 0, 1), "max_per_category": (int, 0, 1000), "explore_slot": (int, 0, 100),
    "explore_below": (float, 0, 1e12), "cache_seconds": (float, 0, 7 * 86_400),
}


class _Reader:
    """Takes values out of a document; its errors name the line."""

    def __init__(self, text: str, name: str) -> None:
        self._lines, self._name = text.splitlines(), name

    def wrong(self, section: str, key: str, said: str, nth: int = 0) -> PolicyError:
        return PolicyError(f"{self._name}, line {self._line(section, key, nth)}: {said}")

    def _line(self, section: str, key: str, nth: int) -> int:
        """Line of a key in the nth table of that name; of the table where the key stands nowhere; 1 without it."""
        inside, seen, header = not section, -1, 1
        for number, line in enumerate(self._lines, 1):
            if found := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
                title = found[1].replace('"', "").replace("'", "")
                seen += title == section
                if not inside and title == key and not section:
                    return number
                inside = title == section and seen == nth
                header = number if inside or (title == f"{section}.{key}".strip(".") and header == 1) else header
            elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[.=]""", line):
                return number
        return header

    def only(self, values: Mapping[str, Any], section: str, known: tuple[str, ...], nth: int = 0) -> None:
        for key in values:
            if key not in known:
                raise self.wrong(section, key, f"unknown key {key!r}; known: {', '.join(known)}", nth)

    def table(self, values: Mapping[str, Any], section: str, key: str) -> Mapping[str, Any]:
        found = values.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong(section, key, f"{key!r} is a table")
        return found

    def number(self, values: Mapping[str, Any], section: str, key: str, low: float, high: float, kind: type = float,
               nth: int = 0) -> float:
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int) or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise self.wrong(section, key, f"{key} is {what} from {low:g} to {high:g}, not {value!r}", nth)
        return kind(value)  # type: ignore[no-any-return]

    def context(self, name: str, values: Mapping[str, Any], base: ContextPolicy | None) -> ContextPolicy:
        section = f"contexts.{name}"
        self.only(values, section, ("candidates", *_NUMBERS, "deadlines_ms"))
        taken: dict[str, Any] = {} if base is None else {f.name: getattr(base, f.name) for f in fields(base)}
        for key, (kind, low, high) in _NUMBERS.items():
            if key in values:
                taken[key] = self.number(values, section, key, low, high, kind)
        if "candidates" in values:
            taken["candidates"] = values["candidates"]
            if taken["candidates"] not in get_args(CandidateKind):
                raise self.wrong(section, "candidates", f"candidates is one of {', '.join(get_args(CandidateKind))}, "
                                                        f"not {values['candidates']!r}")
        if "deadlines_ms" in values:
            taken["deadlines_ms"] = self.deadlines(values, section, base)
        for key in ("candidates", *_NUMBERS, "deadlines_ms"):
            if key not in taken:
                raise self.wrong(section, key, f"context {name!r} needs {key!r}")
        return ContextPolicy(**{**taken, "name": name, "rules": ()})

    def deadlines(self, values: Mapping[str, Any], section: str, base: ContextPolicy | None) -> tuple[float, ...]:
        found = self.table(values, section, "deadlines_ms")
        taken: dict[str, float] = dict(zip(STEPS, base.deadlines_ms, strict=True)) if base else {}
        for step, value in found.items():
            if step not in STEPS:
                raise self.wrong(section, "deadlines_ms", f"unknown deadline {step!r}; known: {', '.join(STEPS)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 60_000:
                raise self.wrong(section, "deadlines_ms", f"deadline {step} is from 1 to 60000 ms, not {value!r}")
            taken[step] = float(value)
        if missing := [step for step in STEPS if step not in taken]:
            raise self.wrong(section, "deadlines_ms", f"deadlines_ms lacks {', '.join(missing)}")
        return tuple(taken[step] for step in STEPS)

    def rules(self, values: Mapping[str, Any], contexts: tuple[str, ...]) -> tuple[Rule, ...]:
        self.only(values, "rules", ("boost", "block"))
        found: list[Rule] = []
        for kind in ("boost", "block"):
            listed = values.get(kind, [])
            if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
                raise self.wrong("rules", kind, f"write each rule as [[rules.{kind}]]")
            found.extend(self.rule(kind, entry, nth, contexts) for nth, entry in enumerate(listed))
        return tuple(found)

    def rule(self, kind: Any, entry: Mapping[str, Any], nth: int, contexts: tuple[str, ...]) -> Rule:
        section = f"rules.{kind}"
        self.only(entry, section, ("item", "category", "attribute", "value", "add", "contexts"), nth)
        named = [key for key in ("item", "category", "attribute") if key in entry]
        if len(named) != 1:
            raise self.wrong(section, named[-1] if named else kind, "a rule names one of item, category, attribute", nth)
        if ("attribute" in entry) != ("value" in entry):
            raise self.wrong(section, "attribute", "attribute and value go together", nth)
        for key in (*named, "value"):
            if key in entry and not isinstance(entry[key], str):
                raise self.wrong(section, key, f"{key} is a text, not {entry[key]!r}", nth)
        if (kind == "boost") != ("add" in entry):
            raise self.wrong(section, "add", "a boost needs 'add'" if kind == "boost" else "a block has no 'add'", nth)
        add = self.number(entry, section, "add", -10, 10, nth=nth) if kind == "boost" else 0.0
        where = entry.get("contexts", [])
        if not isinstance(where, list) or any(c not in contexts for c in where):
            raise self.wrong(section, "contexts", f"contexts is a list of {', '.join(contexts)}, not {where!r}", nth)
        item, category, attribute, value = (entry.get(key) for key in ("item", "category", "attribute", "value"))
        return Rule(kind, item, category, attribute, value, add, tuple(where))
