"""Edits in sequence with the keys of earlier ones held: closed forms, what earlier keys read out, and joint edits."""

import inspect

import oracles
import pytest
import torch
from edit_requests import ask, relative

import loc_edit
from loc_edit import AlphaEditSettings, MemitSettings
from loc_edit.editing.memit import held_left_factor, joint_factors
from loc_edit.editing.stack import EditStack

LAYER, WEIGHT = 2, 3.0


def random_problem(model, n):
    draws = torch.Generator().manual_seed(n)
    keys = torch.randn(n, model.cfg.d_mlp, generator=draws)
    return keys, torch.randn(n, model.cfg.d_model, generator=draws)


@pytest.mark.parametrize("n_earlier", [1, 4])
def test_the_left_factor_solves_the_normal_equations_with_the_earlier_keys(deep, stats_of, moments, n_earlier):
    keys, _ = random_problem(deep, n_earlier + 2)
    held, new = keys[:n_earlier], keys[n_earlier:]
    left = held_left_factor(stats_of(deep).solve, WEIGHT, LAYER, new, held)
    dense = moments(deep)[LAYER].double() + held.double().T @ held.double() / WEIGHT
    assert relative(left, torch.linalg.solve(dense, new.double().T).T.float()) < 1e-4
    assert relative(left, stats_of(deep).solve(LAYER, new)) > 0.01, "the earlier keys make a difference"


def test_in_the_null_space_the_earlier_keys_join_the_least_squares(deep, stats_of, moments):
    """min ||k D - r||^2 + ||K_p D||^2 + ||D||^2 over D = P D."""
    share, stats = 1.0, stats_of(deep)
    keys, values = random_problem(deep, 4)
    held, (key,), r = keys[:3], keys[3:].double(), values[3].double()
    (left,) = held_left_factor(lambda layer, k: stats.project(layer, k, share), 1.0, LAYER, keys[3:], held)
    eigenvalues, vectors = torch.linalg.eigh(moments(deep)[LAYER].double())
    basis = vectors[:, eigenvalues < share * eigenvalues.mean()]
    assert 0 < basis.shape[1] < len(eigenvalues)
    stacked = torch.cat([(key @ basis)[None], held.double() @ basis, torch.eye(basis.shape[1], dtype=torch.float64)])
    wanted = torch.cat([r[None], torch.zeros(len(stacked) - 1, len(r), dtype=torch.float64)])
    best = basis @ torch.linalg.lstsq(stacked, wanted).solution
    assert relative(torch.outer(left.double(), r) / (1 + key @ left.double()), best) < 1e-4


def test_updates_one_after_another_with_earlier_keys_held_add_up_to_the_joint_update(deep, stats_of):
    """Recursive least squares: what each key is to read out is fixed, and the order leaves no trace."""
    keys, values = random_problem(deep, 5)
    stats = stats_of(deep)

    def one_by_one(hold):
        total = torch.zeros(deep.cfg.d_mlp, deep.cfg.d_model)
        for i in range(len(keys)):
            left = held_left_factor(stats.solve, WEIGHT, LAYER, keys[i : i + 1], keys[:i] if hold else None)[0]
            missing = values[i] - keys[i] @ total
            total = total + torch.outer(left, missing / (WEIGHT + keys[i] @ left))
        return total

    left, right = joint_factors(stats, LAYER, keys, values, WEIGHT)
    assert relative(one_by_one(hold=True), left @ right) < 1e-4
    assert relative(one_by_one(hold=False), left @ right) > 0.01


@pytest.mark.parametrize(
    ("edit", "settings"),
    [
        (loc_edit.alphaedit, AlphaEditSettings(steps=5, null_space=2.0)),
        (loc_edit.memit, MemitSettings(steps=5, moment_weight=1e-4)),
    ],
    ids=["alphaedit", "memit"],
)
def test_earlier_keys_still_read_their_values_if_held_and_not_otherwise(
    make_model, facts, stats_of, contexts, edit, settings
):
    """Keys are made long, as the null-space form weighs a unit change against them; a layer's keys stay put."""
    model = make_model(n_layers=4)
    with torch.no_grad():
        model.blocks[LAYER].mlp.W_in.mul_(20)
    stats, requests = stats_of(model), [ask(model, fact) for fact in facts]

    def drift(hold):
        """How far the earlier keys' outputs move, as a share of what the edits changed of them."""
        earlier, values, shares = torch.zeros(0, model.cfg.d_mlp), [], []
        weight = model.blocks[LAYER].mlp.W_out
        unedited = weight.detach().clone()
        with EditStack(model) as stack:
            for request in requests:
                held = {"earlier": {LAYER: earlier}} if hold else {}
                stack.apply(edit(model, request, [LAYER], stats=stats, contexts=contexts, settings=settings, **held))
                key = loc_edit.edit_keys(model, request, [LAYER], contexts=contexts)[LAYER]
                earlier = torch.cat([earlier, key])
                values.append(key[0] @ weight)
            for key, value in zip(earlier[:-1], values[:-1], strict=True):
                shares.append(((key @ weight - value).norm() / (value - key @ unedited).norm()).item())
        assert torch.equal(weight, unedited)
        return max(shares)

    assert drift(hold=True) < 0.02
    assert drift(hold=False) > 0.2


@pytest.mark.parametrize("layers", [[1], [1, 2]])
def test_edit_keys_are_those_of_the_slow_version_in_the_edited_model(deep, facts, stats_of, contexts, layers):
    requests = [ask(deep, fact) for fact in facts[:2]]
    settings = MemitSettings(steps=3, moment_weight=0.1)
    edit = loc_edit.memit(deep, requests[0], [1], stats=stats_of(deep), contexts=contexts, settings=settings)
    unedited = loc_edit.edit_keys(deep, requests, layers, contexts=contexts)
    with edit.applied(deep):
        keys = loc_edit.edit_keys(deep, requests, layers, contexts=contexts)
        assert sorted(keys) == layers
        for layer in layers:
            for key, request in zip(keys[layer], requests, strict=True):
                rows, _ = oracles.rows_of(deep, request, contexts)
                ks = torch.stack([oracles.read_at(deep, row, f"blocks.{layer}.mlp.hook_post") for row in rows])
                assert relative(key, (ks[0] + ks[1:].mean(0)) / 2) < 1e-4
        [alone] = loc_edit.edit_keys(deep, requests[1], layers, contexts=contexts)[layers[-1]]
        assert relative(alone, keys[layers[-1]][1]) < 1e-4
    assert torch.allclose(unedited[1], keys[1])
    assert layers == [1] or not torch.allclose(unedited[2], keys[2])


@pytest.mark.parametrize("edit", [loc_edit.memit, loc_edit.alphaedit])
def test_no_earlier_keys_are_the_same_as_none_given(deep, facts, stats_of, contexts, edit):
    settings = {"settings": AlphaEditSettings(steps=2, null_space=1.0)} if edit is loc_edit.alphaedit else {}
    request, about = ask(deep, facts[1]), {"stats": stats_of(deep), "contexts": contexts, **settings}
    plain = edit(deep, request, [1], **about)
    for earlier in ({}, {1: torch.zeros(0, deep.cfg.d_mlp)}, {3: torch.ones(2, deep.cfg.d_mlp)}):
        assert torch.equal(edit(deep, request, [1], **about, earlier=earlier).delta(1), plain.delta(1))
    assert inspect.signature(edit).parameters["earlier"].default is None
