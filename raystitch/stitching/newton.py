"""One damped Gauss-Newton step towards windows that the dynamics model believes.

Minimises ``sum_t ||s_{t+1} - f(s_t, a_t)||^2`` over the unknown states and the actions together. The actions are
eliminated (what an action could still explain costs nothing), which leaves a block tridiagonal system over the states
of a window: one block per state, solved for all windows of a batch at once.
Legend: B rows, G most unknown states in a row, V steps that touch an unknown state, F unknown states, O observation
size, A action size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ACTION_DAMPING = 0.01


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a batch of windows whose unknown states are one run each.

    All that takes a look at values is computed once: on a GPU every look waits for the device.

    Attributes:
        row_V, position_V: int64; step v leads from ``position_V[v]`` of window ``row_V[v]`` to the next position.
        place_V: int64, the step's place in its window: 0 leads to the first unknown state.
        unknown_B: int64, unknown states in each window; ``longest`` is G.
        row_F, position_F, place_F: int64, window, position and place (0 is the first) of every unknown state.
    """

    row_V: Tensor
    position_V: Tensor
    place_V: Tensor
    unknown_B: Tensor
    longest: int
    row_F: Tensor
    position_F: Tensor
    place_F: Tensor

    @classmethod
    def of(cls, free_BH: Tensor, wanted_BH: Tensor) -> "Steps":
        """All steps into or out of a free position, both ends wanted; bool [B, H] each."""
        step_BH = (free_BH[:, 1:] | free_BH[:, :-1]) & wanted_BH[:, 1:] & wanted_BH[:, :-1]
        row_V, position_V = step_BH.nonzero(as_tuple=True)
        first_B = step_BH.to(torch.uint8).argmax(1)
        unknown_B = free_BH.sum(1)
        row_F, position_F = free_BH.nonzero(as_tuple=True)
        return cls(
            row_V=row_V,
            position_V=position_V,
            place_V=position_V - first_B[row_V],
            unknown_B=unknown_B,
            longest=int(unknown_B.max()) if len(unknown_B) else 0,
            row_F=row_F,
            position_F=position_F,
            place_F=(free_BH.cumsum(1) - 1)[row_F, position_F],
        )


def newton_step(
    residual_VO: Tensor, by_state_VOO: Tensor, by_action_VOA: Tensor, steps: Steps, damping: float
) -> Tensor:
    """Return the moves of the unknown states, [B, G, O]; 0 past the unknown states of a window.

    Args:
        residual_VO: s_{t+1} - f(s_t, a_t), standardised; 0 in dimensions that do not count.
        by_state_VOO, by_action_VOA: derivatives of f; 0 in those dimensions, and for actions that cannot move.
        damping: added to the diagonal; larger ones make smaller, safer steps (Levenberg-Marquardt).
    """
    size, count = residual_VO.shape[-1], len(steps.unknown_B)
    longest = steps.longest
    eye = torch.eye(size, device=residual_VO.device)
    gram = by_action_VOA.mT @ by_action_VOA
    gram = gram + ACTION_DAMPING * torch.eye(gram.shape[-1], device=gram.device)
    unexplained = eye - by_action_VOA @ torch.linalg.solve_ex(gram, by_action_VOA.mT)[0]
    weighted_by_state = unexplained @ by_state_VOO
    weighted = (unexplained @ residual_VO.unsqueeze(-1)).squeeze(-1)

    # Slot j + 1 holds unknown state j; the slots at both ends collect what falls on known states.
    diagonal = residual_VO.new_zeros(count, longest + 2, size, size)
    right = residual_VO.new_zeros(count, longest + 2, size)
    below = residual_VO.new_zeros(count, longest + 2, size, size)
    row, place = steps.row_V, steps.place_V
    diagonal[row, place + 1] = unexplained
    right[row, place + 1] = -weighted
    diagonal[row, place] += by_state_VOO.mT @ weighted_by_state
    right[row, place] += (by_state_VOO.mT @ weighted.unsqueeze(-1)).squeeze(-1)
    below[row, place] = -weighted_by_state

    slot = torch.arange(longest + 2, device=row.device)
    is_free = ((slot >= 1) & (slot <= steps.unknown_B[:, None]))[..., None]
    right = right * is_free
    diagonal = torch.where(is_free[..., None], diagonal, 0.0) + eye * damping + eye * ~is_free[..., None]
    joins = (is_free[:, :-1] & is_free[:, 1:])[..., None]
    below = torch.where(joins, below[:, :-1], 0.0)
    return _solve(diagonal[:, 1:-1], below[:, 1:-1], right[:, 1:-1])


def _solve(diagonal: Tensor, below: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric block tridiagonal systems, [B, G, O].

    Args:
        diagonal: [B, G, O, O]. below: [B, G - 1, O, O], block (t + 1, t). right: [B, G, O].

    A row with values that are not finite comes out not finite and affects no other row.
    """
    size, length = right.shape[-1], right.shape[1]
    eliminated: list[Tensor] = []
    block, side = diagonal[:, :1].squeeze(1), right[:, :1].squeeze(1)
    for t in range(length):
        sides = [side.unsqueeze(-1)] if t == length - 1 else [below[:, t].mT, side.unsqueeze(-1)]
        factor = torch.linalg.cholesky_ex(block)[0]
        eliminated.append(torch.cholesky_solve(torch.cat(sides, -1), factor))
        if t < length - 1:
            update = below[:, t] @ eliminated[t]
            block = diagonal[:, t + 1] - update[..., :size]
            side = right[:, t + 1] - update[..., size]
    moves: list[Tensor] = []
    for t in reversed(range(length)):
        solved = eliminated[t][..., -1]
        if moves:
            solved = solved - (eliminated[t][..., :size] @ moves[-1].unsqueeze(-1)).squeeze(-1)
        moves.append(solved)
    return torch.stack(moves[::-1], 1) if moves else right
