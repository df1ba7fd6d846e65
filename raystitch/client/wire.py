"""Requests and answers as bytes, in both formats; nothing is sent here."""

import gzip
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .errors import StitchError
from .values import Bools, Candidate, Floats, Result, StitchedTrajectory, Trajectory

T = TypeVar("T")
WireName: TypeAlias = Literal["arrow", "json"]
"""How requests and answers are written."""
Codec: TypeAlias = Literal["gzip", "zstd"]
"""How requests are compressed."""

COMPRESSED_FROM_BYTES = 32 * 1024


def plain_options(
    *,
    delta: float | str | None,
    gap: int | None,
    num_candidates: int,
    return_all: bool,
    seed: int,
    cut: str,
    model: str,
) -> dict[str, Any]:
    """Return the options as JSON values. Their types are checked here; the server checks their bounds.

    Raises:
        ValueError: for an option of the wrong kind.
    """
    whole: dict[str, Any] = {"num_candidates": num_candidates, "seed": seed, "gap": gap}
    for name, value in whole.items():
        if name == "gap" and value is None:
            continue
        try:
            whole[name] = operator.index(value)
        except TypeError:
            raise ValueError(f"{name} must be a whole number, got {name}={value!r}") from None
    if delta is not None and not isinstance(delta, str):
        delta = float(delta)
        if not 0 <= delta < float("inf"):
            raise ValueError(
                f"delta must be a number >= 0, a quantile such as 'q99', 'auto' or 'off', got delta={delta}"
            )
    if cut not in ("best", "ends"):
        raise ValueError(f"cut must be 'best' or 'ends', got cut={cut!r}")
    return {"delta": delta, **whole, "return_all": bool(return_all), "cut": cut, "model": model}


def encode_json(source: Trajectory, target: Trajectory, options: Mapping[str, Any]) -> bytes:
    def plain(trajectory: Trajectory) -> dict[str, Any]:
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(trajectory).items()
        }

    content = {"source": plain(source), "target": plain(target), "options": dict(options)}
    return json.dumps(content, separators=(",", ":")).encode()


def encode_arrow(source: Trajectory, target: Trajectory, options: Mapping[str, Any]) -> bytes:
    pair = (source, target)
    lengths = [len(trajectory.observations) for trajectory in pair]
    columns = {
        "role": pa.array(["source"] * lengths[0] + ["target"] * lengths[1]),
        "step": pa.array(np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])),
        "observation": _vectors(np.concatenate([trajectory.observations for trajectory in pair])),
    }
    # A column that neither trajectory has is left out, because its width is unknown.
    if source.actions is not None or target.actions is not None:
        columns["action"] = _vectors(*_per_transition(source.actions, target.actions, lengths))
    if source.rewards is not None or target.rewards is not None:
        values, missing = _per_transition(source.rewards, target.rewards, lengths)
        columns["reward"] = pa.array(values, mask=missing)
    about = {**options, "source_terminated": source.terminated, "target_terminated": target.terminated}
    table = pa.table(columns, metadata={"options": json.dumps(about)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _per_transition(source: Floats | None, target: Floats | None, lengths: list[int]) -> tuple[Floats, Bools]:
    """Rows for all states of both [T + T', ...], and where values are missing: in each last state, or in all."""
    width = next(array.shape[1:] for array in (source, target) if array is not None)
    values = np.zeros((sum(lengths), *width), np.float32)
    missing = np.ones(sum(lengths), np.bool_)
    for start, array in ((0, source), (lengths[0], target)):
        if array is not None:
            values[start : start + len(array)] = array
            missing[start : start + len(array)] = False
    return values, missing


def _vectors(rows: Floats, missing: Bools | None = None) -> pa.Array:
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1], mask=mask)


def compressed(body: bytes, codec: Codec | None) -> tuple[bytes, dict[str, str]]:
    """Return the body as it is sent and its headers; a small body is not compressed."""
    if codec is None or len(body) < COMPRESSED_FROM_BYTES:
        return body, {}
    packed = gzip.compress(body, compresslevel=1) if codec == "gzip" else pa.compress(body, codec=codec, asbytes=True)
    return packed, {"Content-Encoding": codec}


def decode_json(body: bytes) -> Result:
    return _typed(Result, json.loads(body))


def decode_arrow(body: bytes) -> Result:
    table = pa.ipc.open_stream(body).read_all().combine_chunks()
    last = len(table) - 1

    def values(name: str, length: int) -> NDArray[Any]:
        column = table[name].chunk(0).slice(0, length)
        if pa.types.is_fixed_size_list(column.type):
            return column.flatten().to_numpy().reshape(length, column.type.list_size)
        return column.to_numpy(zero_copy_only=False)

    trajectory = {
        "observations": values("observation", last + 1),
        "actions": values("action", last),
        "rewards": values("reward", last),
        "is_synthetic": values("is_synthetic", last),
    }
    return _typed(Result, {**json.loads(table.schema.metadata[b"result"]), "trajectory": trajectory})


def decoded(body: bytes, decode: Callable[[bytes], T]) -> T:
    """Raises: StitchError when this version does not understand the answer of the server, or of a proxy before it."""
    try:
        return decode(body)
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise StitchError(f"the answer cannot be read: {error!r}", 200) from error


def _typed(kind: type[T], raw: Mapping[str, Any]) -> T:
    """Make a dataclass from the fields of an answer; unknown fields of a newer server are left out."""
    known: Any = kind  # a dataclass, although its type does not say so
    return kind(**{each.name: _READ.get(each.type, _same)(raw[each.name]) for each in fields(known)})


def _same(value: Any) -> Any:
    return value


_READ: dict[Any, Callable[[Any], Any]] = {
    Floats: lambda value: np.array(value, np.float32),
    Bools: lambda value: np.array(value, np.bool_),
    float: lambda value: float("nan") if value is None else float(value),
    tuple[str, ...]: tuple,
    StitchedTrajectory: lambda value: _typed(StitchedTrajectory, value),
    list[Candidate] | None: lambda value: None if value is None else [_typed(Candidate, each) for each in value],
}


@dataclass(frozen=True)
class Wire:
    media_type: str
    encode: Callable[[Trajectory, Trajectory, Mapping[str, Any]], bytes]
    decode: Callable[[bytes], Result]


WIRES: Mapping[WireName, Wire] = {
    "arrow": Wire("application/vnd.apache.arrow.stream", encode_arrow, decode_arrow),
    "json": Wire("application/json", encode_json, decode_json),
}
