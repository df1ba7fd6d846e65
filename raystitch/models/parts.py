"""The modules being fitted and the losses that fit them.

Legend: B batch, H horizon, O observation size, M ensemble members, E episodes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.normalise import Normalizer
from raystitch.data.returns import discounted_returns
from raystitch.errors import UserError
from raystitch.models.batches import FitTransitions, StateWindows, recorded_stops
from raystitch.models.bundle import build_unet, return_quantiles
from raystitch.models.config import FitConfig, HeadConfig
from raystitch.models.diffusion import cosine_schedule, diffusion_loss, drop_returns, training_masks
from raystitch.models.heads import build_heads
from raystitch.models.loop import FitPart
from raystitch.models.scales import HeadScales
from raystitch.seeding import derive_seed

VALUE_ROUNDS = 8
VALUE_ROUNDS_SHARE = 0.6
MIN_DECAY = 0.01
TERMINAL_SHARE = 0.25


def constant_bootstrap(dataset: EpisodeDataset, gamma: float) -> Floats:
    """Return the value of time-outs before a value is fitted, float32 [E]; 0 for terminated episodes.

    It is the constant v that is the mean of the returns it bootstraps: v = mean(G_t + gamma^(T - t) v). Started from
    0 instead, a flexible V learns that the last states before a time-out are worth little, and stays there.
    """
    alive = ~dataset.terminated
    plain = discounted_returns(dataset.rewards, dataset.offsets, gamma)
    steps_left = dataset.offsets[1:][dataset.episode_of] - np.arange(dataset.num_transitions)
    weight = float((gamma**steps_left * alive[dataset.episode_of]).mean())
    return (alive * float(plain.mean()) / max(1 - weight, MIN_DECAY)).astype(np.float32)


class FitJob:
    """Untrained models of ``config``, and ``parts`` that train them on the episodes ``train``."""

    def __init__(self, dataset: EpisodeDataset, config: FitConfig, train: Ints, device: torch.device) -> None:
        self.dataset, self.config, self.device = dataset, config, device
        self.normalizer = Normalizer.fit(dataset.observations)
        self.first_bootstrap = constant_bootstrap(dataset, config.gamma)
        returns = discounted_returns(dataset.rewards, dataset.offsets, config.gamma, self.first_bootstrap)
        self.scales = HeadScales.measure(dataset, self.normalizer, returns)
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "heads"))
        self.heads = build_heads(config, self.scales, generator)
        for head in vars(self.heads).values():
            head.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "unet"))
            self.unet = build_unet(dataset.obs_dim, config).to(device)
        self.schedule = cosine_schedule(config.diffusion.num_diffusion_steps).to(device)
        encoded = torch.from_numpy(self.normalizer.encode(dataset.observations)).to(device)
        standard_returns = (returns - self.scales.value_mean) / self.scales.value_std
        self.return_quantiles = return_quantiles(standard_returns)
        self.windows = StateWindows.find(dataset, encoded, train, config.diffusion.gap_min + 2, standard_returns)
        if len(self.windows) == 0:
            raise UserError(
                f"{dataset.name}: no fitted episode has gap_min + 2 = {config.diffusion.gap_min + 2} states; "
                f"lower diffusion.gap_min or holdout_fraction={config.holdout_fraction}"
            )
        self.window_states = (self.windows.stops - self.windows.starts).cpu()
        self.data = FitTransitions.find(dataset, train, device)

    def parts(self) -> list[FitPart]:
        """The parts to train, in the order of ``PARTS``."""
        diffusion = self.config.diffusion
        value_state = {"bootstrap": torch.from_numpy(self.first_bootstrap).to(self.device)}
        losses: dict[str, Callable[[int, torch.Generator], Tensor]] = {
            "dynamics": self._dynamics_loss,
            "inverse": self._inverse_loss,
            "reward": self._reward_loss,
            "termination": self._termination_loss(),
            "value": self._value_loss(value_state),
            "embedding": self._embedding_loss,
        }
        parts = [
            FitPart(
                name="diffusion",
                module=self.unet,
                loss=self._diffusion_loss,
                train_steps=diffusion.train_steps,
                learning_rate=diffusion.learning_rate,
                ema_decay=diffusion.ema_decay,
            )
        ]
        for name, head in self.config.heads.items():
            parts.append(
                FitPart(
                    name=name,
                    module=getattr(self.heads, name),
                    loss=losses[name],
                    train_steps=head.train_steps if name != "termination" or self.scales.any_terminal else 0,
                    learning_rate=head.learning_rate,
                    state=value_state if name == "value" else {},
                )
            )
        return parts

    def _diffusion_loss(self, step: int, generator: torch.Generator) -> Tensor:
        config = self.config.diffusion
        rows_B = torch.randint(len(self.windows), (config.batch_size,), generator=generator)
        clean_BHO, valid_B = self.windows.gather(rows_B.to(self.device), config.horizon)
        known_B = self.window_states[rows_B].clamp(max=config.horizon)
        mask_BH = training_masks(config, known_B, generator).to(self.device)
        k_B = torch.randint(config.num_diffusion_steps, (config.batch_size,), generator=generator).to(self.device)
        noise_BHO = torch.randn(clean_BHO.shape, generator=generator).to(self.device)
        return_B = None
        if config.return_dropout is not None:
            assert self.windows.returns is not None
            return_B = drop_returns(self.windows.returns[rows_B], config.return_dropout, generator)
        return diffusion_loss(self.unet, self.schedule, config, clean_BHO, mask_BH, valid_B, k_B, noise_BHO, return_B)

    def _draw(self, config: HeadConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """obs, act, next_obs [M, B, ...] and the step index [M, B]."""
        position = self.data.draw(config.num_members, config.batch_size, generator)
        row, step = self.data.rows[position], self.data.steps[position]
        return self.data.observations[row], self.data.actions[step], self.data.observations[row + 1], step

    def _dynamics_loss(self, step: int, generator: torch.Generator) -> Tensor:
        obs, act, next_obs, _ = self._draw(self.config.dynamics, generator)
        return self.heads.dynamics.loss(obs, act, next_obs)

    def _inverse_loss(self, step: int, generator: torch.Generator) -> Tensor:
        obs, act, next_obs, _ = self._draw(self.config.inverse, generator)
        return self.heads.inverse.loss(obs, act, next_obs)

    def _reward_loss(self, step: int, generator: torch.Generator) -> Tensor:
        obs, act, next_obs, index = self._draw(self.config.reward, generator)
        return self.heads.reward.loss(obs, act, next_obs, self.data.rewards[index])

    def _embedding_loss(self, step: int, generator: torch.Generator) -> Tensor:
        """Pairs of one episode up to twice the longest bridge apart, as many steps as its record goes on."""
        size, reach = self.config.embedding.batch_size, 2 * (self.config.diffusion.gap_max + 1)
        position, other = self.data.draw(2, size, generator)
        row = self.data.rows[position]
        ahead = (self.data.stops[position] - 1 - row).clamp(max=reach)
        steps = 1 + (torch.rand(size, generator=generator).to(self.device) * ahead).long().minimum(ahead - 1)
        observations = self.data.observations
        others = observations[self.data.rows[other]]
        return self.heads.embedding.loss(observations[row], observations[row + steps], steps.float(), others, reach)

    def _termination_loss(self) -> Callable[[int, torch.Generator], Tensor]:
        """Terminal states are a small share of the data: a quarter of each batch is drawn from them."""
        terminal_rows = self.data.rows[self.data.terminal[self.data.steps] > 0]
        config = self.config.termination
        num_terminal = int(TERMINAL_SHARE * config.batch_size) if len(terminal_rows) else 0

        def loss(step: int, generator: torch.Generator) -> Tensor:
            _, _, next_obs, index = self._draw(config, generator)
            label = self.data.terminal[index]
            if num_terminal:
                drawn = torch.randint(len(terminal_rows), (config.num_members, num_terminal), generator=generator)
                next_obs[:, :num_terminal] = self.data.observations[terminal_rows[drawn.to(self.device)] + 1]
                label[:, :num_terminal] = 1.0
            return self.heads.termination.loss(next_obs, label)

        return loss

    def _value_loss(self, state: dict[str, Tensor]) -> Callable[[int, torch.Generator], Tensor]:
        """Regression on discounted returns; every round time-outs are bootstrapped by the value fitted so far.

        The rounds share the first part of the training; the learning rate falls on the last round's targets.
        """
        config, dataset = self.config.value, self.dataset
        round_steps = max(int(VALUE_ROUNDS_SHARE * config.train_steps) // VALUE_ROUNDS, 1)
        last_rows = torch.from_numpy(recorded_stops(dataset) - 1).to(self.device)
        alive = torch.from_numpy(~dataset.terminated).to(self.device)
        cache: dict[int, Tensor] = {}

        def targets(round_index: int) -> Tensor:
            if round_index not in cache:
                cache.clear()
                bootstrap: Floats = state["bootstrap"].cpu().numpy()
                returns = discounted_returns(dataset.rewards, dataset.offsets, self.config.gamma, bootstrap)
                cache[round_index] = torch.from_numpy(returns).to(self.device)
            return cache[round_index]

        def loss(step: int, generator: torch.Generator) -> Tensor:
            round_index = min(step // round_steps, VALUE_ROUNDS)
            if round_index and step == round_index * round_steps:
                with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                    state["bootstrap"] = self.heads.value(self.data.observations[last_rows]) * alive
            obs, _, _, index = self._draw(config, generator)
            return self.heads.value.loss(obs, targets(round_index)[index])

        return loss
