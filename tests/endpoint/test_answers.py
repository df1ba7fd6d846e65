"""What an answer says: the same in both formats, the same as the bare stitcher's, the same in company."""

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.seeding import child_seeds
from raystitch.stitching.pairs import cut_trajectories, given_trajectory
from tests.endpoint.conftest import ARROW, JSON, Served, assert_same, body, read_stream, serving, stream, table, walk

pytestmark = pytest.mark.usefixtures("idle")


def answer(served: Served, request: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = served.post(request, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def _without(request: dict[str, Any], *columns: str) -> dict[str, Any]:
    return request | {
        role: {name: value for name, value in request[role].items() if name not in columns}
        for role in ("source", "target")
    }


@pytest.mark.parametrize(
    "request_",
    [
        body(num_candidates=6, return_all=True, delta="off"),
        body(9, 30, seed=4, num_candidates=3, gap=5, cut="ends"),
        _without(body(seed=6, num_candidates=4), "actions", "rewards"),
        _without(body(seed=6, num_candidates=4, return_all=True), "rewards"),
        body(30, 12, seed=7) | {"source": body(30, seed=7)["source"] | {"terminated": True}},
    ],
    ids=["all", "ends", "states", "no-rewards", "terminated"],
)
def test_json_and_arrow_give_the_same_answer(served: Served, request_: dict[str, Any]) -> None:
    by_json = answer(served, request_)
    response = served.post(stream(table(request_)))
    assert response.headers["content-type"] == ARROW
    assert_same(by_json, read_stream(response.content))


@pytest.mark.parametrize(("cut", "gap"), [("best", None), ("ends", None), ("best", 3)])
def test_an_answer_is_what_the_bare_stitcher_makes(served: Served, models: Models, cut: Any, gap: int | None) -> None:
    request = body(seed=3, num_candidates=5, return_all=True, cut=cut, gap=gap, delta="off")
    request["options"]["seed"] = 11
    said = answer(served, request)
    model = models.get("default")
    source, target = (
        given_trajectory(
            model.bundle,
            role,
            *(np.array(request[role][name], np.float32) for name in ("observations", "actions", "rewards")),
        )
        for role in ("source", "target")
    )
    pairs = cut_trajectories(model.bundle, source, target, 5, cut=cut, gap=gap, config=model.stitcher.config.pairs)
    seeds = child_seeds(np.array([11]), 5, 40)[0]
    bare = model.stitcher.stitch(pairs, seeds)
    assert len(said["candidates"]) == len(bare)
    rows = {(int(a), int(p)): row for row, (a, p) in enumerate(zip(bare.attempt, bare.first_row, strict=True))}
    for shown in said["candidates"]:
        row = rows[shown["attempt"], shown["pair"]]
        steps = int(bare.gap[row])
        assert shown["gap"] == steps and (gap is None or steps == gap)
        assert shown["source_step"] == bare.source_step[row] and shown["target_step"] == bare.target_step[row]
        for name, count in (("observations", steps + 2), ("actions", steps + 1), ("rewards", steps + 1)):
            np.testing.assert_allclose(shown[name], getattr(bare, name)[row, :count], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(shown["residual_max"], bare.residual_max[row], rtol=1e-4)


@pytest.mark.parametrize("cut", ["best", "ends"])
def test_the_trajectory_is_source_then_bridge_then_target(served: Served, cut: str) -> None:
    request = body(20, 15, seed=8, cut=cut, num_candidates=4, return_all=True)
    said = answer(served, request)
    path, best = said["trajectory"], said["candidates"][0]
    leave, enter, gap = said["source_step"], said["target_step"], said["gap"]
    if cut == "ends":
        assert (leave, enter) == (19, 0)
    source, target = request["source"], request["target"]
    expected = {
        "observations": source["observations"][: leave + 1]
        + best["observations"][1:-1]
        + target["observations"][enter:],
        "actions": source["actions"][:leave] + best["actions"] + target["actions"][enter:],
        "rewards": source["rewards"][:leave] + best["rewards"] + target["rewards"][enter:],
    }
    for name, values in expected.items():
        assert np.array_equal(np.array(path[name], np.float32), np.array(values, np.float32)), name
    assert path["is_synthetic"] == [False] * leave + [True] * (gap + 1) + [False] * (14 - enter)
    assert len(said["residuals"]) == gap + 1
    np.testing.assert_array_equal(np.float32(best["observations"][0]), np.float32(source["observations"][leave]))
    np.testing.assert_array_equal(np.float32(best["observations"][-1]), np.float32(target["observations"][enter]))


def _total(source: dict[str, Any], candidate: dict[str, Any]) -> float:
    """Discounted return of the whole stitched trajectory."""
    step = candidate["source_step"]
    collected = sum(0.99**t * reward for t, reward in enumerate(source["rewards"][:step]))
    return collected + 0.99**step * candidate["return_stitched"]


def _assert_ascending(values: list[float]) -> None:
    """Up to the four digits that the order looks at."""
    assert all(after >= before - 1e-3 * abs(before) for before, after in itertools.pairwise(values)), values


def test_auto_is_the_delta_that_the_model_says_or_refused(models: Models, files: ModelConfig, tmp_path: Path) -> None:
    bundle = models.get("default").bundle
    # Judges that were fitted for a moment err more than any noise: one calibration with more of it.
    tables = bundle.calibration.tables
    larger = {**tables, "noise": 9 * tables["recorded"]}
    replace(bundle, calibration=replace(bundle.calibration, tables=larger)).save(tmp_path / "auto")
    both = Models()
    served_models = {"default": files, "auto": replace(files, stitcher=str(tmp_path / "auto"))}
    both.load(EndpointConfig(models=served_models, device="cpu"))
    asked = body(25, 25, seed=2, return_all=True)
    with serving(both) as served:
        described = {one["name"]: one["delta"] for one in served.get("/v1/models").json()["models"]}
        said = answer(served, asked | {"options": asked["options"] | {"delta": "auto", "model": "auto"}})
        auto = dict(zip(described["auto"]["gaps"], described["auto"]["auto"], strict=True))
        assert said["candidates"]
        for c in said["candidates"]:
            assert c["delta"] == pytest.approx(auto[c["gap"]], rel=1e-3)
            assert ("residual" in c["failed"]) == (not c["residual_max"] < c["delta"])
        assert described["default"]["auto"] is None
        refused = served.post(asked | {"options": asked["options"] | {"delta": "auto"}})
        assert refused.status_code == 422
        assert "options.delta: the model 'default' has no auto; use a quantile such as q99" in refused.text


def test_candidates_are_decided_and_ordered_at_the_delta_that_was_asked_for(served: Served) -> None:
    asked = body(25, 25, seed=2, num_candidates=24, return_all=True)
    at: dict[Any, Any] = {}
    for delta in ("off", "q50", None, 0.0, 1e12):
        said = at[delta] = answer(served, asked | {"options": asked["options"] | {"delta": delta}})
        candidates = said["candidates"]
        assert said["num_candidates"] == len(candidates) and said["num_accepted"] == sum(
            c["accepted"] for c in candidates
        )
        for name in ("accepted", "reason", "gap", "source_step", "residuals", "return_stitched", "delta"):
            assert said[name] == candidates[0][name], name
        decided = [c["accepted"] for c in candidates]
        assert decided == sorted(decided, reverse=True)
        rejected = [c["residual_max"] for c in candidates if not c["accepted"]]
        _assert_ascending(rejected)
        _assert_ascending([-_total(asked["source"], c) for c in candidates if c["accepted"]])
        for c in candidates:
            assert c["accepted"] == (c["failed"] == []) and c["reason"] == (["ok"] if c["accepted"] else c["failed"])[0]
            assert ("residual" in c["failed"]) == (c["delta"] is not None and not c["residual_max"] < c["delta"])
    assert {c["delta"] for c in at["off"]["candidates"]} == {None}
    assert {c["delta"] for c in at[0.0]["candidates"]} == {0.0}
    assert at[0.0]["num_accepted"] == 0
    unlimited, huge = (
        [(c["pair"], c["attempt"], c["failed"], c["observations"]) for c in at[delta]["candidates"]]
        for delta in ("off", 1e12)
    )
    assert unlimited == huge


def test_the_answer_says_what_was_inferred_and_by_which_model(served: Served, models: Models) -> None:
    request = body(num_candidates=1)
    assert answer(served, request)["inferred"] == []
    request["source"]["actions"] = None
    del request["target"]["rewards"]
    said = answer(served, request, **{"X-Request-ID": "mine-7"})
    assert said["inferred"] == ["source.actions", "target.rewards"]
    assert said["request_id"] == "mine-7" and said["seed"] == 0
    assert said["model"] == models.get("default").bundle.hash
    assert said["candidates"] is None


def test_a_terminal_state_is_never_left(served: Served) -> None:
    request = body(20, 12, seed=5, num_candidates=12, return_all=True)
    request["source"]["terminated"] = True
    for cut in ("best", "ends"):
        request["options"]["cut"] = cut
        said = answer(served, request)
        assert max(c["source_step"] for c in said["candidates"]) < 19
    request["source"] = {"observations": walk(3, 0).tolist(), "terminated": True}
    response = served.post(request)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "source"


def test_the_same_request_gives_the_same_bytes_and_another_seed_another_bridge(served: Served) -> None:
    first, again = (served.post(body(num_candidates=3), headers={"X-Request-ID": "a"}) for _ in range(2))
    assert first.content == again.content
    other = answer(served, body(num_candidates=3) | {"options": {"num_candidates": 3, "seed": 2**53 - 1}})
    assert other["trajectory"] != first.json()["trajectory"]


def _mixed(index: int) -> tuple[dict[str, Any], str]:
    rng = random.Random(index)
    options = {
        "num_candidates": rng.choice([1, 2, 5, 9]),
        "gap": rng.choice([None, None, 2, 8]),
        "delta": rng.choice([None, "off", "q50", 3.0]),
        "return_all": rng.random() < 0.5,
        "cut": rng.choice(["best", "ends"]),
        "model": rng.choice(["default", "default", "bare"]),
    }
    made = body(rng.randint(2, 40), rng.randint(2, 40), seed=index, **options)
    made["options"]["seed"] = index
    return (made if rng.random() < 0.5 else _without(made, "actions")), rng.choice([JSON, ARROW])


def test_a_request_has_the_same_answer_alone_and_among_sixteen_others(served: Served) -> None:
    mixed = [_mixed(index) for index in range(16)]
    alone = [answer(served, request) for request, _ in mixed]
    before = len(served.counts.calls)

    def send(request: dict[str, Any], kind: str) -> Any:
        if kind == ARROW:
            return lambda client: client.post(
                "/v1/stitch", content=stream(table(request)), headers={"Content-Type": ARROW}
            )
        return lambda client: client.post("/v1/stitch", json=request)

    responses: list[httpx.Response] = served.together([send(*one) for one in mixed])
    calls = served.counts.calls[before:]
    assert sum(requests for requests, _ in calls) == 16 and len(calls) < 16
    for expected, response, (_, kind) in zip(alone, responses, mixed, strict=True):
        assert response.status_code == 200
        assert_same(expected, response.json() if kind == JSON else read_stream(response.content))
