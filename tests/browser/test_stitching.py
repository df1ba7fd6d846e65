"""What people do in the studio: choose, stitch, move the threshold, take the result away."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow  # 13 pages in a browser: more than a minute of two cores

ORDER = ("non_finite", "residual", "spread", "rollout", "termination", "return")


def verdicts(candidates: list[Any], threshold: Callable[[Any], float]) -> list[str]:
    """The reason of each candidate at another threshold, by the rule in the endpoint's description."""
    reasons = []
    for candidate in candidates:
        failed = [name for name in candidate["failed"] if name != "residual"]
        if candidate["residual_max"] is None or not candidate["residual_max"] < threshold(candidate):
            failed.append("residual")
        reasons.append(next((name for name in ORDER if name in failed), "ok"))
    return reasons


def shown(page: Page) -> tuple[int, Counter[int], bool]:
    """Accepted count, the tally's numbers and whether the verdict is "Accepted"."""
    count = int(page.inner_text("#accepted-count b"))
    tally = [int(text) for text in page.locator("#tally li b").all_inner_texts()]
    return count, Counter(tally), page.locator("#verdict .verdict-head.accepted").count() == 1


def test_the_first_press_shows_a_bridge(open_page, stitch, server):
    page = open_page("")
    expect(page.locator("#verdict")).to_contain_text("Press Stitch")
    assert page.locator("#drawing rect.wall").count() == len(server.get("/v1/models/default")["view"]["walls"])
    answer = stitch(page)
    # Every generated state and every step between them is drawn, and the numbers are the answer's.
    assert page.locator("#drawing .state:not(.ahead)").count() == answer["gap"]
    assert page.locator("#drawing .step:not(.ahead)").count() == answer["gap"] + 1
    assert page.locator("#steps .bar-step:not(.ahead)").count() == answer["gap"] + 1
    assert page.locator("#drawing .candidate").count() == len(answer["candidates"])
    verdict = page.locator("#verdict").inner_text()
    assert ("Not accepted" not in verdict) == answer["accepted"]
    assert f"{answer['gap']} imagined states" in verdict
    assert f"step {answer['source_step']} of" in verdict and f"step {answer['target_step']} of" in verdict
    expect(page.locator("#live")).to_contain_text("Bridge accepted" if answer["accepted"] else "Bridge not accepted")
    expect(page.locator("#drawing")).to_have_attribute("aria-label", re.compile("Stitched trajectory"))
    rows = page.locator("#steps tbody tr").count()
    assert rows == len(answer["residuals"])


def test_undiscounted_returns_are_of_the_whole_trajectories(open_page, stitch, server):
    page = open_page("#source=38&target=6")
    answer = stitch(page)
    before = sum(server.get("/v1/models/default/episodes/38")["rewards"])
    after = sum(answer["trajectory"]["rewards"])
    values = [text.replace("−", "-") for text in page.locator("#verdict .comparison dd b").all_inner_texts()]
    discounted = [answer["return_source"], answer["return_stitched"]]
    assert [float(value) for value in values] == pytest.approx([before, after, *discounted], abs=0.0051)


def test_the_slider_decides_like_the_server(open_page, stitch):
    page = open_page("#source=38&target=6")
    answer = stitch(page)
    candidates = answer["candidates"]
    assert shown(page)[0] == answer["num_accepted"]
    counts = set()
    for position in (0, 120, 200, 260, 320, 380, 440, 500):
        page.locator("#delta").evaluate(
            "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')); }", position
        )
        delta = dict(part.split("=") for part in page.url.partition("#")[2].split("&"))["delta"]
        if not delta[0].isdigit():  # just on a mark
            continue
        expected = verdicts(candidates, lambda _, d=delta: float(d))
        count, tally, accepted = shown(page)
        assert count == expected.count("ok")
        assert tally == Counter(Counter(expected).values())
        assert accepted == ("ok" in expected)
        counts.add(count)
    assert len(counts) > 1
    page.click(".mark:text-is('off')")
    assert shown(page)[0] == verdicts(candidates, lambda _: np.inf).count("ok")
    expect(page.locator("#delta-value")).to_have_text("off")


