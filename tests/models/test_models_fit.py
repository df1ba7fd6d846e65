from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.select import holdout_split
from raystitch.errors import DamagedError, RunError, UserError
from raystitch.models.bundle import PARTS, Bundle
from raystitch.models.calibration import NOISE
from raystitch.models.config import DiffusionConfig, FitConfig, HeadConfig
from raystitch.models.fit import existing_fit, fit_bundle, load_once
from raystitch.models.loop import FitProgress, train_part
from raystitch.models.parts import FitJob
from raystitch.models.samplers import ddim, seeded_noise
from raystitch.pipeline.validate.windows import inverse_actions, judged_residuals, perturbed, real_windows
from raystitch.seeding import derive_seed

MakeConfig = Callable[..., FitConfig]


class Stop(Exception):
    pass


def stop_at(part: str, step: int) -> Callable[[FitProgress], None]:
    def progress(report: FitProgress) -> None:
        if (report.part, report.step) == (part, step):
            raise Stop

    return progress


def test_interrupted_and_resumed_equals_uninterrupted(
    dataset: EpisodeDataset, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(60)
    straight = fit_bundle(dataset, config, tmp_path / "straight", device="cpu")
    for part, step in (("diffusion", 40), ("dynamics", 60), ("value", 40)):
        with pytest.raises(Stop):
            fit_bundle(dataset, config, tmp_path / "b", "cpu", stop_at(part, step), checkpoint_every=25)
        assert not (tmp_path / "b" / "stitcher.json").exists()
    torch.manual_seed(123)  # the global generator has no say
    resumed = fit_bundle(dataset, config, tmp_path / "b", device="cpu", checkpoint_every=25)
    assert resumed.hash == straight.hash
    assert not (tmp_path / "b" / ".fit").exists()


def test_progress_covers_every_part_and_a_finished_folder_is_only_loaded(
    dataset: EpisodeDataset, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    reports: list[FitProgress] = []
    config = tiny_config(25)
    bundle = fit_bundle(dataset, config, tmp_path, "cpu", reports.append)
    assert list(dict.fromkeys(report.part for report in reports)) == list(PARTS)
    assert all(0 < report.step <= report.total_steps == 25 and report.seconds_left >= 0 for report in reports)
    reports.clear()
    assert fit_bundle(dataset, config, tmp_path, "cpu", reports.append).hash == bundle.hash
    assert not reports
    with pytest.raises(UserError, match=r"gamma \(there 0.99, asked 0.9\)"):
        fit_bundle(dataset, replace(config, gamma=0.9), tmp_path, "cpu")
    with pytest.raises(UserError, match="dataset"):
        fit_bundle(dataset.subset(np.arange(20)), config, tmp_path, "cpu")


def test_an_unfinished_folder_of_other_settings_is_refused(
    dataset: EpisodeDataset, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        fit_bundle(dataset, tiny_config(40), tmp_path, "cpu", stop_at("diffusion", 20))
    with pytest.raises(UserError, match=r"diffusion\.train_steps"):
        fit_bundle(dataset, tiny_config(60), tmp_path, "cpu")


def test_a_folder_of_the_same_file_with_other_action_bounds_is_refused(
    dataset: EpisodeDataset, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    """Actions are scaled by the bounds, which ``--env`` may replace; half of the parts must not be scaled otherwise."""
    wider = replace(dataset, action_low=3 * dataset.action_low, action_high=3 * dataset.action_high)
    with pytest.raises(Stop):
        fit_bundle(dataset, tiny_config(40), tmp_path, "cpu", stop_at("inverse", 20))
    with pytest.raises(UserError, match=r"other settings: action_high .*, action_low"):
        fit_bundle(wider, tiny_config(40), tmp_path, "cpu")
    fit_bundle(dataset, tiny_config(40), tmp_path, "cpu")
    with pytest.raises(UserError, match=r"other settings: action_high .*, action_low"):
        fit_bundle(wider, tiny_config(40), tmp_path, "cpu")


def test_bad_input_is_named(dataset: EpisodeDataset, tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(20)
    long = replace(config, diffusion=DiffusionConfig(horizon=64, width=8, multipliers=(1, 2)))
    with pytest.raises(UserError, match=r"horizon=64 is longer than every episode"):
        fit_bundle(dataset, long, None)
    with pytest.raises(UserError, match="1 episode"):
        fit_bundle(dataset.subset(np.array([int(dataset.lengths.argmax())])), config, None)
    broken = replace(dataset, rewards=np.where(np.arange(dataset.num_transitions) == 5, np.nan, dataset.rewards))
    with pytest.raises(UserError, match="rewards holds NaN"):
        fit_bundle(broken, config, None)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot write"):
        fit_bundle(dataset, config, blocked / "bundle")


def test_a_diverging_loss_names_part_and_step(dataset: EpisodeDataset, tiny_config: MakeConfig) -> None:
    config = tiny_config(40)
    wild = replace(config, dynamics=replace(config.dynamics, learning_rate=1e30))
    with pytest.raises(RunError, match="dynamics is nan at step 20"):
        fit_bundle(dataset, wild, None, device="cpu")


def test_unobserved_final_states_are_never_used(dataset: EpisodeDataset, tiny_config: MakeConfig) -> None:
    observations = dataset.observations.copy()
    observations[dataset.obs_offsets[1:] - 1] = 1e30
    spoiled = replace(dataset, observations=observations, final_observed=np.zeros(dataset.num_episodes, np.bool_))
    clean = replace(spoiled, observations=dataset.observations)
    # Only the normaliser may differ here: loaders repeat the last known row, so give it finite statistics.
    observations[dataset.obs_offsets[1:] - 1] = observations[dataset.obs_offsets[1:] - 2]
    config = tiny_config(30)
    fitted = [fit_bundle(replace(d, observations=observations), config, None, device="cpu") for d in (spoiled, clean)]
    assert fitted[0].hash == fitted[1].hash


def test_few_steps_fill_a_window_with_true_dynamics(bundle: Bundle, dataset: EpisodeDataset) -> None:
    """Filling the middle of real windows: five steps give far truer transitions than a jump or states of others."""
    states = np.stack([dataset.episode(int(e)).observations[:14] for e in np.flatnonzero(dataset.lengths >= 14)])
    window = torch.zeros(len(states), 16, 4)
    window[:, :14] = bundle.standardizer.encode(torch.from_numpy(states))
    mask = torch.zeros(len(states), 16)
    mask[:, :4] = mask[:, 9:14] = 1
    noise = seeded_noise(np.arange(len(states)), (16, 4), torch.device("cpu"))
    filled = ddim(bundle.denoiser(precision="float32", compile="off"), window, mask, noise, bundle.schedule, 5, 1.0)

    def largest_residual(windows: torch.Tensor) -> float:
        raw = bundle.standardizer.decode(windows)[:, 3:10]
        actions = bundle.inverse(raw[:, :-1], raw[:, 1:])
        return bundle.dynamics.residual(raw[:, :-1], actions, raw[:, 1:], "judges").amax(1).median().item()

    jump, others = window.clone(), window.clone()
    jump[:, 4:9] = window[:, 3:4]
    others[:, 4:9] = window[:, 4:9].roll(1, 0)
    assert torch.equal(filled[mask > 0.5], window[mask > 0.5])
    assert largest_residual(filled) < 0.1 * min(largest_residual(jump), largest_residual(others))


def test_a_bundle_is_read_once_per_process_until_its_files_change(
    dataset: EpisodeDataset, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    saved = fit_bundle(dataset, tiny_config(20), tmp_path, "cpu")
    first = load_once(tmp_path, "cpu")
    assert first.hash == saved.hash
    assert load_once(tmp_path, "cpu") is first
    assert existing_fit(tmp_path, dataset, tiny_config(20), "cpu") is first
    weights = tmp_path / "value.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"value\.safetensors"):
        load_once(tmp_path, "cpu")
    weights.write_bytes(whole)
    assert load_once(tmp_path, "cpu").hash == saved.hash


def test_the_calibration_measures_real_windows_as_recorded_and_with_noise(
    dataset: EpisodeDataset, bundle: Bundle
) -> None:
    seed = derive_seed(bundle.config.seed, "holdout")
    _, held_out = holdout_split(dataset.num_episodes, bundle.config.holdout_fraction, seed)
    rng = np.random.default_rng(0)
    for gap in (2, 6):
        windows = real_windows(dataset, held_out, np.full(2000, gap), rng)
        for name, treated in (
            ("recorded", windows),
            ("noise", perturbed(windows, bundle.normalizer, NOISE, rng)),
            ("residual", inverse_actions(windows, bundle)),
        ):
            found = np.median(windows.largest(judged_residuals(treated, bundle)))
            assert bundle.calibration._at(0.5, name)[gap - 2] == pytest.approx(found, rel=0.25), (name, gap)
    # Nothing else has changed with these: older tables are what they were.
    assert set(bundle.calibration.tables) >= {"residual", "spread", "rollout", "proposers", "residual_sum"}


def test_the_dynamics_learn_more_at_their_own_rate(dataset: EpisodeDataset) -> None:
    """docs/engine.md has the measurement on bodies with contacts."""
    rate = FitConfig().dynamics.learning_rate
    assert rate > HeadConfig().learning_rate
    head = HeadConfig(num_members=2, hidden=64, num_layers=2, train_steps=300, batch_size=64)
    config = FitConfig(
        dynamics=head,
        num_judges=1,
        diffusion=DiffusionConfig(horizon=16, width=8, multipliers=(1,), gap_min=2, gap_max=8),
    )
    train, held_out = holdout_split(dataset.num_episodes, 0.2, 0)
    rows = np.concatenate([np.arange(*dataset.offsets[episode : episode + 2]) for episode in held_out])
    at = dataset.obs_index[rows]
    obs, next_obs = torch.from_numpy(dataset.observations[at]), torch.from_numpy(dataset.observations[at + 1])
    errors: list[float] = []
    for learning_rate in (head.learning_rate, rate):
        job = FitJob(
            dataset, replace(config, dynamics=replace(head, learning_rate=learning_rate)), train, torch.device("cpu")
        )
        part = next(part for part in job.parts() if part.name == "dynamics")
        train_part(part, seed=0, checkpoint=None, checkpoint_every=1000, progress=None)
        act = torch.from_numpy(dataset.actions[rows])
        errors.append(float(job.heads.dynamics.residual(obs, act, next_obs, "all").median()))
    print(errors)
    assert errors[1] < 0.8 * errors[0]
