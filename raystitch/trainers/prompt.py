"""The return to ask a Decision Transformer for, learnt instead of chosen: the largest one that the data promise here.

V_tau(s) is the expectile of the returns-to-go seen at s, tau close to 1 (Reinformer, Zhuang et al. 2024, arXiv
2405.08740, Eq. 6). There it is a token that the transformer predicts; here it is a small network of its own, so that
the transformer stays as it is and the same one can be asked for fixed returns too.

Legend: S seeds, B batch, K time steps, O observation size.
"""

from typing import Any

from torch import Tensor, nn

from raystitch.trainers.batches import WindowBatch
from raystitch.trainers.dt_model import DecisionTransformer
from raystitch.trainers.mlp import StackedMLP
from raystitch.trainers.stacked import ActingNetwork
from raystitch.trainers.value import expectile_loss

HIDDEN, LAYERS = 128, 2
LEARNING_RATE = 1e-3
"""At its peak; it rises and falls with the transformer's."""


class ReturnPrompt(nn.Module):
    """V_tau: standardised observations [S, .., O] to returns-to-go in units of ``rtg_scale``, [S, ..]."""

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.net = StackedMLP(obs_dim, 1, HIDDEN, LAYERS)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs.flatten(1, -2)).view(obs.shape[:-1])


class PromptedTransformer(ActingNetwork):
    """A Decision Transformer and the network that says what to ask it for."""

    def __init__(self, model: DecisionTransformer, prompt: ReturnPrompt, mode: str) -> None:
        super().__init__()
        self.model, self.prompt = model, prompt
        self.arguments = {**model.arguments, "prompt": mode}


def build_transformer(*, prompt: str | None = None, **arguments: Any) -> ActingNetwork:
    """Build the network of a policy from its arguments.

    Args:
        prompt: ``max`` or ``both`` of ``DTConfig.prompt``; None for a transformer alone.
    """
    model = DecisionTransformer(**arguments)
    return model if prompt is None else PromptedTransformer(model, ReturnPrompt(arguments["obs_dim"]), prompt)


def prompt_loss(prompt: ReturnPrompt, batch: WindowBatch, expectile: float) -> Tensor:
    """Return the mean of |tau - 1[u < 0]| u^2 with u = (R - V_tau(s)) / mean |R| over the valid steps, [S]."""
    count = batch.valid.sum((1, 2))
    unit = ((batch.rtg.abs() * batch.valid).sum((1, 2)) / count).clamp(min=1e-6)
    error = (batch.rtg - prompt(batch.obs)) / unit[:, None, None]
    return (expectile_loss(error, expectile) * batch.valid).sum((1, 2)) / count
