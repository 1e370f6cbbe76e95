"""The closed form of the coupled match rate agrees with sampling."""

from __future__ import annotations

import torch

from reference.matching import match_loss, match_rate, overlap
from reference.sampling import coupled_draw, gumbel


def test_match_rate_is_the_sampled_rate() -> None:
    generator = torch.Generator().manual_seed(5)
    left, right = torch.randn(2, 1, 40, generator=generator) * 2.0
    p, q = left.softmax(-1), (0.7 * left + 0.5 * right).softmax(-1)
    rate = float(match_rate(p, q))
    noise = gumbel((40_000, 40), generator)
    first = coupled_draw(p.log().expand_as(noise), noise, 1.0)
    second = coupled_draw(q.log().expand_as(noise), noise, 1.0)
    assert abs(float((first == second).double().mean()) - rate) < 0.012
    best = float(overlap(p, q))
    assert best / (2.0 - best) <= rate <= best


def test_equal_and_disjoint() -> None:
    p = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    q = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    torch.testing.assert_close(match_rate(p, p), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(match_rate(p, q), torch.zeros(1, dtype=torch.float64))


def test_loss_is_one_minus_the_rate() -> None:
    generator = torch.Generator().manual_seed(2)
    teacher = torch.randn(16, 50, generator=generator) * 4.0
    draft = (teacher + torch.randn(16, 50, generator=generator)).requires_grad_()
    loss = match_loss(teacher, draft, 0.8, kept=48)
    exact = 1.0 - match_rate((teacher / 0.8).softmax(-1), (draft / 0.8).softmax(-1)).mean()
    torch.testing.assert_close(loss.double(), exact, atol=1e-3, rtol=0.0)
    torch.autograd.backward(loss)
    assert draft.grad is not None
    assert torch.isfinite(draft.grad).all()


def test_greedy_draw_ignores_noise() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert coupled_draw(logits, torch.tensor([[9.0, 0.0, 0.0]]), 0.0).item() == 1
