"""Localizers: slow equals fast for those that patch, finite differences and linear models for the others."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from asking import K, cache_of, case, cells, names, only, put, question, questions, value
from oracles import add_noise

import loc_edit
from loc_edit.localization import ablation as patching
from loc_edit.localization.direct import direct
from loc_edit.localization.gradients import attribution, integrated_gradients, relp
from loc_edit.localization.layerwise import layer_integrated_gradients
from loc_edit.localization.lens import logit_lens
from loc_edit.names import LOCALIZERS, TRACING

NEEDS = {"mean_ablation", "resample_ablation"}


@pytest.mark.parametrize("name", sorted(LOCALIZERS))
@pytest.mark.parametrize("shape", ["gpt2_deep", "llama", "gptj", "gemma3", "olmo2"])
def test_every_localizer_gives_a_trace_of_the_same_question(shapes, facts, name, shape):
    model, fact = shapes[shape], facts[0]
    prompt, noise = case(model, fact)
    reference = [loc_edit.encode(model, other) for other in facts]
    options = {"reference": reference} if name in NEEDS else {"facts": facts} if name == "tuned_lens" else {}
    metric = (
        {"metric": "logit_difference", "foil": fact.target_new} if name == "direct" else {"metric": "log_probability"}
    )
    found = loc_edit.localize(
        model, prompt, fact.target_true, noise=noise, localizer=name, window=3, **metric, **options
    )
    traced = loc_edit.localize(model, prompt, fact.target_true, noise=noise, window=3, **metric)
    assert (found.localizer, traced.localizer) == (name, TRACING)
    assert found.p_clean == pytest.approx(traced.p_clean, rel=1e-5)
    assert found.p_corrupted == pytest.approx(traced.p_corrupted, rel=1e-5)
    assert found.p_restored.shape == traced.p_restored.shape
    assert found.effect.abs().max() > 1e-2
    if "ablation" not in name:  # the cells before the subject are the same in both runs
        before = found.effect[:, : prompt.subject.start]
        assert before.numel() == 0 or before.abs().max() < 1e-6
    assert found.batch_size >= 0
    frame = found.to_frame()
    assert len(frame) == found.p_restored.numel()


def test_attribution_is_the_slope_of_the_patch(deep, facts):
    exact = copy.deepcopy(deep).to(torch.float64)
    asked = questions(exact, facts[2])
    q, found, step = only(asked.each()), only(attribution(asked)), 1e-3
    clean = cache_of(q)
    caches = [cache_of(q, eps) for eps in q.noise]

    def patched(layers, pos, share):
        total = 0.0
        for eps, corrupted in zip(q.noise, caches, strict=True):
            hooks = add_noise(eps, q.prompt.subject)
            for name in names("mlp_out", layers):
                there = corrupted[name][0, pos]
                hooks.append((name, put(pos, there + share * (clean[name][0, pos] - there))))
            total += value(q, q.model.run_with_hooks(q.tokens[None], fwd_hooks=hooks))[0].item() / K
        return total

    some = list(cells(q, q.prompt.subject.start))[::5]
    slopes = [(patched(layers, pos, step) - patched(layers, pos, -step)) / (2 * step) for _, layers, pos in some]
    ours = torch.stack([found[center, pos] for center, _, pos in some])
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(ours, torch.tensor(slopes, dtype=torch.float64), rtol=1e-4, atol=1e-7)


@pytest.fixture
def linear(make_model):
    """A model whose logits are linear in its attention outputs: even attention, constant MLPs, no norm."""
    model = make_model(seed=3, n_layers=3, normalization_type=None)
    with torch.no_grad():
        for block in model.blocks:
            for name in ("W_Q", "W_K", "b_Q", "b_K"):
                getattr(block.attn, name).zero_()
            block.mlp.W_in.zero_()
            block.attn.W_O.mul_(2.0)
    return model


def test_the_effects_of_a_window_add_up(deep, facts):
    for method in (attribution, integrated_gradients, layer_integrated_gradients, relp, logit_lens):
        alone, wide = (only(method(questions(deep, facts[1], window=window))) for window in (1, 3))
        torch.testing.assert_close(wide[0], alone[:2].sum(0))
        torch.testing.assert_close(wide[2], alone[1:].sum(0))


def test_in_a_linear_model_attribution_is_tracing(linear, facts):
    fact = facts[0]
    prompt, noise = case(linear, fact)
    common = {"noise": noise, "site": "attn_out", "window": 1, "metric": "logit_difference", "foil": "Rome"}
    traced = loc_edit.trace(linear, prompt, fact.target_true, **common)
    assert traced.effect.abs().max() > 0.1
    for name in ("attribution", "integrated_gradients", "layer_integrated_gradients", "relp"):
        found = loc_edit.localize(linear, prompt, fact.target_true, localizer=name, **common)
        torch.testing.assert_close(found.effect, traced.effect, rtol=1e-3, atol=1e-4)


def test_in_a_linear_model_direct_contributions_add_up(linear, facts):
    q = question(linear, facts[0], site="attn_out", metric="logit_difference", foil="Rome")
    found = direct(q)
    assert abs(q.p_clean - q.p_corrupted) > 0.1
    assert found.sum().item() == pytest.approx(q.p_clean - q.p_corrupted, rel=1e-4)
    wide = direct(question(linear, facts[0], site="attn_out", window=9, metric="logit_difference", foil="Rome"))
    assert wide[1, -1].item() == pytest.approx(found.sum().item(), rel=1e-5)


@pytest.mark.parametrize("shape", ["gpt2_deep", "llama"])
def test_direct_contributions_equal_differences_of_logits_at_the_clean_scale(shapes, facts, shape):
    model = shapes[shape]
    q = question(model, facts[0], metric="logit_difference", foil="Rome")
    found, last = direct(q), len(q.prompt) - 1
    clean = cache_of(q)
    residual = q.clean.final[0, last]
    scale = clean["ln_final.hook_scale"][0, last]
    change = torch.zeros_like(residual)
    for eps in q.noise:
        change += (clean["blocks.1.hook_mlp_out"] - cache_of(q, eps)["blocks.1.hook_mlp_out"])[0, last] / K

    def logits(stream):
        centered = stream - stream.mean() if model.cfg.normalization_type.startswith("LN") else stream
        return (centered / scale * model.ln_final.w) @ model.unembed.W_U

    gain = logits(residual) - logits(residual - change)
    expected = gain[q.answer[0]] - gain[q.foil]
    assert abs(expected) > 1e-3
    assert found[1, last].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
    assert (found[:, :last] == 0).all()


def test_integrated_gradients_are_complete(deep, facts):
    asked = questions(deep, facts[1], site="hook_resid_pre")
    q = only(asked.each())
    gap = q.p_clean - q.p_corrupted
    assert abs(gap) > 0.01
    errors = [abs(only(integrated_gradients(asked, steps))[0].sum().item() - gap) for steps in (1, 64)]
    assert errors[1] < 0.02 * abs(gap) < errors[0]
    with pytest.raises(ValueError, match="expected steps to be an integer of at least 1, got 0"):
        integrated_gradients(asked, 0)


@pytest.mark.parametrize("steps", [1, 2])
def test_integrated_gradients_are_taken_at_midpoints(deep, facts, steps):
    """One step takes the gradient at half the noise, two steps take it at a quarter and at three quarters."""
    asked = questions(deep, facts[1])
    q = only(asked.each())
    sites, clean = names("mlp_out", range(4)), cache_of(q)
    expected = torch.zeros(4, len(q.prompt), dtype=torch.float64)
    for eps in q.noise:
        corrupted = cache_of(q, eps)
        for share in {1: (0.5,), 2: (0.25, 0.75)}[steps]:
            kept = {}

            def keep(activation, hook, name, kept=kept):
                kept[name] = activation
                activation.retain_grad()

            hooks = [
                *add_noise(share * eps, q.prompt.subject),
                ("hook_embed", lambda value, hook: value.requires_grad_()),
            ]
            hooks += [(name, partial(keep, name=name)) for name in sites]
            value(q, deep.run_with_hooks(q.tokens[None], fwd_hooks=hooks))[0].backward()
            for layer, name in enumerate(sites):
                change = (clean[name] - corrupted[name])[0].double()
                expected[layer] += (change * kept[name].grad[0]).sum(1)[: len(q.prompt)] / (K * steps)
    found = only(integrated_gradients(asked, steps))
    assert (found - only(attribution(asked))).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("shape", "site"), [("gpt2_deep", "mlp_out"), ("llama", "attn_out"), ("gptj", "attn.hook_k")])
def test_layer_integrated_gradients_add_up_to_restoring_a_whole_layer(shapes, facts, shape, site):
    model = shapes[shape]
    asked = questions(model, facts[0], site=site)
    q = only(asked.each())
    assert len(q.answer) == 1, "the prompt's positions are all there are"
    clean = cache_of(q)
    restoring = torch.zeros(model.cfg.n_layers, dtype=torch.float64)
    for layer, name in enumerate(names(site, range(model.cfg.n_layers))):
        for eps in q.noise:
            hooks = [*add_noise(eps, q.prompt.subject), (name, put(slice(None), clean[name][0]))]
            restoring[layer] += value(q, model.run_with_hooks(q.tokens[None], fwd_hooks=hooks))[0].item() / K
    gaps = [only(layer_integrated_gradients(asked, n)).sum(1) - (restoring - q.p_corrupted) for n in (1, 64)]
    assert (restoring - q.p_corrupted).abs().max() > 0.05
    assert gaps[1].abs().max() < 2e-3
    assert gaps[0].abs().max() > 5 * gaps[1].abs().max()


@pytest.mark.parametrize(("site", "window"), [("mlp_out", 1), ("mlp_out", 3), ("attn_out", 2)])
def test_ablations_equal_one_run_a_cell(deep, facts, site, window):
    others = [loc_edit.encode(deep, fact) for fact in facts]
    asked = questions(deep, facts[2], site=site, window=window, reference=others)
    q = only(asked.each())
    caches = [deep.run_with_cache(p.tokens[None])[1] for p in others if p.fact_id != facts[2].fact_id]
    means = {n: torch.cat([c[n][0] for c in caches]).mean(0) for n in names(site, range(4))}

    def oracle(new):
        expected = torch.zeros(4, len(q.prompt), dtype=torch.float64)
        for center, layers, pos in cells(q):
            hooks = [(name, put(pos, new(name))) for name in names(site, layers)]
            expected[center, pos] = q.p_clean - value(q, deep.run_with_hooks(q.tokens[None], fwd_hooks=hooks))[0]
        return expected

    zero = only(patching.zero_ablation(asked))
    assert zero.abs().max() > 1e-3
    torch.testing.assert_close(zero, oracle(lambda name: 0.0), rtol=0, atol=2e-5)
    torch.testing.assert_close(only(patching.mean_ablation(asked)), oracle(means.__getitem__), rtol=0, atol=2e-5)


def test_resampling_takes_positions_of_the_same_kind(deep, facts):
    other = loc_edit.encode(deep, facts[0])
    asked = questions(deep, facts[1], reference=[other])
    q = only(asked.each())
    at = {}
    for pos in range(len(other)):
        at.setdefault(patching.kind(other, pos), []).append(pos)
    cache = deep.run_with_cache(other.tokens[None])[1]
    single = [pos for pos in range(len(q.prompt)) if len(at.get(patching.kind(q.prompt, pos), [])) == 1]
    assert q.prompt.last_subject in single
    assert len(q.prompt) - 1 in single
    found = only(patching.resample_ablation(asked, samples=2))
    for layer in range(4):
        for pos in single:
            (there,) = at[patching.kind(q.prompt, pos)]
            name = f"blocks.{layer}.hook_mlp_out"
            hooks = [(name, put(pos, cache[name][0, there]))]
            expected = q.p_clean - value(q, deep.run_with_hooks(q.tokens[None], fwd_hooks=hooks))[0]
            assert found[layer, pos].item() == pytest.approx(expected.item(), abs=2e-5)
    with pytest.raises(ValueError, match="fact 1: ablation needs prompts of other facts"):
        patching.resample_ablation(questions(deep, facts[1], reference=[q.prompt]))


def test_resampling_draws_depend_on_seed_and_fact(deep, facts):
    prompt, noise = case(deep, facts[1])
    reference = [loc_edit.encode(deep, fact) for fact in facts if fact is not facts[1]]

    def drawn(seed=0, fact_id=prompt.fact_id):
        asked = {"localizer": "resample_ablation", "samples": 1, "seed": seed, "reference": reference}
        return loc_edit.localize(deep, replace(prompt, fact_id=fact_id), "Paris", noise=noise, **asked).p_restored

    assert torch.equal(drawn(), drawn())
    assert not torch.allclose(drawn(), drawn(seed=1), atol=1e-4)
    assert not torch.allclose(drawn(), drawn(fact_id=99), atol=1e-4)


@pytest.mark.parametrize("module", ["mlp", "attn"])
@pytest.mark.parametrize(("site", "window"), [("resid_post", 1), ("mlp_out", 2)])
def test_severed_tracing_equals_one_run_a_cell(deep, facts, module, site, window):
    q = question(deep, facts[0], site=site, window=window)
    about = {"noise": q.noise, "site": site, "window": window, "metric": "log_probability"}
    found = loc_edit.localize(deep, q.prompt, facts[0].target_true, localizer=f"severed_{module}", **about).effect
    clean, caches = cache_of(q), [cache_of(q, eps) for eps in q.noise]
    expected = torch.zeros_like(found, dtype=torch.float64)
    for center, layers, pos in cells(q, q.prompt.subject.start):
        for eps, corrupted in zip(q.noise, caches, strict=True):
            hooks = add_noise(eps, q.prompt.subject)
            hooks += [(name, put(pos, clean[name][0, pos])) for name in names(site, layers)]
            frozen = names(f"{module}_out", range(layers[-1] + 1, 4))
            hooks += [(name, put(pos, corrupted[name][0, pos])) for name in frozen]
            logits = deep.run_with_hooks(q.tokens[None], fwd_hooks=hooks)
            expected[center, pos] += (value(q, logits)[0].item() - q.p_corrupted) / K
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    whole = loc_edit.trace(deep, q.prompt, facts[0].target_true, **about).effect
    torch.testing.assert_close(found[3], whole[3], rtol=0, atol=2e-5)  # nothing is left to sever
    assert (found[:3] - whole[:3]).abs().max() > 1e-4


def test_without_noise_localizers_that_compare_runs_measure_nothing(deep, facts):
    prompt, noise = case(deep, facts[0], scale=0.0)
    others = {"tuned_lens": {"facts": facts}}
    for name in set(LOCALIZERS) - {TRACING, "direct", "zero_ablation"} - NEEDS:
        found = loc_edit.localize(deep, prompt, "Paris", noise=noise, localizer=name, window=2, **others.get(name, {}))
        assert found.effect.abs().max() < 1e-6, name


def test_the_random_control_depends_on_seed_and_fact(deep, facts):
    prompt, noise = case(deep, facts[0])

    def drawn(seed, p=prompt, n=noise):
        return loc_edit.localize(deep, p, "Paris", noise=n, localizer="random", seed=seed)

    assert torch.equal(drawn(0).p_restored, drawn(0).p_restored)
    assert not torch.equal(drawn(0).p_restored, drawn(1).p_restored)
    shares = drawn(0).fraction[:, prompt.subject.start :]
    assert (shares.min() >= -1e-5, shares.max() <= 1 + 1e-5) == (True, True)
    assert 0.3 < shares.mean() < 0.7


def test_refusals_name_what_is_expected(deep, facts):
    prompt, noise = case(deep, facts[0])
    with pytest.raises(ValueError, match=r"localizer 'guess': expected one of causal_tracing, attribution, "):
        loc_edit.localize(deep, prompt, "Paris", noise=noise, localizer="guess")
    with pytest.raises(ValueError, match="direct logit attribution needs metric='logit_difference'"):
        loc_edit.localize(deep, prompt, "Paris", noise=noise, localizer="direct")
    common = {"metric": "logit_difference", "foil": "Rome", "site": "resid_post"}
    for name in ("direct", "logit_lens"):
        with pytest.raises(ValueError, match="site 'resid_post'"):
            loc_edit.localize(deep, prompt, "Paris", noise=noise, localizer=name, **common)
    for few in ((), facts[:1]):
        with pytest.raises(ValueError, match=f"expected facts= of at least 2 subjects to fit it on, got {len(few)}"):
            loc_edit.localize(deep, prompt, "Paris", noise=noise, localizer="tuned_lens", facts=few)
    with pytest.raises(
        ValueError, match="layer_integrated_gradients: expected steps to be an integer of at least 1, got 0"
    ):
        loc_edit.localize(deep, prompt, "Paris", noise=noise, localizer="layer_integrated_gradients", steps=0)
    with pytest.raises(ValueError, match="noise of shape"):
        loc_edit.localize(deep, prompt, "Paris", noise=noise[:, :1], localizer="random")
