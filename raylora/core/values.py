"""Plain values, before any schema: YAML read with a word for whatever is wrong, dotted keys, one mapping laid over another."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raylora.core.errors import InputError, one_line

NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, TypeError, IndexError, KeyError, AttributeError)
"""What PyYAML raises for texts that are none; the last ones for an explicit tag before nothing (`!!float ""`)."""
MOST_BYTES, MOST_VALUES = 1 << 20, 100_000  # of a configuration


class _Loader(yaml.SafeLoader):
    """Plain YAML without a key that stands twice in one mapping: the first would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As written: where mappings are merged, keys may come again."""
        node = super().compose_mapping_node(anchor)
        there: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in there:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
                there.add(key.value)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises InputError."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path}: has {size} bytes, expected a YAML configuration of at most {MOST_BYTES}")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        _require_few(values)
        json.dumps(values, default=str)  # a key may be a date
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (expected a YAML configuration)") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder (expected a YAML configuration)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except NOT_YAML as error:
        raise InputError(f"{path}: not valid YAML: {one_line(error)}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
    return values


def _require_few(values: Any) -> None:
    """Raises ValueError: aliases of aliases make a small file endless, and so does an anchor that contains itself."""
    left, count = [values], 0
    while left:
        item = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values, aliases followed")
        left += [*item.keys(), *item.values()] if isinstance(item, dict) else item if isinstance(item, list | tuple | set) else []


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``lora.rank=8`` style overrides to nested values; returns a new mapping. Raises InputError."""
    result = laid_over(values, {}, "")
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise InputError(f"override {item!r}: expected KEY=VALUE, for example lora.rank=8")
        try:
            value = yaml.load(text, _Loader)
        except NOT_YAML as error:
            why = f": {error.problem}" if isinstance(error, yaml.constructor.ConstructorError) else ""
            raise InputError(f"override {item!r}: the value is not valid YAML{why}") from None
        result = laid_over(result, {key.strip(): value}, f"override {item!r}")
    return result


def laid_over(values: Mapping[str, Any], changes: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Nested values with those of dotted keys replaced; returns a new mapping. Raises InputError."""
    result: dict[str, Any] = json.loads(json.dumps(values, default=str)) if values else {}
    for key, value in changes.items():
        target = result
        *parents, last = key.split(".")
        for parent in parents:
            child = target.setdefault(parent, {})
            if not isinstance(child, dict):
                raise InputError(f"{origin}: {parent} is not a section")
            target = child
        target[last] = copy.deepcopy(value)
    return result


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` in the place of `under`; sections that both have are merged."""
    both = {key: merged(under[key], over[key]) for key in over if isinstance(over[key], dict) and isinstance(under.get(key), dict)}
    return {**under, **over, **both}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; one that is empty leaves none, lists stay values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
