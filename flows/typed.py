"""Settings as people type them, and what is wrong with them in plain words."""

import ast
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tasks.errors import printable, refuse

Kind = type[BaseModel]
M = TypeVar("M", bound=BaseModel)

FEW = 16
"""Names up to this number are listed where none is near to what was typed."""
_EMPTY = ("", "null", "none")
_MISPLACED = ("model_type", "model_attributes_type", "dict_type")


class Plain(BaseModel):
    """A model whose validation speaks plain words, whoever asks for it: a form, a registration, an API."""

    @model_validator(mode="wrap")
    @classmethod
    def _plainly(cls, values: Any, handler: ModelWrapValidatorHandler["Plain"]) -> "Plain":
        try:
            return handler(_with_lists(cls, values) if isinstance(values, Mapping) else values)
        except ValidationError as error:
            raise ValueError("; ".join(problems_in(error, cls))) from error


def settings_of(pairs: Sequence[str], kind: Kind, problems: list[str] | None = None) -> dict[str, Any]:
    """Nested settings of a model from what was typed, such as `seeds=4` and `wanda.sparsity=0.05`.

    A list of one may be typed as its one value, and one of several with commas; what may be empty is so by `name=`.

    Args:
        problems: gets what is wrong, a sentence each, where it is given; the rest is returned.

    Raises:
        InputError: something is no setting of this model, or is given twice; all of it at once.
    """
    known, groups = dict(leaves(kind)), groups_of(kind)
    given: dict[str, Any] = {}
    typed: dict[str, str] = {}
    wrong: list[str] = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name, text, inner = _spelt(name.strip(), groups), text.strip(), _object(text)
        if not equals or not name:
            wrong.append(f"--set {pair!r} is not NAME=VALUE")
        elif name in groups and inner is None:
            wrong.append(f"--set {pair!r}: {_group(name, kind)}")
        elif name not in known and name not in groups:
            wrong.append(unknown(name, kind))
        else:
            found = {name: _value(text, known[name])} if name in known else dict(_flat(inner or {}, kind, f"{name}."))
            for leaf, value in found.items():
                if leaf in given and given[leaf] != value:
                    wrong.append(f"{leaf} is set twice, by --set {typed[leaf]!r} and by --set {pair!r}: leave one")
                given[leaf], typed[leaf] = value, pair
    if problems is None:
        refuse(wrong)
    else:
        problems += wrong
    return _nested(given)


def _spelt(name: str, groups: set[str]) -> str:
    """A name whose group, which goes by a method's name, may have hyphens as the method's has."""
    group, dot, last = name.rpartition(".")
    plain = name.replace("-", "_")
    return plain if plain in groups else f"{group.replace('-', '_')}{dot}{last}"


def values_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Parameters of a query from `name=value`; a value is JSON or else text.

    Raises:
        InputError: something is not NAME=VALUE, or is given twice; all of it at once.
    """
    out: dict[str, Any] = {}
    problems = []
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            problems.append(f"--set {pair!r} is not NAME=VALUE")
        elif name in out and out[name] != _json(text):
            problems.append(f"{name!r} is set twice, the second time by --set {pair!r}: leave one")
        else:
            out[name] = _json(text)
    refuse(problems)
    return out


def validated(kind: type[M], values: Mapping[str, Any], where: str = "") -> M:
    """These values as a model of this kind.

    Args:
        where: what problems begin with, such as the file that the values stand in.

    Raises:
        InputError: values are out of bounds, of another kind or unknown; all of them at once, in plain words.
    """
    try:
        made = kind.model_validate(_with_lists(kind, values))
    except ValidationError as error:
        refuse([where + problem for problem in problems_in(error, kind)])
        raise  # no error without a problem
    endless = [(name, value) for name, value in _flat(made.model_dump(), kind) if _endless(value)]
    refuse([where + _cannot(name, [value], kind) for name, value in endless])
    return made


def problems_in(error: ValidationError, kind: Kind) -> list[str]:
    """What pydantic found, a sentence for each setting: its dotted name, what was given, and what may be."""
    out: list[str] = []
    wrong: dict[str, list[Any]] = {}
    for each in error.errors(include_url=False, include_context=True):
        name, here = _place(each["loc"], kind)
        if each["type"] == "extra_forbidden":
            out.append(unknown(name, kind))
        elif each["type"] == "missing":
            out.append(f"{name} is needed: {here.description if here else ''}".rstrip(": "))
        elif each["type"] in _MISPLACED and (here is None or _model_in(here) is not None):
            out.append(f"{_group(name, kind)}, not {_shown(each['input'])}")
        elif each["type"] == "value_error" and (here is None or _model_in(here) is not None):
            prefix = f"{name}: " if name else ""
            out.append(f"{prefix}{each['ctx']['error']}")
        else:
            wrong.setdefault(name, []).append(each["input"])
    return out + [_cannot(name, given, kind) for name, given in wrong.items()]


def unknown(name: str, kind: Kind) -> str:
    """What is said of a setting that there is not: which names are near."""
    names = [*(leaf for leaf, _ in leaves(kind)), *sorted(groups_of(kind))]
    last = name.rpartition(".")[2]
    alike = [one for one in names if one == name.strip().lower().replace("-", "_")]
    same = [one for one in names if one.rpartition(".")[2] == last]
    ends = {one.rpartition(".")[2]: one for one in reversed(names)}
    near = [*get_close_matches(name, names, 3, 0.7), *(ends[one] for one in get_close_matches(last, ends, 3, 0.75))]
    found = alike or list(dict.fromkeys([*same, *near]))[:4]
    what = f"there is no setting '{printable(name)}'"
    if found:
        return f"{what}: did you mean {' or '.join(found)}?"
    return f"{what}: there are {', '.join(names)}" if len(names) <= FEW else f"{what}: `engram settings` lists all"


def leaves(kind: Kind, group: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of a model that is no group of others, by its dotted name."""
    for name, field in kind.model_fields.items():
        inner = _model_in(field)
        if inner is None:
            yield group + name, field
        else:
            yield from leaves(inner, f"{group}{name}.")


