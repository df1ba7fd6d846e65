"""JSON bodies as nobody should send them: 400 or 422, the field named with its first bad index, at a bounded cost."""

import gzip
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.json_wire import read_json_request, refuse_floods
from raystitch.endpoint.models import Models
from raystitch.endpoint.problems import Problem
from tests.endpoint.conftest import JSON, STITCH, Served, body, refused, serving

pytestmark = pytest.mark.usefixtures("idle")
STATES = "[[0,0,0,0],[1,1,1,1]]"


def text(
    source: str = f'{{"observations":{STATES}}}', target: str = f'{{"observations":{STATES}}}', **more: str
) -> str:
    fields = {"source": source, "target": target, **more}
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def observations(value: str) -> str:
    return text(f'{{"observations":{value}}}')


def send(served: Served, content: str | bytes, **headers: str) -> Any:
    sent = content.encode("utf-8") if isinstance(content, str) else content
    return served.request("POST", STITCH, content=sent, headers={"Content-Type": JSON, **headers})


NO_JSON: dict[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "cut": text().encode()[:-1],
    "more": text().encode() + b"{}",
    "single quotes": b"{'source': 1}",
    "trailing comma": b'{"source": [1,]}',
    "comment": b"{} // x",
    "byte order mark": b"\xef\xbb\xbf" + text().encode(),
    "UTF-16": text().encode("utf-16"),
    "invalid UTF-8": b'{"source": "\xff"}',
    "overlong UTF-8": b'{"source": "\xc0\xaf"}',
    "half a surrogate": b'{"source": "\\ud800"}',
    "a NUL": b"{\x00}",
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 900,
    "deep and closed": b"[" * 5000 + b"]" * 5000,
    "a number of 5000 digits": observations("[[" + "9" * 5000 + ",0,0,0],[0,0,0,0]]").encode(),
    "an option of 5000 digits": text(options='{"seed":' + "9" * 5000 + "}").encode(),
    "Arrow": b"\xff\xff\xff\xff\x00\x00\x00\x00",
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_400(served: Served, name: str) -> None:
    assert "is not JSON" in refused(send(served, NO_JSON[name]), 400)["detail"]


WRONG: dict[str, tuple[str, str]] = {
    "null": ("null", "body"),
    "a list": ("[]", "body"),
    "a number": ("1", "body"),
    "empty": ("{}", "source"),
    "no target": ('{"source":{"observations":[[0]]}}', "target"),
    "unknown key": (text(extra="1"), "extra"),
    "unknown key inside": (text(f'{{"observations":{STATES},"x":1}}'), "source.x"),
    "unknown option": (text(options='{"path":"/etc/passwd"}'), "options.path"),
    "an odd key": (text(**{"\\u0000\\n💩": "1"}), "\0\n💩"),
    "a long key": (text(**{"k" * 5000: "1"}), "k" * 200),
    "source a list": (text("[]"), "source"),
    "source null": (text("null"), "source"),
    "observations null": (observations("null"), "source.observations"),
    "observations a text": (observations('"x"'), "source.observations"),
    "observations an object": (observations("{}"), "source.observations"),
    "none": (observations("[]"), "source.observations"),
    "one": (observations("[[0,0,0,0]]"), "source.observations"),
    "a row null": (observations("[[0,0,0,0],null]"), "source.observations[1]"),
    "a row a number": (observations("[[0,0,0,0],1]"), "source.observations[1]"),
    "a row empty": (observations("[[0,0,0,0],[]]"), "source.observations[1]"),
    "a row short": (observations("[[0,0,0,0],[0,0,0]]"), "source.observations[1]"),
    "a row long": (observations("[[0,0,0,0,0],[0,0,0,0]]"), "source.observations[0]"),
    "a row nested": (observations("[[[0],0,0,0],[0,0,0,0]]"), "source.observations[0][0]"),
    "nested in all": (observations("[" * 100 + "]" * 100), "source.observations[0][0]"),
    "an integer as text": (observations('[["1",0,0,0],[0,0,0,0]]'), "source.observations[0][0]"),
    "a bool": (observations("[[0,0,0,0],[0,0,true,0]]"), "source.observations[1][2]"),
    "a null": (observations("[[0,0,null,0],[0,0,0,0]]"), "source.observations[0][2]"),
    "NaN": (observations("[[0,0,0,0],[0,NaN,0,0]]"), "source.observations[1][1]"),
    "Infinity": (observations("[[0,-Infinity,0,0],[0,0,0,0]]"), "source.observations[0][1]"),
    "1e39": (observations("[[0,0,0,0],[0,0,0,1e39]]"), "source.observations[1][3]"),
    "1e400": (observations("[[0,0,0,0],[0,0,0,1e400]]"), "source.observations[1][3]"),
    "a huge integer": (observations("[[0,0,0,0],[0,0,0," + "9" * 400 + "]]"), "source.observations[1][3]"),
    "the first of two": (observations("[[0,0,1e39,0],[0,1e39,0,0]]"), "source.observations[0][2]"),
    "actions missing": (text(f'{{"observations":{STATES},"actions":[]}}'), "source.actions"),
    "actions too many": (text(f'{{"observations":{STATES},"actions":[[0,0],[0,0]]}}'), "source.actions"),
    "an action of 3": (text(f'{{"observations":{STATES},"actions":[[0,0,0]]}}'), "source.actions[0]"),
    "rewards in rows": (text(f'{{"observations":{STATES},"rewards":[[0]]}}'), "source.rewards[0]"),
    "rewards too many": (text(f'{{"observations":{STATES},"rewards":[0,0]}}'), "source.rewards"),
    "a reward too large": (text(f'{{"observations":{STATES},"rewards":[-2e15]}}'), "source.rewards[0]"),
    "terminated a number": (text(f'{{"observations":{STATES},"terminated":1}}'), "source.terminated"),
    "terminated null": (text(f'{{"observations":{STATES},"terminated":null}}'), "source.terminated"),
    "options null": (text(options="null"), "options"),
    "of the target": (text(target='{"observations":[[0,0,0,0],[0,0,0]]}'), "target.observations[1]"),
    "the last of two keys counts": (text(options="{}", **{"options ": "1"}).replace("options ", "options"), "options"),
}
OPTIONS: list[tuple[str, str]] = [
    ("delta", v)
    for v in ("-1", "true", '""', '"q"', '"q101"', '"q-1"', '"Off"', '"99"', "[]", "NaN", "1e400", '"q99\\n"', '"q1e1"')
]
OPTIONS += [("gap", v) for v in ("0", "-1", "1", "9", "2.5", "true", '"2"', "100001", "1e300", "[]", str(2**63))]
OPTIONS += [("num_candidates", v) for v in ("0", "-1", "257", "1.5", "null", "true", '"1"', str(2**64), "1e308")]
OPTIONS += [("seed", v) for v in ("-1", str(2**53), "0.5", "null", "false", '"0"', str(10**400))]
OPTIONS += [("cut", v) for v in ('"Best"', '""', "null", "0", '["best"]')]
OPTIONS += [
    ("model", v) for v in ('""', '"' + "m" * 65 + '"', "null", "0", '"../default"', '"none"', '"default\\u0000"')
]
OPTIONS += [("return_all", v) for v in ("1", '"true"', "null", "[]")]


@pytest.mark.parametrize("name", WRONG)
def test_the_wrong_field_is_named_with_its_first_bad_index(served: Served, name: str) -> None:
    content, field = WRONG[name]
    problem = refused(send(served, content), 422)
    assert problem["errors"][0]["field"] == field
    assert problem["detail"] == f"{field}: {problem['errors'][0]['message']}"


@pytest.mark.parametrize(("option", "value"), OPTIONS, ids=[f"{o} {v[:12]}" for o, v in OPTIONS])
def test_the_wrong_option_is_named(served: Served, option: str, value: str) -> None:
    response = send(served, text(options=f'{{"{option}":{value}}}'))
    assert refused(response, 422)["errors"][0]["field"] == f"options.{option}"


@pytest.mark.parametrize(
    "kind", ["text/json", "application/jsonp", "", "x", "application/x-www-form-urlencoded", "*/*"]
)
def test_another_content_type_is_415(served: Served, kind: str) -> None:
    response = served.request("POST", STITCH, content=text(), headers={"Content-Type": kind})
    refused(response, 415)
    assert JSON in response.headers["accept"]
    refused(served.request("POST", STITCH, content=text()), 415)  # none at all


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x-gzip", "utf-8", "\xff"])
def test_another_encoding_is_415(served: Served, encoding: str) -> None:
    response = served.request(
        "POST",
        STITCH,
        content=text(),
        headers=[(b"content-type", b"application/json"), (b"content-encoding", encoding.encode("latin-1"))],
    )
    refused(response, 415)
    assert response.headers["accept-encoding"] == "gzip, zstd"


# Fixtures that are reset after each test, not after each example, are meant.
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
_finite = st.floats(-1e15, 1e15, allow_nan=False)
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
_trajectory = st.fixed_dictionaries(
    {"observations": st.lists(st.lists(_finite, min_size=4, max_size=4), min_size=2, max_size=14)},
    optional={
        "actions": st.none() | st.lists(st.lists(_finite, min_size=2, max_size=2), min_size=1, max_size=13),
        "rewards": st.none() | st.lists(_finite, min_size=1, max_size=13),
        "terminated": st.booleans(),
    },
)
_ragged = st.fixed_dictionaries(
    {"observations": st.lists(st.lists(st.floats() | st.integers(), max_size=5), max_size=5)},
    optional={"actions": _anything, "rewards": _anything, "terminated": _anything},
)
_options = st.fixed_dictionaries(
    {"num_candidates": st.integers(1, 3)},
    optional={
        "delta": st.none() | st.floats(0, 1e300) | st.sampled_from(["off", "q0", "q50.5", "q100"]),
        "gap": st.none() | st.integers(2, 8),
        "seed": st.integers(0, 2**53 - 1),
        "cut": st.sampled_from(["best", "ends"]),
        "return_all": st.booleans(),
    },
)


def _numbers_are_finite_or_null(content: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    json.loads(content, parse_constant=refuse)
    return True


@settings(max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=UNCHECKED)
@given(source=_trajectory | _ragged, target=_trajectory | _trajectory | _ragged, options=_options)
def test_any_trajectories_are_stitched_or_refused(served: Served, source: Any, target: Any, options: Any) -> None:
    response = send(served, json.dumps({"source": source, "target": target, "options": options}))
    if response.status_code == 200:
        assert _numbers_are_finite_or_null(response.text)
        path = response.json()["trajectory"]
        assert len(path["observations"]) == len(path["actions"]) + 1 == len(path["is_synthetic"]) + 1
    else:
        assert refused(response, 422)["errors"][0]["field"].split(".")[0] in ("source", "target")


@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=UNCHECKED)
@given(content=st.dictionaries(st.sampled_from(["source", "target", "options", "x"]), _anything) | _anything)
def test_any_json_is_answered(served: Served, content: Any) -> None:
    sent = json.dumps(content)
    response = send(served, sent)
    assert response.status_code in ((400, 422) if "\\ud" in sent.lower() else (422,)), response.text


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_mutated_text_is_answered(served: Served, data: st.DataObject) -> None:
    sent = bytearray(text(options='{"num_candidates":1,"seed":3}').encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sent) - 1))
        sent[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    assert send(served, bytes(sent)).status_code in (200, 400, 422)


def test_the_largest_numbers_are_stitched(served: Served) -> None:
    for value in (1e15, -1e15, 5e-324):
        request = body(num_candidates=2, return_all=True)
        request["source"]["observations"] = [[value] * 4] * 14
        request["target"]["rewards"] = [value] * 11
        response = served.post(request)
        assert response.status_code == 200 and _numbers_are_finite_or_null(response.text)


def _flood(kind: str, size: int) -> tuple[bytes, str]:
    """A body of about ``size`` bytes, and the field that it is refused for."""
    match kind:
        case "numbers":
            return observations("[[" + "0," * (size // 2) + "0]]").encode(), "body"
        case "rows":
            return observations("[" + "[]," * (size // 3) + "[]]").encode(), "source.observations"
        case "steps":
            rows = ",".join(["[1,2,3,4]"] * 1_000_000)
            return text(target=f'{{"observations":[{rows}]}}').encode(), "target.observations"
        case "rewards":
            rewards = ",".join(["1"] * 1_000_000)
            return text(f'{{"observations":{STATES},"rewards":[{rewards}]}}').encode(), "source.rewards"
        case "keys":
            return text(options="{" + ",".join(f'"{i:x}":0' for i in range(size // 12)) + "}").encode(), "body"
        case "junk":
            return b'{"x":[' + b"{}," * (size // 3) + b"{}]}", "body"
        case "names":
            return b"[" + b'"source",' * (size // 9) + b"0]", "body"
        case _:
            return observations("[[0." + "1" * size + "]]").encode(), "source.observations"


@pytest.mark.parametrize("kind", ["numbers", "rows", "steps", "rewards", "keys", "junk", "names", "digits"])
def test_a_flood_is_refused_at_the_cost_of_counting_it(served: Served, kind: str) -> None:
    """Parsed, these took up to four gigabytes and a minute."""
    content, field = _flood(kind, 8 * 2**20)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    response = send(served, content)
    assert refused(response, 422)["errors"][0]["field"] == field
    assert time.process_time() - begun < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_nothing_of_bad_requests_is_kept(served: Served) -> None:
    """Resident memory stays where it was after the first rounds."""
    floods = [_flood(kind, 2**20)[0] for kind in ("numbers", "rows", "keys", "junk", "digits")]
    others = [text(source).encode() for source in ("null", f'{{"observations":{STATES},"x":1}}')] + [*NO_JSON.values()]

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    sizes = []
    for _ in range(12):
        for content in floods + others:
            assert send(served, content).status_code in (400, 422)
            assert send(served, gzip.compress(content, 1), **{"Content-Encoding": "gzip"}).status_code in (400, 422)
        sizes.append(resident())
    assert sizes[-1] - min(sizes[3:6]) < 10, sizes


def test_no_honest_request_is_taken_for_a_flood(models: Models) -> None:
    """Two trajectories of the largest length, whatever their numbers are written like."""
    limits = LimitsConfig(max_steps=50)
    rows = np.zeros((50, 4)).tolist()
    given_ = {"observations": rows, "actions": [[0.0, 0.0]] * 49, "rewards": [0.0] * 49}
    for indent in (None, 1):
        content = json.dumps({"source": given_, "target": given_, "options": {"seed": 1}}, indent=indent).encode()
        refuse_floods(content, limits, models.now().numbers_per_step)
        read_json_request(content, lambda name: models.get(name).sizes, limits)
    longer = {"observations": rows * 20, "actions": None, "rewards": None}
    with pytest.raises(Problem, match=r"source.observations: has more than 50 rows"):
        refuse_floods(json.dumps({"source": longer, "target": longer}).encode(), limits, models.now().numbers_per_step)


def test_a_trajectory_just_too_long_is_named(models: Models) -> None:
    with serving(models, limits=LimitsConfig(max_steps=20)) as served:
        assert served.post(body(20, 20, num_candidates=1)).status_code == 200
        for source, target, field in ((21, 20, "source"), (20, 21, "target"), (20, 5000, "target")):
            problem = refused(served.post(body(source, target)), 422)
            assert problem["errors"][0]["field"] == f"{field}.observations" and "20" in problem["detail"]
