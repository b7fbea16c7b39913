"""LoRA-Pro: the pair of gradients whose joint move is nearest to the full gradient, and the matrix that is free."""

from __future__ import annotations

import torch
from products import IN, NONE, OUT, RANK, SCALE, draw, drawn_gradients, onto_columns, onto_rows
from torch import Tensor

from rankwise.papers.lora_pro import LoraPro, Settings, best_together, freedom


def test_the_equivalent_gradient_does_not_depend_on_the_free_matrix():
    a, b, down, up, g = drawn_gradients()
    columns = onto_columns(b)
    wanted = columns @ g + (torch.eye(OUT).double() - columns) @ g @ onto_rows(a)
    choices = [freedom(a, b, down, up, SCALE, NONE, kind) for kind in ("sylvester", "zero", "symmetric")]
    assert not torch.allclose(choices[0], choices[2])
    for x in (*choices, draw(RANK, RANK)):
        new_down, new_up = best_together(a, b, down, up, SCALE, NONE, x)
        torch.testing.assert_close(SCALE * (b @ new_down + new_up @ a), wanted, rtol=1e-6, atol=1e-9)
        assert (down * new_down).sum() + (up * new_up).sum() >= 0  # to first order the loss falls


def test_the_free_matrix_solves_its_equation_and_keeps_the_gradients_nearest():
    a, b, down, up, _ = drawn_gradients()
    x = freedom(a, b, down, up, SCALE, NONE, "sylvester")
    right = -torch.linalg.solve(b.T @ b, down @ a.T) / SCALE**2
    assert (b.T @ b @ x + x @ a @ a.T - right).abs().max() < 1e-9

    def distance(x: Tensor) -> float:
        new_down, new_up = best_together(a, b, down, up, SCALE, NONE, x)
        return float((new_down - down).square().sum() + (new_up - up).square().sum())

    assert all(distance(x) < distance(x + 1e-2 * draw(RANK, RANK).roll(i)) for i in range(4))


def test_it_starts_at_b_zero_without_harm():
    a, g = draw(RANK, IN), draw(OUT, IN)
    b = torch.zeros(OUT, RANK).double()
    down, up = LoraPro(Settings(), 0).joint(a, b, SCALE * b.T @ g, SCALE * g @ a.T, SCALE)
    assert not down.any()
    torch.testing.assert_close(SCALE * up @ a, g @ onto_rows(a), rtol=1e-6, atol=1e-9)


def test_the_dynamics_give_the_closed_form_of_their_settings():
    a, b, down, up, _ = drawn_gradients()
    for kind in ("sylvester", "zero", "symmetric"):
        x = freedom(a, b, down, up, SCALE, NONE, kind)
        found = LoraPro(Settings(free=kind, ridge=0.0), 0).joint(a, b, down, up, SCALE)
        for one, other in zip(found, best_together(a, b, down, up, SCALE, NONE, x), strict=True):
            torch.testing.assert_close(one, other)
