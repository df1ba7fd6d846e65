"""Requests and answers as one Arrow IPC stream.

A stranger's stream is validated before it is read: compressed buffers, whose size the stream itself declares, are
refused, and every column is checked before it becomes an array.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, ValidationError

from raystitch.data.arrow import MAX_BATCHES, UnsafeArrow, check_messages
from raystitch.data.episodes import Floats
from raystitch.endpoint.answer import Answer
from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.problems import Problem, invalid
from raystitch.endpoint.request import (
    ROLES,
    GivenTrajectory,
    ModelSizes,
    Options,
    Role,
    StitchRequest,
    check_length,
    check_rows,
    checked_options,
    finite_float32,
    validation_problem,
)

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_COLUMNS = ("role", "step", "observation", "action", "reward")
_MAX_OPTIONS = 10_000  # decoded, an option takes a hundred times its bytes
_UNSAFE = {
    "extension": ("schema", "has an extension type; send the column as what it stores"),
    "compressed": (
        "body",
        "its Arrow buffers are compressed; send them plain, or the body with Content-Encoding: gzip",
    ),
    "batches": ("body", f"has more than {MAX_BATCHES} record batches; write longer ones"),
}


class ArrowOptions(Options):
    """The options of an Arrow request: in its schema's metadata, under ``options``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    source_terminated: bool = False
    target_terminated: bool = False


def read_arrow_request(body: bytes, sizes_of: Callable[[str], ModelSizes], limits: LimitsConfig) -> StitchRequest:
    """Read and check a request.

    Args:
        sizes_of: a model's sizes by its name; raises Problem for names that it does not know.

    Raises:
        Problem: 400 when the body is not an Arrow stream, 422 naming the column and the first bad row.
    """
    table = _read_table(body)
    text = (table.schema.metadata or {}).get(b"options", b"{}")
    if len(text) > _MAX_OPTIONS:
        raise invalid("options", f"takes {len(text)} bytes, more than {_MAX_OPTIONS}")
    try:
        options = ArrowOptions.model_validate_json(text)
    except ValidationError as error:
        raise validation_problem(error, "options") from None
    sizes = sizes_of(options.model)
    plain = checked_options(
        Options(**options.model_dump(include=set(Options.model_fields), exclude_unset=True)),
        sizes,
        limits,
    )
    role = table["role"]
    if role.null_count:
        raise invalid("role", "has nulls; every row is of the source or the target")
    # Compare in Arrow: in a numpy array every role takes as much memory as the longest.
    rows = {name: pc.call_function("equal", [role, pa.scalar(name, role.type)]) for name in ROLES}
    unknown = pc.call_function("or", list(rows.values())).index(False).as_py()
    if unknown >= 0:
        raise invalid(f"role[{unknown}]", f"{role[unknown].as_py()[:40]!r} is neither 'source' nor 'target'")
    parts = {name: table.filter(rows[name]) for name in ROLES}
    terminated = {"source": options.source_terminated, "target": options.target_terminated}
    given = {name: _trajectory(name, parts[name], sizes, limits, terminated[name]) for name in ROLES}
    return StitchRequest(source=given["source"], target=given["target"], options=plain)


