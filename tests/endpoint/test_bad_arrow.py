"""Arrow streams as a stranger may send them: every one is answered with 400 or 422, and costs what its size costs."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.endpoint.conftest import JSON, Served, assert_same, body, refused, stream, table

pytestmark = pytest.mark.usefixtures("idle")
FIXED = pa.list_(pa.float32(), 4)


def good(**options: Any) -> pa.Table:
    return table(body(6, 5, num_candidates=1, **options))


def replaced(name: str, values: Any, kind: Any = None) -> pa.Table:
    """A good table with another column, or with a column of another name."""
    made, column = good(), pa.array(values, kind) if kind is not None else values
    if name in made.column_names:
        return made.set_column(made.column_names.index(name), name, column)
    return made.append_column(name, column)


def with_nan(row: int, dim: int, value: float) -> pa.Table:
    rows = good()["observation"].to_pylist()
    rows[row][dim] = value
    return replaced("observation", rows, FIXED)


ROLES, STEPS = ["source"] * 6 + ["target"] * 5, [*range(6), *range(5)]
OBSERVATIONS = good()["observation"].to_pylist()
NO_BATCH = good().slice(0, 0)

REFUSED: dict[str, tuple[Any, int, str]] = {
    "no batch": (NO_BATCH, 422, "source.observations"),
    "no role": (good().drop_columns(["role"]), 422, "role"),
    "no observation": (good().drop_columns(["observation"]), 422, "observation"),
    "unknown column": (replaced("extra", STEPS, pa.int32()), 422, "extra"),
    "a name of nothing": (replaced("", STEPS, pa.int32()), 422, "column ''"),
    "column twice": (good().append_column("reward", good()["reward"]), 422, "reward"),
    "role of numbers": (replaced("role", STEPS, pa.int32()), 422, "role"),
    "role of bytes": (replaced("role", [r.encode() for r in ROLES], pa.binary()), 422, "role"),
    "role as a dictionary": (replaced("role", pa.array(ROLES).dictionary_encode()), 400, ""),
    "null role": (replaced("role", [None, *ROLES[1:]], pa.utf8()), 422, "role"),
    "unknown role": (replaced("role", [*ROLES[:3], "x" * 1000, *ROLES[4:]], pa.utf8()), 422, "role[3]"),
    "role in another case": (replaced("role", ["Source"] * 6 + ["target"] * 5, pa.utf8()), 422, "role[0]"),
    "step of floats": (replaced("step", [float(s) for s in STEPS], pa.float64()), 422, "step"),
    "step of int8": (replaced("step", STEPS, pa.int8()), 422, "step"),
    "null step": (replaced("step", [None, *STEPS[1:]], pa.int32()), 422, "source.step"),
    "steps from 1": (replaced("step", [s + 1 for s in STEPS], pa.int64()), 422, "source.step"),
    "steps mixed up": (replaced("step", [*range(6), 0, 2, 1, 3, 4], pa.int32()), 422, "target.step"),
    "lists without a size": (replaced("observation", OBSERVATIONS, pa.list_(pa.float32())), 422, "observation"),
    "lists of integers": (
        replaced("observation", [[1, 2, 3, 4]] * 11, pa.list_(pa.int32(), 4)),
        422,
        "observation",
    ),
    "lists of halves": (
        replaced("observation", [np.zeros(4, np.float16)] * 11, pa.list_(pa.float16(), 4)),
        422,
        "observation",
    ),
    "lists of lists": (
        replaced("observation", [[[1.0]] * 4] * 11, pa.list_(pa.list_(pa.float32(), 1), 4)),
        422,
        "observation",
    ),
    "a struct": (replaced("observation", [{"x": 1.0}] * 11), 422, "observation"),
    "text": (replaced("observation", ["1"] * 11), 422, "observation"),
    "rows of 3": (replaced("observation", [[1.0] * 3] * 11, pa.list_(pa.float32(), 3)), 422, "source.observations"),
    "actions of 3": (replaced("action", [[1.0] * 3] * 11, pa.list_(pa.float32(), 3)), 422, "source.actions"),
    "null observation": (
        replaced("observation", [*OBSERVATIONS[:8], None, *OBSERVATIONS[9:]], FIXED),
        422,
        "target.observations[2]",
    ),
    "null in an observation": (
        replaced("observation", [*OBSERVATIONS[:2], [1.0, None, 1.0, 1.0], *OBSERVATIONS[3:]], FIXED),
        422,
        "source.observations[2]",
    ),
    "NaN": (with_nan(7, 3, float("nan")), 422, "target.observations[1][3]"),
    "infinite": (with_nan(5, 0, float("-inf")), 422, "source.observations[5][0]"),
    "too large": (with_nan(0, 0, 1.1e15), 422, "source.observations[0][0]"),
    "null reward in the middle": (
        replaced("reward", [1.0, None, 1.0, 1.0, 1.0, None, *[1.0] * 4, None], pa.float32()),
        422,
        "source.rewards[1]",
    ),
    "a reward after the last state": (
        replaced("reward", [*[1.0] * 5, None, *[1.0] * 5], pa.float32()),
        422,
        "target.rewards",
    ),
    "rewards as text": (replaced("reward", ["1"] * 11), 422, "reward"),
    "no source": (good().slice(6), 422, "source.observations"),
    "no target": (good().slice(0, 6), 422, "target.observations"),
    "one state": (good().slice(0, 7), 422, "target.observations"),
}
OPTIONS: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 400, ""),
    "no object": (b"[]", 422, "options"),
    "not UTF-8": (b'{"model": "\xff"}', 400, ""),
    "unknown": (b'{"x": 1}', 422, "options.x"),
    "a wrong one": (b'{"seed": -1}', 422, "options.seed"),
    "terminated as text": (b'{"source_terminated": "yes"}', 422, "options.source_terminated"),
    "deep": (b"[" * 9000, 400, ""),
    "long": (b'{"x": "' + b"x" * 10_001 + b'"}', 422, "options"),
    "no such model": (b'{"model": "x"}', 422, "options.model"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_wrong_column_is_named_with_its_first_bad_row(served: Served, name: str, chunk: int | None) -> None:
    content, status, field = REFUSED[name]
    if chunk is not None and status == 400:
        chunk = None
    problem = refused(served.post(stream(content, chunk)), status)
    if field:
        assert problem["errors"][0]["field"] == field
        assert problem["detail"].startswith(field)


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options_are_named(served: Served, name: str) -> None:
    text, status, field = OPTIONS[name]
    problem = refused(served.post(stream(good().replace_schema_metadata({"options": text}))), status)
    assert "options" in problem["detail"]
    if field:
        assert problem["errors"][0]["field"] == field


def test_what_means_the_same_is_read_the_same(served: Served) -> None:
    expected = served.post(body(6, 5, num_candidates=1)).json()
    one = good()
    wide = one.cast(
        pa.schema(
            [
                ("role", pa.large_utf8()),
                ("step", pa.int64()),
                ("observation", pa.list_(pa.float64(), 4)),
                ("action", pa.list_(pa.float64(), 2)),
                ("reward", pa.float64()),
            ],
            metadata=one.schema.metadata,
        )
    )
    alternating = one.take([0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5]).replace_schema_metadata(one.schema.metadata)
    streams = [
        stream(one, 1),
        stream(wide),
        stream(wide, 3),
        stream(alternating, 2),
        stream(one) + b"after",
    ]
    for sent in streams:
        response = served.post(sent, headers={"Accept": JSON})
        assert response.status_code == 200, response.text
        assert_same(expected, response.json())


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_buffers_are_refused_before_they_are_decompressed(served: Served, codec: str) -> None:
    count = 200_000
    zeros = pa.table(
        {
            "role": pa.array(["source"] * count),
            "step": pa.array(np.zeros(count, np.int32)),
            "observation": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * count, np.float32)), 4),
        }
    )
    sent = stream(zeros, options=pa.ipc.IpcWriteOptions(compression=codec))
    assert 5 * len(sent) < len(stream(zeros))
    before = pa.total_allocated_bytes()
    problem = refused(served.post(sent), 422)
    assert "compressed" in problem["detail"] and "Content-Encoding" in problem["detail"]
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_extension_types_are_not_decoded(served: Served) -> None:
    decoded: list[bytes] = []

    class Evil(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(FIXED, "raystitch.tests.evil")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"payload"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> "Evil":
            decoded.append(serialized)
            return cls()

    pa.register_extension_type(Evil())
    try:
        values = pa.ExtensionArray.from_storage(Evil(), pa.array(OBSERVATIONS, FIXED))
        sent = stream(replaced("observation", values))
        decoded.clear()
        assert refused(served.post(sent), 422)["errors"][0]["field"] == "schema"
        assert decoded == []
    finally:
        pa.unregister_extension_type("raystitch.tests.evil")


def test_a_deeply_nested_type_is_refused(served: Served) -> None:
    kind: Any = pa.float32()
    for depth in range(1, 501):
        kind = pa.list_(kind)
        if depth in (50, 500):
            made = pa.schema([("role", pa.utf8()), ("step", pa.int32()), ("observation", kind)])
            response = served.post(stream(made.empty_table()))
            refused(response, 422 if depth == 50 else 400)


def test_the_number_of_batches_and_the_length_of_roles_do_not_multiply(served: Served) -> None:
    one = good()
    batches = [one.slice(0, 0)] * 1200
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, one.schema) as writer:
        empty = pa.record_batch([pa.array([], field.type) for field in one.schema], schema=one.schema)
        for _ in batches:
            writer.write_batch(empty)
    assert "record batches" in refused(served.post(sink.getvalue().to_pybytes()), 422)["detail"]
    # As fixed-width text these would take 2 GB.
    count = 5000
    roles = pa.table(
        {
            "role": pa.array(["source"] * count + ["x" * 100_000]),
            "step": pa.array(range(count + 1), pa.int32()),
            "observation": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * (count + 1), np.float32)), 4),
        }
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = refused(served.post(stream(roles)), 422)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert problem["errors"][0]["field"] == f"role[{count}]" and len(problem["detail"]) < 200


def test_a_million_steps_are_refused_for_their_number(served: Served) -> None:
    count = 1_000_000
    columns = {
        "role": pa.array(["source"] * count),
        "step": pa.array(np.arange(count, dtype=np.int32)),
        "observation": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * count, np.float32)), 4),
    }
    problem = refused(served.post(stream(pa.table(columns))), 422)
    assert problem["errors"][0]["field"] == "source.observations"
    assert "1000000 states, more than 10000" in problem["detail"]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff" * 100, b"ARROW1\0\0", json.dumps(body()).encode(), stream(good())[:100]]
)
def test_what_is_no_stream_is_400(served: Served, content: bytes) -> None:
    assert "not a valid Arrow IPC stream" in refused(served.post(content), 400)["detail"]


def test_an_arrow_file_is_no_stream(served: Served) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, good().schema) as writer:
        writer.write_table(good())
    refused(served.post(sink.getvalue().to_pybytes()), 400)


_FUZZ = Path(__file__).with_name("fuzz_arrow.py")


def test_mutated_streams_never_end_the_process(tmp_path: Path) -> None:
    """In a process of its own, where a crash of Arrow would be seen."""
    for index, sent in enumerate(
        (stream(good()), stream(good(), 3), stream(good().drop_columns(["action", "reward"])))
    ):
        (tmp_path / f"{index}.arrow").write_bytes(sent)
    run = subprocess.run(
        [sys.executable, str(_FUZZ), str(tmp_path), "6000"], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = json.loads(run.stdout)
    assert outcomes["400"] > 3000 and outcomes["422"] > 100 and outcomes["read"] > 100
    assert outcomes["slowest_seconds"] < 2 and outcomes["grown_mib"] < 50
