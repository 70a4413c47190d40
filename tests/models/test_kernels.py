"""One kernel each for GELU and LayerNorm, a last layer for some positions only: the same numbers, and hooks fire."""

import copy
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import EDITABLE, SHAPES, random_model

from loc_edit.models.adapter import VERSION

if VERSION >= 4:
    pytest.skip("the kernels are for the layers of TransformerLens 3", allow_module_level=True)

from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.components import LayerNorm

from loc_edit.models.identity import fingerprint
from loc_edit.models.kernels import one_kernel_each
from loc_edit.models.passes import answers_alone, run_answers, run_layers
from loc_edit.models.past import new_past
from loc_edit.models.weights import arrange, attention_weights, side_by_side


@pytest.fixture(autouse=True)
def _seeded():
    """The same inputs in every run: a bound that one draw in a thousand misses says nothing."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=EDITABLE)
def model(request, tokenizer):
    return random_model(tokenizer, 3, **SHAPES[request.param])


def outputs(model, x):
    """A block's output, and the gradient of a loss that no norm makes constant."""
    x = x.clone().requires_grad_()
    out = model.blocks[0](x)
    (out**3).sum().backward()
    return out.detach(), x.grad


def test_one_kernel_each_equals_the_chains_of_operations(model):
    x = torch.randn(3, 5, model.cfg.d_model)
    want = outputs(model, x)
    with one_kernel_each(model.blocks):
        found = outputs(model, x)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    again = outputs(model, x)
    assert all(torch.equal(one, other) for one, other in zip(again, want, strict=True))  # as it was


def test_no_layers_activations_outlive_it(deep):
    alive, seen = [], []
    with torch.no_grad(), one_kernel_each(deep.blocks):
        x = torch.randn(2, 3, deep.cfg.d_model)
        for block in deep.blocks:
            seen.append(weakref.ref(x))
            x = block(x)
            alive.append(sum(ref() is not None for ref in seen))
    assert len(alive) > 2
    assert max(alive[1:]) == alive[1]  # no more with every layer


def test_the_chains_are_really_replaced_and_come_back_after_an_error(deep):
    block = deep.blocks[1]
    before = block.mlp.act_fn, vars(block.ln1).get("forward")

    def fail():
        with one_kernel_each([block]):
            assert block.mlp.act_fn is not before[0]
            assert "forward" in vars(block.ln1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (block.mlp.act_fn, vars(block.ln1).get("forward")) == before


def test_keys_that_a_hook_reads_equal_transformer_lens(deep):
    x, seen = torch.randn(2, 4, deep.cfg.d_model), []
    with deep.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: seen.append(value))]):
        block = deep.blocks[0]
        with one_kernel_each([block]):
            pre = block.ln2(x) @ block.mlp.W_in + block.mlp.b_in
            block.mlp(block.ln2(x))
    assert torch.allclose(seen[0], deep.blocks[1].mlp.act_fn(pre), rtol=0, atol=0)


def test_hook_points_inside_a_norm_fire(deep):
    assert type(deep.blocks[1].ln1) is LayerNorm
    x, seen = torch.randn(2, 4, deep.cfg.d_model), []
    want = run_layers(deep, x, start=0, stop=2)
    double = [
        ("blocks.1.ln1.hook_normalized", lambda value, hook: (seen.append(value), 2 * value)[1]),
        ("blocks.1.mlp.hook_post", lambda value, hook: seen.append(value)),
    ]
    with deep.hooks(fwd_hooks=double):
        hooked = run_layers(deep, x, start=0, stop=2)
        slow = deep(x, start_at_layer=0, stop_at_layer=2)
    assert len(seen) == 8  # three calls of the norm and one of the MLP, twice
    assert not torch.allclose(hooked, want)
    torch.testing.assert_close(hooked, slow, rtol=1e-4, atol=1e-5)


LOCAL = {"n_layers": 3, "attn_types": ["local"] * 3, "window_size": 2, "use_local_attn": True}
GROUPED = {**SHAPES["llama"], "n_key_value_heads": 1}
CAPPED = {**SHAPES["llama"], "attn_scores_soft_cap": 2.0}
ALL = {**SHAPES, "local": LOCAL, "grouped": GROUPED, "capped": CAPPED}


@pytest.mark.parametrize("shape", ALL)
def test_attention_equals_transformer_lens_with_a_past_and_padding_anywhere(tokenizer, shape):
    model = random_model(tokenizer, 3, **ALL[shape])
    block, n_before = model.blocks[1], 3
    hidden = torch.tensor([0, 1, 3, 5])  # the last row's first two queries are padding
    mask = (torch.arange(8) >= hidden[:, None]).long()
    earlier, x = torch.randn(4, n_before, model.cfg.d_model), torch.randn(4, 5, model.cfg.d_model)
    real = mask[:, n_before:, None]
    found = []
    for fused in (False, True):
        cache: Any = new_past(model) if fused else TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 4)
        given = x.clone().requires_grad_()
        with one_kernel_each([block]) if fused else nullcontext():
            assert ("forward" in vars(block.attn)) == fused
            with torch.no_grad():
                block(earlier, past_kv_cache_entry=cache[1], attention_mask=mask[:, :n_before])
            cache[1].frozen = True
            out = block(given, past_kv_cache_entry=cache[1], attention_mask=mask)
        (gradient,) = torch.autograd.grad(((out * real) ** 3).sum(), given)
        found.append((out.detach() * real, gradient * real))
    for one, other in zip(*found, strict=True):
        assert torch.isfinite(other).all()
        if one.isfinite().all():  # TransformerLens' gradient is not a number if a query sees nothing
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    assert shape == "capped" or one.isfinite().all()