def write_arrow(answer: Answer) -> bytes:
    """The stitched trajectory as a table with ``is_synthetic``, the rest as JSON in the metadata under ``result``."""
    observations, actions = answer.observations, answer.actions
    num_states = len(observations)
    no_transition = np.arange(num_states) == num_states - 1

    def rows(values: Floats) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel(), pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

    def until_last(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate([values, np.zeros_like(values[:1])])

    flat_actions = pa.array(until_last(actions).ravel(), pa.float32())
    table = pa.table(
        {
            "step": pa.array(np.arange(num_states, dtype=np.int32)),
            "observation": rows(observations),
            "action": pa.FixedSizeListArray.from_arrays(flat_actions, actions.shape[1], mask=pa.array(no_transition)),
            "reward": pa.array(until_last(answer.rewards), pa.float32(), mask=no_transition),
            "is_synthetic": pa.array(until_last(answer.is_synthetic), pa.bool_(), mask=no_transition),
        }
    )
    result = orjson.dumps(answer.summary, option=orjson.OPT_SERIALIZE_NUMPY)
    table = table.replace_schema_metadata({"result": result})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _read_table(body: bytes) -> pa.Table:
    try:
        check_messages(pa.py_buffer(body))
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            _check_schema(reader.schema)
            table = reader.read_all()
        table.validate(full=True)
    except UnsafeArrow as error:
        raise invalid(*_UNSAFE[error.reason]) from None
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError, OverflowError, MemoryError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Problem(400, f"the body is not a valid Arrow IPC stream: {first[:200]}") from None
    return table.combine_chunks()


def _check_schema(schema: pa.Schema) -> None:
    """Raises: Problem 422 for columns that are missing, unknown or of another type."""
    names = schema.names
    for name in names:
        if name not in _COLUMNS or names.count(name) > 1:
            what = "is there twice" if name in _COLUMNS else f"is not one of {', '.join(_COLUMNS)}"
            raise invalid(name[:60] or "column ''", f"the column {what}")
    for name in ("role", "step", "observation"):
        if name not in names:
            raise invalid(name, "the column is missing")
    for name in names:
        kind = schema.field(name).type
        if not _TYPES[name](kind):
            raise invalid(name, f"the column is {str(kind)[:80]}, expected {_EXPECTED[name]}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_int32(kind) or pa.types.is_int64(kind))


def _is_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_float32(kind) or pa.types.is_float64(kind))


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind)) and _is_float(kind.value_type)


_TYPES: Mapping[str, Callable[[pa.DataType], bool]] = {
    "role": _is_text,
    "step": _is_whole,
    "observation": _is_vector,
    "action": _is_vector,
    "reward": _is_float,
}
_EXPECTED = {
    "role": "utf8",
    "step": "int32",
    "observation": "fixed_size_list<float32, O>",
    "action": "fixed_size_list<float32, A>",
    "reward": "float32",
}


def _trajectory(
    role: Role, table: pa.Table, sizes: ModelSizes, limits: LimitsConfig, terminated: bool
) -> GivenTrajectory:
    num_states = table.num_rows
    check_length(role, num_states, limits)
    steps = table["step"]
    if steps.null_count or not np.array_equal(steps.to_numpy(), np.arange(num_states)):
        raise invalid(f"{role}.step", f"must count 0, 1, .. {num_states - 1} in the order of the rows")
    columns: dict[str, Floats | None] = {"action": None, "reward": None}
    for name, width in (("action", sizes.act_dim), ("reward", None)):
        if name not in table.column_names or table[name].null_count == num_states:
            continue
        column = _single(table[name])
        # The last state has no transition, so its row must not have a value.
        present = num_states - 1 if not column[num_states - 1].is_valid else num_states
        check_rows(f"{role}.{name}s", present, num_states)
        columns[name] = _numbers(f"{role}.{name}s", column.slice(0, num_states - 1), width)
    observations = _numbers(f"{role}.observations", _single(table["observation"]), sizes.obs_dim)
    return GivenTrajectory(
        observations=observations, actions=columns["action"], rewards=columns["reward"], terminated=terminated
    )


def _single(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _numbers(field: str, column: pa.Array, width: int | None) -> Floats:
    """float32 [rows, width], or [rows] where the width is None."""
    if column.null_count:
        raise invalid(f"{field}[{int(np.argmin(column.is_valid().to_numpy(zero_copy_only=False)))}]", "is null")
    if width is None:
        return finite_float32(field, column.to_numpy())
    if column.type.list_size != width:
        raise invalid(field, f"has rows of {column.type.list_size} numbers, the model needs {width}")
    values = column.flatten()
    if values.null_count:
        row = int(np.argmin(values.is_valid().to_numpy(zero_copy_only=False))) // width
        raise invalid(f"{field}[{row}]", "holds a null")
    return finite_float32(field, values.to_numpy().reshape(-1, width))
