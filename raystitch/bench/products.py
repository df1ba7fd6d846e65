"""The matrix products without which no step of an algorithm is possible, and work that times each of them.

Only gradients from which something is learnt count: neither input gradients of first layers, nor weight gradients of
the critic in the actor's loss. Legend: B batch, H hidden units, O observation, A action, D width.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch

from raystitch.trainers.config import AlgorithmConfig, BCConfig, DTConfig, IQLConfig, TD3BCConfig


class Shape(NamedTuple):
    """The shape of ``batch`` products [rows, inner] @ [inner, columns]."""

    rows: int
    inner: int
    columns: int
    batch: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns

    @property
    def repeats(self) -> int:
        """The number of repetitions that takes some milliseconds, long enough for a clock."""
        return max(1, int(3e8 / self.flops))

    def work(self, dtype: torch.dtype) -> Callable[[], None]:
        """Return work that makes the products ``repeats`` times; results are [few, many], the faster way round."""
        rows, columns = sorted((self.rows, self.columns))
        left = torch.randn(self.batch, rows, self.inner).to(dtype)
        right = torch.randn(self.batch, self.inner, columns).to(dtype)
        result = torch.empty(self.batch, rows, columns, dtype=dtype)
        multiply = torch.mm if self.batch == 1 else torch.bmm
        if self.batch == 1:
            left, right, result = left[0], right[0], result[0]

        def work() -> None:
            for _ in range(self.repeats):
                multiply(left, right, out=result)

        return work


Products = Counter[Shape]
"""Shapes, and how often each is multiplied in ``STEPS`` steps."""
STEPS = 2
"""TD3+BC's actor learns every second step."""


def products_of(config: AlgorithmConfig, obs_dim: int, act_dim: int) -> Products:
    """Return the products of ``STEPS`` steps of one seed."""
    match config:
        case TD3BCConfig():
            return _td3bc(config, obs_dim, act_dim)
        case IQLConfig():
            return _iql(config, obs_dim, act_dim)
        case BCConfig():
            actor = _MLP(config, obs_dim, act_dim)
            return _times(STEPS, actor.forward() + actor.backward())
        case DTConfig():
            return _times(STEPS, _dt(config, obs_dim, act_dim))


def _times(count: int, products: Products) -> Products:
    return Counter({shape: number * count for shape, number in products.items()})


class _MLP:
    """The products of a network of ``num_layers`` hidden layers on B rows."""

    def __init__(self, config: TD3BCConfig | IQLConfig | BCConfig, inputs: int, outputs: int) -> None:
        self.rows, self.hidden, self.inner_layers = config.batch_size, config.hidden, config.num_layers - 1
        self.inputs, self.outputs = inputs, outputs

    def forward(self) -> Products:
        rows, hidden = self.rows, self.hidden
        inner = {Shape(rows, hidden, hidden): self.inner_layers}
        return Counter(inner) + Counter([Shape(rows, self.inputs, hidden), Shape(rows, hidden, self.outputs)])

    def backward(self, *, weights: bool = True, to_inputs: int = 0) -> Products:
        """Count gradients down to the first hidden layer, of the weights, and of the first ``to_inputs`` inputs."""
        rows, hidden = self.rows, self.hidden
        found = Counter({Shape(rows, hidden, hidden): self.inner_layers})
        if self.outputs > 1:  # With one output the gradient is scaled, not multiplied.
            found[Shape(rows, self.outputs, hidden)] += 1
        if weights:
            found += Counter({Shape(hidden, rows, hidden): self.inner_layers})
            found += Counter([Shape(self.inputs, rows, hidden), Shape(self.outputs, rows, hidden)])
        if to_inputs:
            found[Shape(to_inputs, hidden, rows)] += 1
        return found


def _td3bc(config: TD3BCConfig, obs_dim: int, act_dim: int) -> Products:
    actor, critic = _MLP(config, obs_dim, act_dim), _MLP(config, obs_dim + act_dim, 1)
    every_step = actor.forward() + _times(4, critic.forward()) + _times(2, critic.backward())
    delayed = actor.forward() + critic.forward() + critic.backward(weights=False, to_inputs=act_dim) + actor.backward()
    return _times(STEPS, every_step) + _times(STEPS // config.policy_delay, delayed)


def _iql(config: IQLConfig, obs_dim: int, act_dim: int) -> Products:
    actor, value, critic = (
        _MLP(config, obs_dim, act_dim),
        _MLP(config, obs_dim, 1),
        _MLP(config, obs_dim + act_dim, 1),
    )
    return _times(
        STEPS,
        _times(4, critic.forward())
        + _times(2, critic.backward())
        + _times(3, value.forward())
        + value.backward()
        + actor.forward()
        + actor.backward(),
    )


def _dt(config: DTConfig, obs_dim: int, act_dim: int) -> Products:
    """Count a step of DT: the last layer returns state tokens alone, with keys and values from all tokens."""
    width, heads, steps = config.width, config.num_heads, config.context
    tokens, windows = 3 * steps, config.batch_size
    forward: Products = Counter()
    for layer in range(config.num_layers):
        queries = steps if layer == config.num_layers - 1 else tokens
        rows = windows * queries
        head = width // heads
        forward += Counter(
            {
                Shape(windows * tokens, width, 2 * width): 1,
                Shape(queries, head, tokens, windows * heads): 1,
                Shape(queries, tokens, head, windows * heads): 1,
                Shape(rows, width, width): 2,
                Shape(rows, width, 4 * width): 1,
                Shape(rows, 4 * width, width): 1,
            }
        )
    forward[Shape(windows * steps, width, act_dim)] += 1
    backward: Products = Counter()
    for (rows, inner, columns, batch), number in forward.items():
        backward[Shape(rows, columns, inner, batch)] += number
        backward[Shape(inner, rows, columns, batch)] += number
    embedding: Products = Counter()
    for inputs in (1, obs_dim, act_dim):
        embedding[Shape(windows * steps, inputs, width)] += 1
        embedding[Shape(inputs, windows * steps, width)] += 1
    return forward + backward + embedding
