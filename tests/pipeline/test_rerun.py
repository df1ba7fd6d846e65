"""Repeats trials of a run folder that an earlier version wrote, or a stranger.

``data/config_with_sampler.yaml`` is the ``config.yaml`` of the last raystitch that called ``augment.proposer``
``augment.sampler``; DATASET stands for the dataset's file.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from raystitch.buffer.opening import open_buffer
from raystitch.cli import main
from raystitch.config import load_run_config, recorded_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.rerun import rerun
from raystitch.pipeline.trials.run_folder import write_config
from raystitch.pipeline.trials.trial import InputHashes, Trial
from tests.conftest import make_drift

OLD = Path(__file__).parent / "data" / "config_with_sampler.yaml"
INPUTS = InputHashes(dataset="sha256:d", bundle="sha256:b", buffer="sha256:u")


@pytest.fixture(scope="module")
def made(drift: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InputHashes]:
    """A run up to its trials, with the old ``config.yaml``, and the hashes of what it holds."""
    folder = tmp_path_factory.mktemp("made")
    run, data = folder / "run", folder / "drift.hdf5"
    write_d4rl(drift, data)
    run.mkdir()
    (run / "config.yaml").write_text(OLD.read_text().replace("DATASET", str(data)))
    config = recorded_run_config(run / "config.yaml")
    dataset = config.dataset_ref.load()
    bundle = fit_bundle(dataset, config.fit, run / "stitcher", "cpu")
    augment_local(dataset, bundle, config.stitch, config.augment, out=run / "buffer", seed=config.seed)
    hashes = InputHashes(dataset=dataset.fingerprint, bundle=bundle.hash, buffer=open_buffer(run / "buffer").hash)
    return run, hashes


@pytest.fixture
def run(made: tuple[Path, InputHashes], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "run"))


def trials_of(run: Path, inputs: InputHashes) -> list[Trial]:
    return plan(recorded_run_config(run / "config.yaml"), inputs, run)


def test_an_old_config_of_a_run_means_what_it_meant(tmp_path: Path) -> None:
    written = tmp_path / "config.yaml"
    assert "  sampler:\n    num_cpus: null\n" in OLD.read_text()
    written.write_text(OLD.read_text().replace("sampler:\n    num_cpus: null", "sampler:\n    num_cpus: 0.5"))
    config = recorded_run_config(written)
    assert config.augment.proposer.num_cpus == 0.5
    assert config.stitch.sampler.name == "ddim"
    # The ids that the version which wrote the file gave these trials.
    assert [trial.trial_id for trial in plan(config, INPUTS)] == ["a3ada9dcd482bfb8", "3a576ed0b92830cb"]


def test_the_old_name_in_a_file_or_option_of_a_user_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"config\.yaml:135: augment\.sampler: was renamed; write augment\.proposer"):
        load_run_config(run / "config.yaml")
    out = ("--out", str(tmp_path / "new"), "--dry-run")
    assert main(["sweep", str(run / "config.yaml"), *out]) == 2
    assert "augment.sampler: was renamed" in capsys.readouterr().err
    assert main(["sweep", "smoke", "--set", "augment.sampler.num_cpus=1", *out]) == 2
    assert "augment.sampler: was renamed" in capsys.readouterr().err


def test_both_names_in_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(OLD.read_text().replace("  max_retries: 2\n", "  max_retries: 2\n  proposer: {num_cpus: 1}\n"))
    with pytest.raises(UserError, match=r"augment\.sampler: was renamed"):
        recorded_run_config(path)


def test_a_key_that_is_no_name_is_refused_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{OLD.read_text()}1: 2\n")
    with pytest.raises(UserError, match="1: keys should be strings, got 1"):
        recorded_run_config(path)


def test_a_run_with_an_old_config_is_repeated(run: Path, made: tuple[Path, InputHashes]) -> None:
    joined = trials_of(run, made[1])[1]
    assert joined.data == "joined"
    first = rerun(run, joined.trial_id[:8])
    assert first.trial == joined
    assert first.stored is None and first.folder == run / "reruns" / joined.trial_id
    assert rerun(run, joined.trial_id).repeated["evaluations"] == first.repeated["evaluations"]


def test_trials_of_an_old_config_in_earlier_are_found(run: Path, made: tuple[Path, InputHashes]) -> None:
    before = trials_of(run, made[1])
    write_config(replace(recorded_run_config(run / "config.yaml"), seeds=(5,)), run)
    assert len(list((run / "earlier").iterdir())) == 1
    assert before[0].trial_id not in {trial.trial_id for trial in trials_of(run, made[1])}
    assert rerun(run, before[0].trial_id).trial == before[0]


def test_the_dataset_of_an_earlier_config_is_not_downloaded(
    run: Path, made: tuple[Path, InputHashes], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = recorded_run_config(run / "config.yaml")
    planted = replace(ours, dataset="minari:planted/elsewhere-v0", seeds=(7,))
    (run / "earlier").mkdir()
    (run / "earlier" / "config-0123456789ab.yaml").write_text(planted.to_yaml())
    for trial in plan(planted, made[1], run):
        with pytest.raises(UserError, match=r"minari:planted/elsewhere-v0 is not in .*is not downloaded"):
            rerun(run, trial.trial_id)
        assert main(["sweep", "--rerun", trial.trial_id, "--out", str(run)]) == 2
        assert "not downloaded" in capsys.readouterr().err


def test_a_dataset_is_read_anew_in_every_rerun(run: Path, made: tuple[Path, InputHashes]) -> None:
    """A process that goes on, such as a notebook, does not take the file that was there before for the one there is."""
    original = trials_of(run, made[1])[0]
    data = run.parent / "own.hdf5"
    shutil.copyfile(made[0].parent / "drift.hdf5", data)
    text = (run / "config.yaml").read_text().replace(str(made[0].parent / "drift.hdf5"), str(data))
    (run / "config.yaml").write_text(text)
    rerun(run, original.trial_id)
    write_d4rl(make_drift(seed=1), data)
    with pytest.raises(UserError, match="holds other trajectories"):
        rerun(run, original.trial_id)
