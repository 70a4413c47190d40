"""The norm between `W_out` and the residual stream: its effect, and the nearest that it lets an edit reach."""

import pytest
import torch
from conftest import EDITABLE, POST_NORM

from loc_edit.models.adapter import VERSION
from loc_edit.models.norms import added_for, nearest_normalized, output_change, raw_output

LAYER = 1


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def changed(model, tokens, added):
    """Key and change of `hook_mlp_out` where the module of a layer's MLP puts out `added` more."""
    name = f"blocks.{LAYER}.hook_mlp_out"
    before = model.run_with_cache(tokens)[1]
    handle = model.blocks[LAYER].mlp.register_forward_hook(lambda module, given, output: output + added)
    after = model.run_with_cache(tokens)[1]
    handle.remove()
    return before[f"blocks.{LAYER}.mlp.hook_post"], after[name] - before[name]


@pytest.mark.skipif(VERSION >= 4, reason="the hook point of a bridge's MLP is inside the module that the test changes")
@pytest.mark.parametrize("shape", EDITABLE)
def test_the_change_of_the_output_is_that_of_the_model(shapes, shape):
    model = shapes[shape]
    added = drawn(2, 5, model.cfg.d_model)
    key, wanted = changed(model, torch.arange(10).view(2, 5), added)
    fired = []
    with model.hooks(fwd_hooks=[(lambda name: "ln2" in name, lambda value, hook: fired.append(hook.name))]):
        got = output_change(model, LAYER, key, added)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert not fired, "the norm's hook points fire once, in the model's own pass"
    assert (got - added).abs().max() > 0.1 or shape not in POST_NORM
    if shape not in POST_NORM:
        assert got is added
        assert added_for(model, LAYER, key, added) is added


@pytest.mark.parametrize("shape", POST_NORM)
def test_what_a_norm_can_reach_is_reached(shapes, shape):
    model = shapes[shape]
    key = drawn(6, model.cfg.d_mlp, seed=1)
    wanted = output_change(model, LAYER, key, drawn(6, model.cfg.d_model))
    assert wanted.norm(dim=-1).min() > 0.1
    added = added_for(model, LAYER, key, wanted)
    torch.testing.assert_close(output_change(model, LAYER, key, added), wanted, rtol=1e-5, atol=1e-5)
    before = raw_output(model, LAYER, key)
    torch.testing.assert_close((before + added).norm(dim=-1), before.norm(dim=-1))
    torch.testing.assert_close(added_for(model, LAYER, key, 0 * wanted), 0 * wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["even", "wide", "with a zero", "negative"])
def test_the_nearest_point_beats_all_others(kind, size):
    """Against random points and small steps along the sphere, for values inside and outside of the ellipsoid."""
    d = 12
    weight = {
        "even": torch.ones(d),
        "wide": torch.logspace(-2, 3.2, d),
        "with a zero": torch.linspace(0, 3, d),
        "negative": drawn(d, seed=3),
    }[kind].double()
    value = size * weight * drawn(5, d).double() + 0.01 * drawn(5, d, seed=1).double()
    mean_square = torch.tensor([1.0, 0.9, 1.0, 0.5, 1.0]).double()
    best = nearest_normalized(weight, value, mean_square)
    torch.testing.assert_close(best.square().mean(-1), mean_square)

    def distance(x):
        x = x * (mean_square[:, None] / x.square().mean(-1, keepdim=True)).sqrt()
        return (weight * x - value).norm(dim=-1)

    least = distance(best)
    others = [drawn(5, d, seed=seed).double() for seed in range(200)]
    nearby = [best + step * other for step in (1e-3, 1e-2, 0.1) for other in others]
    for x in others + nearby:
        assert (least <= distance(x) * (1 + 1e-9) + 1e-12).all()
    assert (distance(others[1]) > least * (1 + 1e-9)).all(), "other points are farther"


def test_points_of_the_ellipsoid_are_their_own_nearest():
    weight = torch.logspace(-2, 3.2, 640).double()
    x = torch.nn.functional.normalize(drawn(3, 640).double(), dim=-1) * 640**0.5
    torch.testing.assert_close(nearest_normalized(weight, weight * x, torch.ones(3).double()), x, rtol=1e-5, atol=1e-5)
