"""How often two distributions agree under coupled sampling, exactly and as a training loss.

Both sides take argmax of log-probability + the same Gumbel noise. They agree with probability

    M(p, q) = sum over v of 1 / (sum over w of max(p_w / p_v, q_w / q_v)),

between (1 - TV) / (1 + TV) and the optimal 1 - TV of rejection sampling, which must know q.
"""

from __future__ import annotations

import torch

_TINY = 1e-30


def match_rate(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """M(p, q) for each row of two (rows, vocabulary) tables of probabilities: (rows,).

    Sorted by p/q, the w before v contribute p_w / p_v and those after it q_w / q_v, so that the
    double sum needs one sort and two cumulative sums.
    """
    p = p.double()
    q = q.double()
    order = ((p + _TINY) / (q + _TINY)).argsort(dim=-1, descending=True)
    p = p.gather(-1, order)
    q = q.gather(-1, order)
    before = p.cumsum(-1)
    after = q.sum(-1, keepdim=True) - q.cumsum(-1)
    total = before / (p + _TINY) + after / (q + _TINY)
    return torch.where((p > 0) & (q > 0), 1.0 / total, 0.0).sum(-1)


def overlap(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """1 - TV(p, q) for each row: the acceptance rate of optimal rejection sampling."""
    return torch.minimum(p.double(), q.double()).sum(-1)


def match_loss(
    teacher_logits: torch.Tensor, draft_logits: torch.Tensor, temperature: float, kept: int = 24
) -> torch.Tensor:
    """Mean of 1 - M at `temperature` over rows, differentiable in `draft_logits` (rows, vocab).

    Only the teacher's `kept` best tokens may agree; all others are one lump, which costs nothing
    in practice, as the rest has next to no mass.
    """
    log_p = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = torch.log_softmax(draft_logits.float() / temperature, dim=-1)
    top_p, ids = log_p.topk(kept, dim=-1)
    top_q = log_q.gather(-1, ids)
    rest_p = (1.0 - top_p.exp().sum(-1, keepdim=True)).clamp_min(1e-9)
    rest_q = (1.0 - top_q.exp().sum(-1, keepdim=True)).clamp_min(1e-9)
    all_p = torch.cat([top_p, rest_p.log()], dim=-1)
    all_q = torch.cat([top_q, rest_q.log()], dim=-1)
    ratio_p = all_p[:, None, :] - top_p[:, :, None]
    ratio_q = all_q[:, None, :] - top_q[:, :, None]
    total = torch.maximum(ratio_p, ratio_q).clamp_max(40.0).exp().sum(-1)
    return 1.0 - (1.0 / total).sum(-1).mean()
