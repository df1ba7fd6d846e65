"""The Python of the documentation runs and prints what it says; what it adds passes the contract tests."""

import doctest
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import raystitch as rs
from raystitch.data.select import EPISODE_SELECTORS
from raystitch.models.samplers import SAMPLERS
from raystitch.shaping.returns import RETURNS
from raystitch.shaping.rewards import REWARDS
from raystitch.shaping.weights import WEIGHTS
from raystitch.stitching.gap import GAPS
from raystitch.stitching.selectors import SELECTORS
from tests.contract import test_shaping
from tests.data import test_ref
from tests.docs.pages import ROOT, run_python
from tests.models import test_models_denoise, test_models_samplers
from tests.stitching import test_pairs
from tests.stitching.conftest import make_world

SUFFIXES = {".py", ".md", ".yaml", ".json", ".js", ".html", ".toml"}
REGISTERED = (
    (SAMPLERS, "ddim_half"),
    (SELECTORS, "richest"),
    (GAPS, "halfway"),
    (WEIGHTS, "better_half"),
    (REWARDS, "doubted"),
    (RETURNS, "discounted"),
    (EPISODE_SELECTORS, "richer_half"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_session_of_the_api_page(folder: Path) -> None:
    assert run_python(ROOT / "docs/api.md", {}) == 8


@pytest.fixture
def extended(folder: Path, monkeypatch: pytest.MonkeyPatch, drift: rs.EpisodeDataset, tiny_fit: rs.FitConfig) -> int:
    """docs/extending.md has been run; what it registers is taken back at the end."""
    for registry, name in REGISTERED:
        entries: Any = registry
        monkeypatch.setitem(entries, name, None)
    return run_python(ROOT / "docs/extending.md", {"dataset": drift, "bundle": rs.fit(drift, tiny_fit, device="cpu")})


def test_what_the_page_on_extending_adds_keeps_the_contracts(
    extended: int, drift: rs.EpisodeDataset, tiny_fit: rs.FitConfig
) -> None:
    assert extended == 4
    test_models_samplers.test_results_do_not_depend_on_batch_mates("ddim_half")
    test_models_samplers.test_refine_sees_every_step_and_what_it_returns_is_used("ddim_half")
    test_models_samplers.test_a_start_with_little_noise_stays_near_it("ddim_half")
    test_models_denoise.test_bf16_rows_do_not_depend_on_batch_mates_or_threads("ddim_half")
    world = make_world()
    bundle = rs.fit(world, tiny_fit, device="cpu")
    for split in ("value", "return"):
        test_pairs.test_contract_of_every_selector("richest", split, world, bundle)
        test_pairs.test_a_row_depends_on_its_seed_alone("richest", split, world, bundle)
    test_shaping.test_contract_of_every_weighting("better_half")
    test_shaping.test_contract_of_every_rule_for_rewards("doubted")
    test_shaping.test_contract_of_every_rule_for_returns("discounted")
    test_ref.test_every_selector_keeps_some_episodes_in_order_and_is_a_function_of_the_data("richer_half", drift)


def test_files_that_the_page_on_extending_names_exist() -> None:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests/)?\w+/[\w/]+\.py)`", text))
    assert len(named) > 8
    missing = [name for name in named if not ((ROOT / "raystitch" / name).is_file() or (ROOT / name).is_file())]
    assert missing == []


def test_the_file_of_the_page_on_data_is_read_as_it_says(folder: Path) -> None:
    run_python(ROOT / "docs/data.md", {})
    dataset = rs.load_dataset("mine.hdf5")
    assert (dataset.num_episodes, dataset.lengths.tolist(), dataset.obs_dim, dataset.act_dim) == (20, [50] * 20, 4, 2)
    assert dataset.final_observed.all()
    assert dataset.env is None
    converted = rs.load_dataset("converted.hdf5")
    assert (converted.lengths.tolist(), converted.obs_dim, converted.act_dim) == ([40] * 5, 3, 2)
    assert converted.truncated.all()


def test_the_version_is_in_one_place() -> None:
    """pyproject.toml has it; the changelog names it in a heading, and nothing else repeats it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert rs.__version__ == project
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == project
    word = re.compile(rf"(?<![\d.]){re.escape(project)}(?![\d.])")
    files = [ROOT / "README.md", ROOT / "Makefile"]
    for folder in ("raystitch", "deploy", "docs", "tune_configs"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES or path.name == "Dockerfile"]
    assert len(files) > 150
    assert [str(path) for path in files if word.search(path.read_text(encoding="utf-8"))] == []


def test_the_examples_of_the_public_names(folder: Path) -> None:
    """They go on with the session of docs/api.md."""
    session: dict[str, Any] = {}
    run_python(ROOT / "docs/data.md", {})
    run_python(ROOT / "docs/api.md", session)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    public = {name: getattr(rs, name) for name in rs.__all__ if name != "__version__"}
    public |= {f"plot.{name}": getattr(rs.plot, name) for name in rs.plot.__all__}
    for name, value in public.items():
        (test,) = finder.find(value, name, globs=dict(session))
        assert test.examples, f"{name} has no example"
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