def test_a_quantile_means_what_it_means_to_the_server(open_page, stitch, server):
    page = open_page("#source=38&target=6&seed=5")
    with page.expect_request("**/v1/stitch") as sent:
        stitch(page)
    body = sent.value.post_data_json
    marks = [mark for mark in page.locator(".mark").all_inner_texts() if mark != "off"]
    assert len(marks) >= 4
    assert "auto" in marks
    for quantile in (marks[0], marks[-1], "auto"):
        page.click(f".mark:text-is('{quantile}')")
        body["options"]["delta"] = quantile
        assert shown(page)[0] == server.stitch(body)["num_accepted"]
        assert f"delta={quantile}" in page.url


def test_another_candidate_by_keys_buttons_and_clicks(open_page, stitch):
    page = open_page()
    candidates = stitch(page)["candidates"]
    page.click("#next")
    expect(page.locator("#which")).to_have_text(f"2 of {len(candidates)}")
    expect(page.locator("#verdict")).to_contain_text(f"{candidates[1]['gap']} imagined states")
    page.focus("#strip .dots")
    page.keyboard.press("Home")
    least = min(range(len(candidates)), key=lambda at: candidates[at]["residual_max"])
    expect(page.locator(f"#candidate-{least}")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#live")).to_contain_text(f"Candidate {least + 1}.")
    page.keyboard.press("ArrowRight")
    assert page.locator(f"#candidate-{least}").get_attribute("aria-selected") == "false"
    page.locator("#drawing .candidate[data-candidate='3'] .hit").dispatch_event("click", {"bubbles": True})
    expect(page.locator("#which")).to_have_text(f"4 of {len(candidates)}")


def test_downloads_are_what_is_shown(open_page, stitch, saved):
    page = open_page("#source=38&target=6")
    answer = stitch(page)
    best = json.loads(saved(page, "Download JSON"))
    assert best["trajectory"] == answer["trajectory"] and best["num_accepted"] == answer["num_accepted"]
    rows = list(csv.DictReader(io.StringIO(saved(page, "Download CSV"))))
    assert len(rows) == len(answer["trajectory"]["observations"])
    assert [float(rows[5][f"observation_{at}"]) for at in range(4)] == answer["trajectory"]["observations"][5]
    assert rows[-1]["reward"] == "" and sum(row["is_synthetic"] == "true" for row in rows) == answer["gap"] + 1

    page.click("#next")
    second = json.loads(saved(page, "Download JSON"))
    candidate = answer["candidates"][1]
    trajectory, leave = second["trajectory"], candidate["source_step"]
    synthetic = np.array(trajectory["is_synthetic"])
    assert np.flatnonzero(synthetic).tolist() == list(range(leave, leave + candidate["gap"] + 1))
    assert trajectory["observations"][leave : leave + candidate["gap"] + 2] == candidate["observations"]
    assert np.array(trajectory["actions"])[synthetic].tolist() == candidate["actions"]
    assert len(trajectory["observations"]) == len(trajectory["actions"]) + 1 == len(trajectory["rewards"]) + 1


def test_curl_sends_the_same_request(open_page, stitch, server):
    page = open_page("#source=38&target=6")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer = stitch(page)
    page.click("text=Copy as curl")
    expect(page.locator("text=Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith(f"curl -sS '{server.url}/v1/stitch'")
    body = json.loads(command.split("<<'JSON'\n")[1].removesuffix("JSON\n"))
    assert server.stitch(body)["trajectory"] == answer["trajectory"]


def test_own_data_is_pasted_checked_and_stitched(open_page, stitch, server):
    page = open_page("#target=6")
    page.check("#source input[value=own]")
    episode = server.get("/v1/models/default/episodes/38")
    wrong = [*episode["observations"][:4], [1, 2, "three", 4]]
    page.fill("#source-own", json.dumps({"observations": wrong}))
    expect(page.locator("#source-error")).to_contain_text('observations[4][2] is "three"')
    page.fill("#source-own", '{"observations": [[1, 2')
    expect(page.locator("#source-error")).to_contain_text("This is not JSON")
    page.fill("#source-own", json.dumps({"observations": episode["observations"]}))
    expect(page.locator("#source-error")).to_be_empty()
    answer = stitch(page)
    assert answer["inferred"] == ["source.actions", "source.rewards"]
    expect(page.locator("#verdict")).to_contain_text("filled in by the models: source.actions, source.rewards")
    assert page.locator("#drawing .state").count() == answer["gap"]
    assert "source=" not in page.url  # own data is not in the address


def test_a_dropped_file_with_a_whole_request_fills_both_sides(open_page, stitch, server):
    page = open_page()
    sides = {name: server.get(f"/v1/models/default/episodes/{at}") for name, at in (("source", 2), ("target", 5))}
    fields = ("observations", "actions", "rewards", "terminated")
    text = json.dumps({name: {field: side[field] for field in fields} for name, side in sides.items()})
    page.evaluate(
        """(text) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([text], "request.json", { type: "application/json" }));
          const drop = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer });
          document.querySelector("#target summary").dispatchEvent(drop);
        }""",
        text,
    )
    for name in ("#source", "#target"):
        expect(page.locator(f"{name} .chosen")).to_contain_text("your own")
        expect(page.locator(f"{name} input[value=own]")).to_be_checked()
    with page.expect_request("**/v1/stitch") as sent:
        stitch(page)
    body = sent.value.post_data_json
    assert all(body[name][field] == sides[name][field] for name in sides for field in fields)


def test_the_servers_words_stand_beside_what_caused_them(open_page, server):
    page = open_page("#target=6", errors=("422",))
    page.check("#source input[value=own]")
    short = {"observations": server.get("/v1/models/default/episodes/38")["observations"][:3], "terminated": True}
    page.fill("#source-own", json.dumps(short))
    expect(page.locator("#source .chosen")).to_contain_text("your own")
    page.click("#stitch")
    expect(page.locator("#source-error")).to_contain_text("termination")
    expect(page.locator("#stitch-error")).to_be_empty()


def test_options_out_of_bounds_are_refused_where_they_are(open_page):
    page = open_page()
    page.click("#options summary")
    page.fill("#gap", "99")
    page.click("#stitch")
    expect(page.locator("#gap-error")).to_contain_text("from 2 to 8")
    expect(page.locator("#gap")).to_be_focused()


def test_options_reach_the_server(open_page, stitch):
    page = open_page("#seed=7&gap=5&candidates=3&cut=ends")
    with page.expect_request("**/v1/stitch") as sent:
        answer = stitch(page)
    options = sent.value.post_data_json["options"]
    assert options == {
        "delta": "q99",
        "gap": 5,
        "num_candidates": 3,
        "return_all": True,
        "seed": 7,
        "cut": "ends",
        "model": "default",
    }
    assert answer["target_step"] == 0


def test_a_link_restores_the_view(open_page, stitch):
    page = open_page("#source=38&target=6&seed=4&delta=0.125")
    first = stitch(page)
    page.click("#source .run >> nth=4")
    page.wait_for_function("() => !location.hash.includes('source=38&')")
    assert page.locator("#drawing .state").count() == 0  # the answer was another pair's
    again = open_page("#source=38&target=6&seed=4&delta=0.125")
    expect(again.locator("#source .chosen")).to_contain_text("#38")
    expect(again.locator("#delta-value")).to_have_text("0.125")
    assert stitch(again)["trajectory"] == first["trajectory"]