@pytest.mark.parametrize("shape", ALL)
def test_masked_padding_between_positions_changes_nothing(tokenizer, shape):
    """The decoder's rows: [prompt, padding, new tokens], where positions are counted without the padding."""
    model = random_model(tokenizer, 3, **ALL[shape])
    tokens, n_layers = torch.randint(10, 300, (1, 9)), model.cfg.n_layers
    want = run_layers(model, tokens, stop=n_layers)[:, 6:]
    past, padded = new_past(model, room=11), torch.cat([tokens[:, :6], torch.zeros(1, 2, dtype=torch.long)], 1)
    run_layers(model, padded, stop=n_layers, past=past)
    mask = torch.tensor([[1] * 6 + [0] * 2 + [1] * 3])
    found = [
        run_layers(model, tokens[:, 6 + i : 7 + i], stop=n_layers, past=past, mask=mask[:, : 9 + i]) for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(found, 1), want, rtol=1e-4, atol=1e-5)


def test_a_model_with_its_weights_side_by_side_is_the_same_model(tokenizer, model):
    model, arranged = copy.deepcopy(model), copy.deepcopy(model)
    arrange(arranged)
    attn, mlp = arranged.blocks[0].attn, arranged.blocks[0].mlp
    for some in (model, arranged):
        weights = attention_weights(some.blocks[0].attn)
        in_place = side_by_side(weights).data_ptr() == weights[0].data_ptr()
        assert in_place == (some is arranged)
    for (name, one), other in zip(model.named_parameters(), arranged.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert fingerprint(arranged) == fingerprint(model)
    tokens = torch.randint(10, 300, (2, 5))
    with torch.no_grad():
        want = run_layers(model, tokens, stop=2)
        torch.testing.assert_close(run_layers(arranged, tokens, stop=2), want)
        attn.W_Q[0, 3] += 1.0  # written in place, it counts
        if hasattr(mlp, "W_gate"):
            mlp.W_gate[2] += 1.0
        changed = run_layers(arranged, tokens, stop=2)
        assert not torch.allclose(changed, want)
        torch.testing.assert_close(changed, arranged(tokens, stop_at_layer=2), rtol=1e-4, atol=1e-5)


def test_hooks_on_scores_and_pattern_fire(deep):
    x, n_seen = torch.randn(2, 4, deep.cfg.d_model), []
    want = run_layers(deep, x, start=0, stop=2)
    for name, function in (("attn_scores", lambda s: s * 2), ("pattern", lambda p: p * 0)):
        hook = (f"blocks.1.attn.hook_{name}", lambda value, hook, f=function: (n_seen.append(value.shape), f(value))[1])
        with deep.hooks(fwd_hooks=[hook]):
            hooked = run_layers(deep, x, start=0, stop=2)
            slow = deep(x, start_at_layer=0, stop_at_layer=2)
        assert not torch.allclose(hooked, want)
        torch.testing.assert_close(hooked, slow, rtol=1e-4, atol=1e-5)
    assert n_seen == [(2, deep.cfg.n_heads, 4, 4)] * 4


@pytest.mark.parametrize("with_past", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_answer_positions_alone_equal_the_whole_last_layer(model, with_past, start):
    assert answers_alone(model)
    n_layers = model.cfg.n_layers
    x = torch.randn(4, 6, model.cfg.d_model)
    lengths, at = torch.tensor([6, 2, 5, 1]), torch.tensor([[4, 5], [0, 1], [4, 4], [0, 0]])
    past, mask = None, None
    if with_past:
        past, real = new_past(model), torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
        run_layers(model, torch.randn(4, 3, model.cfg.d_model), start=start, stop=n_layers, past=past, mask=real)
        for entry in past:
            entry.frozen = True
        mask = torch.cat([real, torch.ones(4, 6, dtype=torch.long)], 1)
    found = []
    for alone in (False, True):
        given = x.clone().requires_grad_()
        out = run_answers(model, given, at, lengths, start=start, alone=alone, past=past, mask=mask)
        (out**3).sum().backward()
        found.append((out.detach(), given.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    assert found[0][1][2, :4].abs().max() > 0  # earlier positions matter, through keys and values


def test_the_last_layer_is_computed_whole_if_it_has_hooks(deep):
    assert answers_alone(deep)
    for name in ("blocks.0.hook_mlp_out", "unembed.hook_in"):
        with deep.hooks(fwd_hooks=[(name, lambda value, hook: None)]):
            assert answers_alone(deep)
    for name in ("hook_mlp_out", "attn.hook_k", "ln1.hook_scale", "hook_resid_pre"):
        with deep.hooks(fwd_hooks=[(f"blocks.{deep.cfg.n_layers - 1}.{name}", lambda value, hook: None)]):
            assert not answers_alone(deep)
