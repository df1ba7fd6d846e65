"""A config dataclass from YAML and ``a.b=c`` overrides, with errors that name the file, the line and the key."""

import difflib
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from raystitch.errors import UserError

T = TypeVar("T")
KeyPath = tuple[str | int, ...]


def plain(value: Any) -> Any:
    """The value with tuples as lists and mappings as dicts: what YAML and JSON hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def load_config(
    path: str | os.PathLike[str] | None,
    kind: type[T],
    overrides: Sequence[str] = (),
    *,
    preset: T | None = None,
    recorded: bool = False,
) -> T:
    """Reads a YAML file (None: nothing but defaults, or ``preset``) as the config dataclass ``kind``.

    Args:
        recorded: raystitch wrote the file, perhaps an earlier version: keys renamed since are read (``current_names``).

    Raises:
        UserError: one line with the file, the line, the key, the value and what would be right.
    """
    lines: dict[KeyPath, int] = {}
    data: Any = {}
    if path is not None:
        data, lines = _read_yaml(Path(path))
        data = current_names(data, kind) if recorded else data
    elif preset is not None:
        known: Any = preset  # T is a dataclass, which its bound cannot say
        data = plain(asdict(known))
    data = {} if data is None else data
    where: dict[KeyPath, str] = {(): f"{path}: " if path else ""}
    where |= {key: f"{path}:{line}: " for key, line in lines.items()}
    for override in overrides:
        key = _apply_override(data, override)
        where[key] = f"--set {override}: "
    return parse_config(data, kind, where)


def read_value(text: str) -> Any:
    """Read a value as people write it in YAML.

    Raises:
        UserError: when it is none.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is not a YAML value") from error


def current_names(data: Any, kind: Any) -> Any:
    """Return what an earlier version wrote with the keys that ``kind`` has today, at every level.

    Keys that were renamed (``RENAMED``) get their new names, those that came later what was done before (``EARLIER``).

    For files that raystitch wrote itself; in those of users the old name is refused. A key stays where its new name is
    there too.
    """
    if not (isinstance(data, Mapping) and is_dataclass(kind)):
        return data
    data = {**getattr(kind, "EARLIER", {}), **data}
    renamed = {old: new for old, new in getattr(kind, "RENAMED", {}).items() if new not in data}
    named = {renamed.get(name, name): value for name, value in data.items()}
    return {name: current_names(value, _kind_at(kind, (str(name),))) for name, value in named.items()}


def parse_config(data: Any, kind: type[T], where: Mapping[KeyPath, str] | None = None) -> T:
    """Return plain data as the config dataclass ``kind``; unknown keys are refused at every level.

    Raises:
        UserError: one line with the key, the value and what would be right.
    """
    try:
        return _adapter(kind).validate_python({"value": _over_defaults(data, kind)}).value
    except ValidationError as error:
        raise UserError(_explain(error, data, kind, where or {})) from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Return what checks values of a kind; making it takes longer than the checks."""
    box = make_dataclass("Box", [("value", kind)], namespace={"__pydantic_config__": ConfigDict(extra="forbid")})
    return TypeAdapter(box)


def _over_defaults(data: Any, kind: Any) -> Any:
    """Nested mappings laid over the defaults that their parent gives them, which may differ from their class's own:
    ``dynamics: {hidden: 200}`` keeps the number of members of the dynamics."""
    if not (isinstance(data, Mapping) and is_dataclass(kind)):
        return data
    merged = dict(data)
    for field in fields(kind):
        given = data.get(field.name)
        if isinstance(given, Mapping) and field.default_factory is not MISSING:
            default = field.default_factory()
            if is_dataclass(default):
                own = {name.name: getattr(default, name.name) for name in fields(default)}
                merged[field.name] = own | _over_defaults(given, type(default))
    return merged


def _path_in(data: Any, problem: ErrorDetails) -> KeyPath:
    """Return the keys of the data at which a problem is. Its place also names branches of unions, which are none."""
    path: list[str | int] = []
    for part in problem["loc"][1:]:
        here = _get(data, tuple(path))
        is_key = (isinstance(here, Mapping) and part in here) or (isinstance(here, list) and isinstance(part, int))
        if is_key or problem["type"] == "missing":
            path.append(part)
    return tuple(path)


def _explain(error: ValidationError, data: Any, kind: type, where: Mapping[KeyPath, str]) -> str:
    problems = error.errors(include_url=False)
    # An unknown key often explains a missing one, so it is named first. For a union type, report the closest branch's
    # error.
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    first = min(problems, key=lambda at: (at["type"] not in unknown, at["type"] != "value_error", -len(at["loc"])))
    path = _path_in(data, first)
    key = ".".join(str(part) for part in path)
    prefix = next((where[tuple(path[:end])] for end in range(len(path), -1, -1) if tuple(path[:end]) in where), "")
    paths = {_path_in(data, problem) for problem in problems}
    others = [at for at in paths if at != path[: len(at)]]  # of a union every branch has a problem of its own
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] in unknown:
        at = _kind_at(kind, tuple(path[:-1]))
        renamed = getattr(at, "RENAMED", {}).get(path[-1])
        if renamed is not None:
            return f"{prefix}{key}: was renamed; write {'.'.join([*key.split('.')[:-1], renamed])}{more}"
        known = [field.name for field in fields(at)] if is_dataclass(at) else []
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"
        return f"{prefix}{key}: unknown key; {hint}{more}"
    if first["type"] == "missing":
        return f"{prefix}{key}: required but missing{more}"
    if first["type"] == "value_error":
        return f"{prefix}{f'{key}: ' if key else ''}{first['msg'].removeprefix('Value error, ')}{more}"
    message = first["msg"][0].lower() + first["msg"][1:]
    words = [at["ctx"]["expected"] for at in problems if at["type"] == "literal_error" and "ctx" in at and at != first]
    if words and first["type"] != "literal_error":
        message += f", or {words[0]}"
    return f"{prefix}{key}: {message}, got {first['input']!r}{more}"


def _get(data: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _kind_at(kind: Any, path: KeyPath) -> Any:
    """The config dataclass at a place of ``kind``; another type where there is none."""
    for part in (*path, None):
        if get_origin(kind) in (types.UnionType, Union):
            branches = get_args(kind)
            fits = (lambda branch: get_origin(branch) is tuple) if isinstance(part, int) else is_dataclass
            kind = next((branch for branch in branches if fits(branch)), object)
        if part is not None:
            kind = get_args(kind)[0] if isinstance(part, int) else get_type_hints(kind).get(part, object)
    return kind


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (``off`` and ``1:1`` are text, ``5e-4`` is a number) and no repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _read_yaml(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    try:
        with path.open(encoding="utf-8") as file:
            loader = _Loader(file)
            node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is None:
            return {}, lines
        _note_lines(node, (), lines)
        return loader.construct_document(node), lines
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _note_lines(item, (*path, index), lines)


def _apply_override(data: Any, override: str) -> KeyPath:
    name, separator, text = override.partition("=")
    if not separator or not name.strip():
        raise UserError(f"--set {override!r}: write it as key=value, such as fit.diffusion.train_steps=500")
    try:
        value = read_value(text)
    except UserError as error:
        raise UserError(f"--set {override}: {error}") from error
    path: KeyPath = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    here: Any = data
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list) and isinstance(part, int):
            if part >= len(here):
                raise UserError(f"--set {override}: {'.'.join(map(str, path[:depth]))} has only {len(here)} items")
        elif isinstance(here, dict) and isinstance(part, str):
            if not last and here.get(part) is None:
                here[part] = {}
        else:
            raise UserError(f"--set {override}: {'.'.join(map(str, path[:depth])) or 'the file'} has no key {part!r}")
        holder: Any = here
        if last:
            holder[part] = value
        here = holder[part]
    return path
