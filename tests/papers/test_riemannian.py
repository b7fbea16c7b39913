"""Riemannian preconditioning: both factors move by projections of the full gradient, and a cross-term remains."""

from __future__ import annotations

import torch
from products import OUT, RANK, SCALE, draw, drawn_gradients, onto_columns, onto_rows

from rankwise.papers.riemannian import Riemannian, Settings


def test_the_gradients_move_the_product_by_both_projections():
    a, b, down, up, g = drawn_gradients()
    part = Riemannian(Settings(ridge=0.0, inverse_scale=True), 0)
    new_down, new_up = part.joint(a, b, down, up, SCALE)
    torch.testing.assert_close(SCALE * b @ new_down, onto_columns(b) @ g)
    torch.testing.assert_close(SCALE * new_up @ a, g @ onto_rows(a))
    raw, _ = Riemannian(Settings(ridge=0.0), 0).joint(a, b, down, up, SCALE)
    torch.testing.assert_close(raw, new_down * SCALE**2)


def test_a_joint_step_is_the_two_projections_and_their_cross_term():
    a, b, down, up, g = drawn_gradients()
    part, rate = Riemannian(Settings(ridge=0.0, inverse_scale=True), 0), 0.1
    new_down, new_up = part.joint(a, b, down, up, SCALE)
    moved = SCALE * (b - rate * new_up) @ (a - rate * new_down) - SCALE * b @ a
    cross = g @ a.T @ torch.linalg.inv(a @ a.T) @ torch.linalg.inv(b.T @ b) @ b.T @ g / SCALE
    wanted = -rate * (onto_columns(b) @ g + g @ onto_rows(a)) + rate**2 * cross
    torch.testing.assert_close(moved, wanted, rtol=1e-9, atol=1e-9)
    assert cross.norm() > 0.1 * g.norm()


def test_the_ridge_keeps_the_solves_finite_while_b_is_zero():
    a, b, g = draw(RANK, RANK + 2), torch.zeros(OUT, RANK).double(), draw(OUT, RANK + 2)
    down, up = Riemannian(Settings(), 0).joint(a, b, b.T @ g, g @ a.T, 1.0)
    assert not down.any() and up.isfinite().all()
    torch.testing.assert_close(up @ a, g @ onto_rows(a), rtol=1e-3, atol=1e-4)
