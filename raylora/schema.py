"""What every file of raylora is checked by: the words for numbers, and refusals that name the key and the nearest known one."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from raylora.core.errors import InputError

Checked = TypeVar("Checked", bound=BaseModel)
NUMBER = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf(inity)?)", re.IGNORECASE)


def _spelled(value: object) -> object:
    """YAML 1.1 reads 1e-3 and inf as words: take them as the numbers they are."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def numbers(value: Any) -> Any:
    """A strategy's option with the numbers that YAML 1.1 takes for words; other words stay."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _no_bool(value: object) -> object:
    """Python takes true for 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _number(value: object) -> object:
    return _spelled(_no_bool(value))


def _off(value: object) -> object:
    """YAML reads the word off as false."""
    return "off" if value is False else value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
PartOrNone = Annotated[Number, Field(ge=0, le=1e100)]  # of a whole, in any scale
Part = Annotated[PartOrNone, Field(gt=0)]
Strength = Annotated[Number, Field(ge=0, le=10)]  # phantoms refuse more
Share = Annotated[Number, Field(ge=0, le=1)]
Unbounded = Annotated[float, BeforeValidator(_number), Field(gt=0)]  # inf means something: no bound, no spread
Whole = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Kept = Annotated[Literal["off", "auto", "fp32", "bf16"], BeforeValidator(_off)]
Seed = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=2**63 - 1)]
Batch = Annotated[Count, Field(le=4096)]
Threads = Annotated[Count, Field(le=1024)]
Spacing = Annotated[Number, Field(ge=0.1, lt=1000)]  # mm
Size = Annotated[Count, Field(le=1024)]  # voxels


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `inf` included, as they go into YAML."""
        return self.model_dump(mode="python")

    def require_defaults(self, section: str, names: Sequence[str], why: str) -> None:
        """Refuse keys that would have no effect, rather than ignore them. Raises InputError."""
        for name in self.turned(names):
            raise InputError(f"{section}.{name}: {why}: expected nothing, found {getattr(self, name)!r}")

    def turned(self, names: Sequence[str]) -> list[str]:
        """Those of the keys that have another value than the default."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default(call_default_factory=True)]


def validated(schema: type[Checked], values: Mapping[str, Any], origin: str) -> Checked:
    """The values as an object of the schema. Raises InputError with the key that is wrong, behind `origin`, the file that it stands in."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(error, schema)}") from None
    except RecursionError:
        raise InputError(f"{origin}: nested too deeply") from None


SAID = {
    "tuple_type": "expected a list of values in brackets",
    "list_type": "expected a list in brackets",
    "model_type": "expected a section of keys and values",
    "dict_type": "expected a section of keys and values",
}
"""Pydantic's own words are about Python."""


def _explain(error: ValidationError, schema: type[BaseModel]) -> str:
    # A union reports every branch: an unknown key says most, then our own words; a value out of range more than a value of another type.
    says = ("extra_forbidden", "value_error", "greater", "less")
    first = min(error.errors(), key=lambda item: [not item["type"].startswith(word) for word in says])
    path = [str(part) for part in first["loc"][:-1] if not _is_union_branch(str(part))]
    last = [str(part) for part in first["loc"][-1:]]
    path += [part for part in last if first["type"] == "extra_forbidden" or not _is_union_branch(part)]  # a key may be called "int"
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        inside = [f"{name}.{key}" for name in schema.model_fields if len(path) == 1 and key in _known_keys(schema, [name])]
        return f"unknown key {key!r}" + (f", did you mean {inside[0]}?" if inside else nearest(path[-1], _known_keys(schema, path[:-1])))
    said = SAID.get(first["type"], first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing" and last[-1].isdigit():  # of a list
        key, said = ".".join(path[:-1]), "expected more values"
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # a section whose keys do not fit each other
        return f"{key or 'config'}: {said}"
    return f"{key or 'config'}: {said}, found {first['input']!r}"


def _is_union_branch(part: str) -> bool:
    return "[" in part or part in {"int", "float", "str", "bool", "Source", "constrained-int", "function-before"}


def _known_keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    sections = [schema]
    for part in path:  # a name that no section has is a key of a mapping, or a place in a list, of the same
        fields = [section.model_fields[part].annotation for section in sections if part in section.model_fields]
        sections = [section for field in fields for section in _sections(field)] if fields else sections
    return [name for section in sections for name in section.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a value may be, or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections(part)]


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` or the list of known words."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(set(known)))})"
