"""The pilot that chooses how pairs are found, before a generation."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.meta import META_FILE, read_meta
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.schema import BufferMeta, PilotResult
from raystitch.config import GridCell, RunConfig
from raystitch.data.episodes import EpisodeDataset, from_episodes
from raystitch.errors import UserError
from raystitch.io.files import read_json, write_json
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.models.calibration import Calibration
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate import opening
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.generate.pilot import FEW, LESS_TRUE, num_pilot_pairs, run_pilot
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.pipeline.trials.trial import JoinedSettings
from raystitch.report.sections import pilot as shown
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher
from tests.conftest import Run, small_fit

QUALIFY = QualifyConfig(delta="q99", termination_max=None)
CONFIG = AugmentConfig(num_bridges=20, pairs_per_shard=20, chain_rounds=0)


def asked(split: str = "return", **pairs: Any) -> StitchConfig:
    usual = {"split": split, "terminal_margin": 2, "max_target_reuse": 0}
    return StitchConfig(pairs=PairConfig(**usual | pairs), qualify=QUALIFY)


AUTO = asked(mode="auto", seam_max="auto")
PAIRS = 64


@pytest.fixture(scope="module", autouse=True)
def short_pilots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raystitch.pipeline.generate.pilot.PILOT_PAIRS", PAIRS)
        yield


@pytest.fixture(scope="module")
def bundle(drift: EpisodeDataset) -> Bundle:
    return fit_bundle(drift, small_fit(), None, device="cpu")


@pytest.fixture(scope="module")
def found(drift: EpisodeDataset, bundle: Bundle) -> tuple[PilotResult, ...]:
    notes = list[str]()
    found = run_pilot(drift, bundle, AUTO, None, 3, notes.append)
    assert "to be chosen" in notes[0]
    assert found[0].name in notes[-1]
    return found


def test_judges_that_know_little_are_said_to(drift: EpisodeDataset, bundle: Bundle) -> None:
    def notes(factor: float) -> str:
        known = bundle.calibration
        tables = {**known.tables, "noise": factor * known.tables["recorded"]}
        heard, poor = list[str](), replace(bundle, calibration=Calibration(known.gaps, known.quantiles, tables))
        run_pilot(drift, poor, asked(mode="successor", seam_max="auto"), None, 0, heard.append)
        return " ".join(heard)

    assert "they know little; fit dynamics longer" in notes(0.5)
    assert "know little" not in notes(100)


def test_of_the_ways_held_true_the_one_with_the_largest_gain_is_first(
    drift: EpisodeDataset, bundle: Bundle, found: tuple[PilotResult, ...]
) -> None:
    ways = [(result.mode, result.seam_max) for result in found]
    assert sorted(ways, key=str) == sorted(
        [(mode, cap) for mode in ("successor", "distance", "imagine") for cap in (None, "q95", "q50")]
        + [("random", None)],
        key=str,
    )
    least = max(result.truth for result in found if result.accepted >= FEW * PAIRS) - LESS_TRUE
    order = [(result.truth < least, -result.worth) for result in found]
    assert order == sorted(order)
    assert not order[0][0]
    # What the first one says, worked out in another way.
    best = found[0]
    config = asked(mode=best.mode, seam_max=best.seam_max)
    seeds = np.random.Generator(np.random.PCG64(0)).integers(0, 2**62, 1000)
    index = SourceIndex(drift, bundle, config)
    pairs = index.select(seeds)
    kept = index.worthwhile(pairs)
    made = Stitcher(bundle, config).stitch(pairs.take(kept), seeds[kept])
    limit = np.array([bundle.calibration.believed(np.array([gap]))[0] for gap in made.gap])
    worth = np.zeros(len(seeds))
    for row in np.flatnonzero(made.accepted & (made.residual_max <= limit)):
        pair = made.first_row[row]
        worth[pair] = max(worth[pair], made.return_stitched[row] - made.return_source[row])
    assert best.worth > 0
    assert best.worth == pytest.approx(worth.mean(), abs=4 * worth.std() / np.sqrt(PAIRS))


def test_counts_go_down_from_tried_to_held_true(found: tuple[PilotResult, ...]) -> None:
    for result in found:
        assert PAIRS == result.tried >= result.stitched >= result.accepted >= result.believed >= 0
        assert (result.gain is None) == (result.believed == 0)
        assert result.truth == (result.believed / result.accepted if result.accepted else 0)


def test_what_is_named_is_kept(drift: EpisodeDataset, bundle: Bundle) -> None:
    def ways(**pairs: Any) -> set[tuple[str, object]]:
        found = run_pilot(drift, bundle, asked(**pairs), None, 0, lambda _: None)
        return {(result.mode, result.seam_max) for result in found}

    assert num_pilot_pairs(AUTO.pairs) == 10 * PAIRS
    assert num_pilot_pairs(asked(mode="distance", seam_max="auto").pairs) == 3 * PAIRS
    assert num_pilot_pairs(asked().pairs) == 0
    assert ways(mode="distance", seam_max="auto") == {("distance", None), ("distance", "q95"), ("distance", "q50")}
    assert ways(mode="auto") == {(mode, None) for mode in ("successor", "distance", "imagine", "random")}
    assert ways(mode="auto", seam_max=2.0) == {(mode, 2.0) for mode in ("successor", "distance", "imagine")}


def test_a_way_that_finds_no_pair_is_left_out_and_none_at_all_is_an_error(
    drift: EpisodeDataset, bundle: Bundle
) -> None:
    """Of sources with two steps none has a recorded future, which two of the modes need."""
    best = [drift.episode(int(number)) for number in np.argsort(drift.returns)[-10:]]
    stubs = [
        replace(
            episode,
            observations=episode.observations[:3],
            actions=episode.actions[:2],
            rewards=episode.rewards[:2] - 100,
            terminated=False,
            truncated=True,
        )
        for episode in best
    ]
    short = from_episodes([*stubs, *best], name="short", action_low=drift.action_low, action_high=drift.action_high)
    found = run_pilot(short, bundle, asked(mode="auto"), None, 0, lambda _: None)
    assert {result.mode for result in found} == {"imagine", "random"}
    with pytest.raises(UserError, match="no state to leave"):
        run_pilot(short, bundle, asked(mode="successor", seam_max="auto"), None, 0, lambda _: None)


def notes_of(out: Path, dataset: EpisodeDataset, bundle: Bundle, config: StitchConfig) -> list[str]:
    heard = list[AugmentProgress]()
    augment_local(dataset, bundle, config, CONFIG, out=out, seed=1, progress=heard.append)
    return [at.message for at in heard if at.event == "note"]


def test_augment_decides_once_and_says_so(drift: EpisodeDataset, bundle: Bundle, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "buffer"
    first = notes_of(out, drift, bundle, AUTO)
    assert [note.partition(":")[0] for note in first[:2]] == ["pilot", "pilot"]
    meta = read_meta(Storage(out))
    assert (meta.stitch.pairs.mode, meta.stitch.pairs.seam_max) == (meta.pilot[0].mode, meta.pilot[0].seam_max)
    assert meta.pilot == run_pilot_again(drift, bundle, meta)
    before = open_buffer(out).hash
    # A second run, and one that names what was chosen, find it done.
    assert "as the buffer was begun" in notes_of(out, drift, bundle, AUTO)[0]
    named = replace(AUTO, pairs=meta.stitch.pairs)
    assert not notes_of(out, drift, bundle, named)
    assert open_buffer(out).hash == before
    code, text, _ = run("buffer", "info", out)
    assert code == 0
    assert "pairs were chosen by a pilot" in text
    assert "gain per pair tried" in text
    assert meta.pilot[-1].mode in text


def run_pilot_again(dataset: EpisodeDataset, bundle: Bundle, meta: BufferMeta) -> tuple[PilotResult, ...]:
    found = run_pilot(dataset, bundle, AUTO, None, meta.seed, lambda _: None)
    taken = {(result.mode, result.seam_max): result.seconds for result in meta.pilot}
    return tuple(replace(result, seconds=taken[result.mode, result.seam_max]) for result in found)


def test_an_interrupted_generation_goes_on_as_it_was_begun(
    drift: EpisodeDataset, bundle: Bundle, tmp_path: Path
) -> None:
    """Even where a pilot would choose another way by now: it is asked once."""
    out = tmp_path / "buffer"
    notes_of(out, drift, bundle, asked(mode="distance", seam_max="q95"))
    value = read_json(out / META_FILE)
    write_json(out / META_FILE, value | {"complete": None})
    assert notes_of(out, drift, bundle, AUTO)[0].startswith("pairs.mode=distance and pairs.seam_max=q95, as the buffer")
    with pytest.raises(UserError, match=r"other settings: stitch.pairs.seam_max .*give another --out"):
        notes_of(out, drift, bundle, asked(mode="auto", seam_max=0.5))


def test_a_buffer_begun_with_random_pairs_takes_no_limit(drift: EpisodeDataset, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "buffer"
    notes_of(out, drift, bundle, asked(mode="random"))
    with pytest.raises(UserError, match=r"other settings: .*stitch.pairs.mode"):
        notes_of(out, drift, bundle, asked(mode="auto", seam_max=0.5))


def test_a_folder_with_something_else_is_refused_before_the_pilot(
    drift: EpisodeDataset, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a buffer"):
        notes_of(tmp_path, drift, bundle, AUTO)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def without(bundle: Bundle, table: str) -> Bundle:
    known = bundle.calibration
    tables = {name: values for name, values in known.tables.items() if name != table}
    return replace(bundle, calibration=Calibration(known.gaps, known.quantiles, tables))


def test_a_stitcher_of_an_earlier_version_says_what_to_do(
    drift: EpisodeDataset, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"earlier version fitted.*fit again in another folder, or name pairs.mode"):
        notes_of(tmp_path / "buffer", drift, without(bundle, "noise"), AUTO)
    with pytest.raises(UserError, match=r"pairs.seam_max=q95: .* or give a number"):
        notes_of(tmp_path / "buffer", drift, without(bundle, "seam"), asked(seam_max="q95"))
    assert not (tmp_path / "buffer").exists()


def test_without_neighbours_no_limit_is_tried(drift: EpisodeDataset, bundle: Bundle) -> None:
    found = run_pilot(drift, without(bundle, "seam"), AUTO, None, 0, lambda _: None)
    assert {result.seam_max for result in found} == {None}


def test_the_way_with_the_truest_counts_even_where_hardly_any_pair_is_accepted(
    drift: EpisodeDataset, bundle: Bundle
) -> None:
    strict = replace(AUTO, qualify=replace(QUALIFY, delta=1e-5))
    found = run_pilot(drift, bundle, strict, None, 3, lambda _: None)
    assert all(result.accepted < FEW * PAIRS for result in found)
    assert found[0].truth >= max(result.truth for result in found) - LESS_TRUE


def test_a_driver_that_was_faster_is_followed(
    drift: EpisodeDataset, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, pilot = tmp_path / "buffer", opening.run_pilot

    def overtaken(*args: Any) -> tuple[PilotResult, ...]:
        monkeypatch.setattr(opening, "run_pilot", pilot)
        notes_of(out, drift, bundle, asked(mode="distance", seam_max="q50"))
        return pilot(*args)

    monkeypatch.setattr(opening, "run_pilot", overtaken)
    assert "pairs.mode=distance and pairs.seam_max=q50, as the buffer was begun" in notes_of(out, drift, bundle, AUTO)
    assert not read_meta(Storage(out)).pilot


def test_joins_and_checks_take_the_defaults(drift: EpisodeDataset) -> None:
    joins = JoinedSettings.of(AUTO, CONFIG, 0)
    assert (joins.stitch.pairs.mode, joins.stitch.pairs.seam_max) == ("imagine", None)  # which needs no future
    assert JoinedSettings.of(asked(seam_max=0.5), CONFIG, 0) == JoinedSettings.of(asked(), CONFIG, 0)
    config = RunConfig(dataset="drift", grid=(GridCell(algo="dt", data="stitched"),), stitch=AUTO)
    assert config.for_dataset(drift).stitch.pairs.needs_pilot  # a run's settings stay as they were asked


def test_the_report_shows_every_way() -> None:
    assert shown([]) == ""
    best = PilotResult(
        mode="distance", seam_max="q95", tried=256, stitched=200, accepted=150, believed=100, gain=7.25, worth=2.5,
        seconds=1.0,
    )  # fmt: skip
    page = shown([best, replace(best, mode="random", seam_max=None, believed=0, gain=None, worth=0.0)])
    assert page.index("distance") < page.index("random")
    assert "7.25" in page
    assert "held true" in page
    assert "off" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "random", "seam_max": 0.5}, r"seam_max=0.5 needs a state in which the source is expected"),
        ({"seam_max": -1}, r"seam_max must be >= 0, got seam_max=-1"),
        ({"seam_max": float("inf")}, r"seam_max must be finite, got seam_max=inf; off takes any distance"),
        ({"seam_max": "nearby"}, r"seam_max='nearby': use a number >= 0, a quantile such as q99, auto, or off"),
    ],
)
def test_wrong_settings_say_what_to_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairConfig(**settings)
    assert PairConfig(seam_max="off") == PairConfig()
