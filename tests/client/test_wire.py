"""Requests read back by the endpoint's description, and answers written by it."""

import dataclasses
import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raystitch.client
from raystitch.client import Result, StitchError, Trajectory
from raystitch.client.wire import (
    COMPRESSED_FROM_BYTES,
    compressed,
    decode_arrow,
    decode_json,
    decoded,
    encode_arrow,
    encode_json,
)
from tests.client.conftest import answer, as_arrow, encoded

OPTIONS = {"delta": "q99", "seed": 3}
Pair = tuple[Trajectory, Trajectory]


def test_json_says_what_the_trajectories_say(pair: Pair) -> None:
    source, target = pair
    assert json.loads(encode_json(source, target, OPTIONS)) == {
        "source": {
            "observations": [[0, 1], [2, 3], [4, 5]],
            "actions": None,
            "rewards": None,
            "terminated": False,
        },
        "target": {
            "observations": [[0, 0.125], [0.25, 0.375], [0.5, 0.625], [0.75, 0.875]],
            "actions": [[0.5], [0.25], [1]],
            "rewards": [1, 2, 3],
            "terminated": True,
        },
        "options": OPTIONS,
    }


def test_arrow_says_what_the_trajectories_say(pair: Pair) -> None:
    table = pa.ipc.open_stream(encode_arrow(*pair, OPTIONS)).read_all()
    table.validate(full=True)
    assert table.schema.remove_metadata() == pa.schema(
        {
            "role": pa.string(),
            "step": pa.int32(),
            "observation": pa.list_(pa.float32(), 2),
            "action": pa.list_(pa.float32(), 1),
            "reward": pa.float32(),
        }
    )
    assert table.to_pydict() == {
        "role": ["source"] * 3 + ["target"] * 4,
        "step": [0, 1, 2, 0, 1, 2, 3],
        "observation": [[0, 1], [2, 3], [4, 5], [0, 0.125], [0.25, 0.375], [0.5, 0.625], [0.75, 0.875]],
        "action": [None, None, None, [0.5], [0.25], [1], None],
        "reward": [None, None, None, 1, 2, 3, None],
    }
    options = {"source_terminated": False, "target_terminated": True}
    assert json.loads(table.schema.metadata[b"options"]) == OPTIONS | options


def test_arrow_leaves_out_columns_that_neither_has(pair: Pair) -> None:
    source, target = pair
    only = Trajectory(target.observations, rewards=target.rewards)
    table = pa.ipc.open_stream(encode_arrow(source, only, {})).read_all()
    assert table.column_names == ["role", "step", "observation", "reward"]


@pytest.mark.parametrize("wire", ["arrow", "json"])
def test_an_answer_becomes_arrays(wire: str) -> None:
    result = decode_json(encoded(answer())) if wire == "json" else decode_arrow(as_arrow(answer()))
    path = result.trajectory
    np.testing.assert_array_equal(path.observations, np.array([[0, 1], [1, 2], [3, 4], [5, 6], [7, 8]], np.float32))
    np.testing.assert_array_equal(path.actions, np.array([[0], [0.5], [0.25], [1]], np.float32))
    np.testing.assert_array_equal(path.rewards, np.array([0, 1, 2, 3], np.float32))
    assert path.is_synthetic.tolist() == [False, True, True, False]
    dtypes = {each.name: getattr(path, each.name).dtype for each in dataclasses.fields(path)}
    assert dtypes == {"observations": np.float32, "actions": np.float32, "rewards": np.float32, "is_synthetic": bool}
    assert all(getattr(path, name).flags.writeable for name in dtypes)
    assert (result.accepted, result.reason, result.gap, result.source_step, result.target_step) == (True, "ok", 1, 1, 0)
    assert (result.delta, result.return_source, result.return_stitched) == (0.75, 1.5, 2.5)
    assert (result.num_candidates, result.num_accepted, result.seed, result.model) == (2, 1, 7, "sha256:ab")
    assert (result.request_id, result.inferred, result.residuals.tolist()) == ("r", ("source.actions",), [0.25, 0.5])
    assert result.candidates is not None
    best, bad = result.candidates
    assert (best.pair, best.failed, best.observations.shape, best.actions.shape) == (3, (), (3, 2), (2, 1))
    assert math.isnan(bad.residual_max) and math.isnan(bad.residuals[0])
    assert bad.residuals[1] == 0.5


def test_both_formats_decode_to_the_same() -> None:
    assert _plain(decode_json(encoded(answer()))) == _plain(decode_arrow(as_arrow(answer())))


def _plain(result: Result) -> str:
    return repr(dataclasses.asdict(result))


@pytest.mark.parametrize(
    ("body", "decode"),
    [
        (b"<html>", decode_json),
        (b"[]", decode_json),
        (b"{}", decode_json),
        (b"<html>", decode_arrow),
        (b"", decode_arrow),
        (as_arrow(answer())[:400], decode_arrow),
        (encoded(answer() | {"trajectory": None}), decode_json),
        (b"\xff", decode_json),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_error(body: bytes, decode: Any) -> None:
    with pytest.raises(StitchError, match="200: the answer cannot be read"):
        decoded(body, decode)


def test_compression_of_large_bodies() -> None:
    large, small = b"0.25," * COMPRESSED_FROM_BYTES, b"0.25,"
    body, headers = compressed(large, "gzip")
    assert (gzip.decompress(body), headers) == (large, {"Content-Encoding": "gzip"})
    body, headers = compressed(large, "zstd")
    assert headers == {"Content-Encoding": "zstd"}
    assert pa.CompressedInputStream(pa.BufferReader(body), "zstd").read() == large
    assert len(body) < len(large) / 10
    assert compressed(small, "gzip") == (small, {})
    assert compressed(large, None) == (large, {})


def test_the_folder_works_on_its_own(tmp_path: Path) -> None:
    """Copied elsewhere under another name, and without raystitch."""
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for file in Path(raystitch.client.__file__).parent.glob("*.py"):
        (copied / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import elsewhere; elsewhere.Client('http://h').close();"
        "print([name for name in ('raystitch', 'torch', 'ray', 'pydantic', 'fastapi') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr
