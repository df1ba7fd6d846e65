"""Every limit at its boundary, and bodies that are larger than they look."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from raystitch.endpoint.config import BatchingConfig, EndpointConfig, LimitsConfig, ModelConfig
from raystitch.endpoint.models import Models
from tests.endpoint.conftest import ARROW, JSON, STITCH, Served, body, refused, serving, stream, table

MIB = 2**20


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content).to_pybytes()


def padded(size: int) -> bytes:
    """A good request of exactly so many bytes."""
    content = json.dumps(body(num_candidates=1)).encode()
    return content + b" " * (size - len(content))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "zstd": zstd}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_body_is_as_large_as_the_limit_before_and_after_decompression(models: Models, encoding: str) -> None:
    limit = 100_000
    with serving(models, limits=LimitsConfig(max_body_bytes=limit)) as served:
        for size, status in ((limit, 200), (limit + 1, 413), (50 * limit, 413)):
            headers = {"Content-Type": JSON, "Content-Encoding": encoding}
            response = served.request("POST", STITCH, content=COMPRESS[encoding](padded(size)), headers=headers)
            assert response.status_code == status
            if status == 413:
                assert "100,000 bytes" in refused(response, 413)["detail"]
        # Random bytes do not become smaller.
        noise = np.random.default_rng(0).bytes(2 * limit)
        headers = {"Content-Type": ARROW, "Content-Encoding": encoding}
        refused(served.request("POST", STITCH, content=COMPRESS[encoding](noise), headers=headers), 413)
        assert served.is_idle()


def test_a_body_without_a_length_stops_at_the_limit(models: Models) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    with serving(models, limits=LimitsConfig(max_body_bytes=100_000)) as served:
        refused(served.request("POST", STITCH, content=endless(), headers={"Content-Type": JSON}), 413)
        assert sent <= 120_000
        assert served.is_idle()


@pytest.mark.parametrize("length", ["100001", "9" * 18])
def test_a_declared_length_beyond_the_limit_is_refused_unread(models: Models, length: str) -> None:
    async def unread() -> Any:
        raise AssertionError("the body is read")
        yield b""

    with serving(models, limits=LimitsConfig(max_body_bytes=100_000)) as served:
        headers = {"Content-Type": JSON, "Content-Length": length}
        refused(served.request("POST", STITCH, content=unread(), headers=headers), 413)


@pytest.mark.parametrize("length", [b"\xb2", b"9" * 5000, b"-1", b"0x10", b"1e3", b"", b"000000000000000000000000001"])
def test_a_length_that_is_no_number_is_no_fault(served: Served, length: bytes) -> None:
    """A server in front refuses these; in process they come through."""
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    refused(served.request("POST", STITCH, content=b"{}", headers=headers), 422)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_opened_no_further_than_the_limit(served: Served, encoding: str) -> None:
    bomb = COMPRESS[encoding](b"\0" * 300 * MIB)
    nested = COMPRESS[encoding](bomb)
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}
    before = pa.total_allocated_bytes()
    assert len(bomb) < MIB
    assert (
        "after decompression" in refused(served.request("POST", STITCH, content=bomb, headers=headers), 413)["detail"]
    )
    refused(served.request("POST", STITCH, content=nested, headers=headers), 400)
    assert pa.total_allocated_bytes() - before < MIB
    assert served.is_idle()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_an_encoding_that_is_not_the_bodys_is_400(served: Served, encoding: str) -> None:
    good = COMPRESS[encoding](padded(5000))
    other = COMPRESS["zstd" if encoding == "gzip" else "gzip"](padded(5000))
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}

    def send(content: bytes) -> httpx.Response:
        return served.request("POST", STITCH, content=content, headers=headers)

    for content in (padded(5000), other, good[:-1], good[: len(good) // 2], good + b"x", b"\0"):
        assert f"not valid {encoding}" in refused(send(content), 400)["detail"]
    # A flipped byte is found by the encoding's checksum or, where it has none, makes other text.
    for at in range(0, len(good), len(good) // 20):
        assert send(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]).status_code in (200, 400, 422)
    # Empty, and several frames one after the other, are what the encodings allow.
    assert "is not JSON" in refused(send(b""), 400)["detail"]
    text = padded(5000)
    two = COMPRESS[encoding](text[:100]) + COMPRESS[encoding](b"") + COMPRESS[encoding](text[100:])
    assert send(two).status_code == 200


@pytest.mark.parametrize("kind", [JSON, ARROW])
def test_steps_and_candidates_are_bounded(models: Models, kind: str) -> None:
    with serving(models, limits=LimitsConfig(max_steps=30, max_candidates=5)) as served:

        def status(source: int, target: int, count: int) -> int:
            request = body(source, target, num_candidates=count)
            return served.post(request if kind == JSON else stream(table(request))).status_code

        assert status(30, 30, 5) == 200
        assert status(2, 2, 1) == 200
        assert [status(31, 30, 5), status(30, 31, 5), status(30, 30, 6), status(30, 30, 0)] == [422] * 4
        limits = served.get("/v1/models/default").json()["limits"]
        assert (limits["max_steps"], limits["max_candidates"]) == (30, 5)
        # What does not say how many gets as many as there may be.
        request = body(5, 5, return_all=True)
        said = served.post(request if kind == JSON else stream(table(request)), headers={"Accept": JSON}).json()
        assert {one["pair"] for one in said["candidates"]} == set(range(5))


def test_a_gap_is_one_that_the_model_knows(served: Served) -> None:
    for gap in (2, 8, 8.0):
        assert served.post(body(num_candidates=1, gap=gap)).json()["gap"] == gap
    for gap in (1, 9):
        assert "2..8" in refused(served.post(body(gap=gap)), 422)["detail"]


def test_the_longest_trajectories_of_the_largest_request_are_answered(served: Served) -> None:
    response = served.post(stream(table(body(10_000, 10_000, num_candidates=256))), headers={"Accept": ARROW})
    assert response.status_code == 200
    response = served.post(body(10_000, 2, num_candidates=1, cut="ends"), headers={"Accept": ARROW})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (LimitsConfig, {"max_body_bytes": 0}),
        (LimitsConfig, {"max_candidates": 0}),
        (LimitsConfig, {"max_steps": 1}),
        (LimitsConfig, {"deadline_seconds": 0}),
        (LimitsConfig, {"deadline_seconds": float("nan")}),
        (LimitsConfig, {"body_seconds": float("inf")}),
        (LimitsConfig, {"body_seconds": -1}),
        (BatchingConfig, {"max_candidates": 0}),
        (BatchingConfig, {"max_queued_candidates": 0}),
        (BatchingConfig, {"max_receiving": 0}),
        (BatchingConfig, {"wait_seconds": -0.1}),
        (BatchingConfig, {"wait_seconds": 1.1}),
        (EndpointConfig, {"num_threads": 0}),
        (EndpointConfig, {"models": {"a/b": ModelConfig(stitcher="x")}}),
        (EndpointConfig, {"models": {"": ModelConfig(stitcher="x")}}),
        (EndpointConfig, {"models": {"m" * 65: ModelConfig(stitcher="x")}}),
        (ModelConfig, {"stitcher": ""}),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_value(config: Any, values: dict[str, Any]) -> None:
    (value,) = values.values()
    with pytest.raises(ValueError, match=r"must|made of") as error:
        config(**values)
    shown = next(iter(value)) if isinstance(value, dict) else value
    assert repr(shown) in str(error.value) or str(shown) in str(error.value)