def groups_of(kind: Kind, group: str = "") -> set[str]:
    """The dotted names of groups of settings."""
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        if (inner := _model_in(field)) is not None:
            found |= {group + name} | groups_of(inner, f"{group}{name}.")
    return found


def may_be(schema: Mapping[str, Any]) -> str:
    """What a setting may be, by its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(filter(None, map(may_be, schema["anyOf"])))
    if "items" in schema:
        return f"a list of: {may_be(schema['items'])}"
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "object":
        return "names with their values, in braces"
    if "pattern" in schema:
        return f"text that matches {schema['pattern']}"
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    bounds = {f">= {low}": low, f"> {above}": above, f"<= {high}": high, f"< {below}": below}
    return ", ".join([schema.get("type", ""), *(words for words, bound in bounds.items() if bound is not None)])


def _cannot(name: str, given: Sequence[Any], kind: Kind) -> str:
    """What is said of values that a setting may not have."""
    schema = _schema(name, kind)
    allowed = schema.get("items", schema).get("enum", ())
    texts = [str(value) for value in given if isinstance(value, str)]
    near = [close for text in texts for close in get_close_matches(text.lower(), map(str, allowed), 1, 0.6)]
    hint = f"; did you mean {' and '.join(near)}?" if near else ""
    return f"{name} cannot be {', '.join(map(_shown, given))}: it may be: {may_be(schema)}{hint}"


def _group(name: str, kind: Kind) -> str:
    if not name:
        return f"settings are named one by one, such as {next(leaves(kind))[0]}"
    first = next(leaf for leaf, _ in leaves(kind) if leaf.startswith(f"{name}."))
    return f"{name} is a group of settings, such as {first}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _place(location: Sequence[int | str], kind: Kind) -> tuple[str, FieldInfo | None]:
    """The dotted name of what pydantic points at, and its field, without numbers of items and names of branches."""
    names: list[str] = []
    inner: Kind | None = kind
    field = None
    for part in location:
        if inner is None or not isinstance(part, str):
            break
        names.append(part)
        field = inner.model_fields.get(part)
        inner = None if field is None else _model_in(field)
    return ".".join(names), field


def _schema(name: str, kind: Kind) -> Mapping[str, Any]:
    *groups, last = name.split(".")
    for group in groups:
        inner = _model_in(kind.model_fields[group])
        assert inner is not None
        kind = inner
    found: Mapping[str, Any] = kind.model_json_schema()["properties"][last]
    return found


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """The alternatives of a field's type, without their bounds."""
    kind = field.annotation
    every = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(get_args(one)[0] if get_origin(one) is Annotated else one for one in every)


def _model_in(field: FieldInfo) -> Kind | None:
    return next((kind for kind in _kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(kind) is tuple for kind in _kinds(field))


def _value(text: str, field: FieldInfo) -> Any:
    """What is meant by a text; pydantic reads and judges what of it is a number or a choice."""
    kinds = _kinds(field)
    if NoneType in kinds and text.lower() in _EMPTY:
        return None
    if _is_list(field):
        found = _literal(text)
        if isinstance(found, list | tuple):
            return list(found)
        inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        return [_json(_unquoted(part.strip())) for part in inner.split(",") if part.strip()]
    if str in kinds or Path in kinds or any(get_origin(kind) is Literal for kind in kinds):
        return _unquoted(text)
    value = _json(_unquoted(text))
    # JSON's true is no number, though Python's is.
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _unquoted(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _literal(text: str) -> Any:
    """A value as JSON or Python write it, with single quotes, say; or else the text."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text


def _object(text: str) -> Mapping[str, Any] | None:
    value = _literal(text)
    return value if isinstance(value, dict) and all(isinstance(name, str) for name in value) else None


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _flat(values: Mapping[str, Any], kind: Kind, group: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted name."""
    groups = groups_of(kind)
    for name, value in values.items():
        if f"{group}{name}" in groups and isinstance(value, Mapping):
            yield from _flat(value, kind, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, value in given.items():
        *groups, name = path.split(".")
        inner = out
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return out


def _with_lists(kind: Kind, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, where a single value in place of a list is a list of one."""
    out = dict(values)
    for name, value in values.items():
        field = kind.model_fields.get(name)
        if field is None:
            continue
        inner = _model_in(field)
        if inner is not None and isinstance(value, Mapping):
            out[name] = _with_lists(inner, value)
        elif _is_list(field) and isinstance(value, str | int | float):
            out[name] = [value]
    return out


def _endless(value: Any) -> bool:
    """Whether a number, or one in a list, is not finite: JSON has no such, so no record could keep it."""
    if isinstance(value, list | tuple):
        return any(map(_endless, value))
    return isinstance(value, float) and not math.isfinite(value)
