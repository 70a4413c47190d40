"""Causal tracing: identities that need no reference, and slow-equals-fast."""

import math

import oracles
import pytest
import torch
from jaxtyping import TypeCheckError
from transformer_lens.patching import get_act_patch_mlp_out

import loc_edit
from loc_edit.models.adapter import VERSION
from loc_edit.prompts.encoding import find_subject

K = 3


def case(model, fact, scale=1.5):
    """A prompt and its noise."""
    prompt = loc_edit.encode(model, fact)
    return prompt, loc_edit.subject_noise(model, prompt, scale=scale, samples=K)


def answer_of(model, prompt, target):
    return loc_edit.target_tokens(model, prompt.text, target)


def p(model, prompt, target, hooks=()):
    """Mean probability over the rows that the hooks make, by the whole model."""
    answer = answer_of(model, prompt, target)
    row = torch.cat([prompt.tokens, answer[:-1]])[None]
    with model.hooks(fwd_hooks=list(hooks)):
        logits = model(row)
    return torch.stack([oracles.probability(one, len(prompt), answer) for one in logits]).mean().item()


@pytest.mark.parametrize("shape", ["gpt2_deep", "llama", "gptj", "gemma3", "olmo2"])
def test_without_noise_all_three_runs_are_one(shapes, facts, shape):
    model = shapes[shape]
    prompt, noise = case(model, facts[0], scale=0.0)
    for site in ("mlp_out", "attn_out", "resid_post"):
        trace = loc_edit.trace(model, prompt, "Paris", noise=noise, site=site, window=3)
        assert trace.p_clean == pytest.approx(p(model, prompt, "Paris"), rel=1e-5)
        assert trace.p_corrupted == pytest.approx(trace.p_clean, rel=1e-5)
        torch.testing.assert_close(
            trace.p_restored, torch.full_like(trace.p_restored, trace.p_clean), rtol=1e-5, atol=0
        )


def test_restoring_the_embeddings_gives_the_clean_run(deep, facts):
    prompt, noise = case(deep, facts[1])
    _, cache = deep.run_with_cache(prompt.tokens[None])
    clean = cache["hook_embed"]
    span = prompt.subject

    def restore(value, hook):
        value = value.clone()
        value[:, span] = clean[0, span]
        return value

    corrupted = p(deep, prompt, "Polish", loc_edit.corruption_hooks(prompt, noise))
    restored = p(deep, prompt, "Polish", [*loc_edit.corruption_hooks(prompt, noise), ("hook_embed", restore)])
    assert abs(corrupted - p(deep, prompt, "Polish")) > 0.2 * p(deep, prompt, "Polish"), "the noise did something"
    assert restored == pytest.approx(p(deep, prompt, "Polish"), rel=1e-5)


def test_restoring_layer_0_from_the_subject_on_gives_the_clean_run(deep, facts):
    prompt, noise = case(deep, facts[1])
    answer = answer_of(deep, prompt, "Polish")
    _, cache = deep.run_with_cache(torch.cat([prompt.tokens, answer[:-1]])[None])
    everywhere = range(prompt.subject.start, len(prompt))
    corrupt = loc_edit.corruption_hooks(prompt, noise)
    clean, corrupted = p(deep, prompt, "Polish"), p(deep, prompt, "Polish", corrupt)
    hooks = corrupt + loc_edit.restoration_hooks(cache, layers=[0], pos=everywhere, site="resid_post")
    assert abs(corrupted - clean) > 0.1 * clean
    assert p(deep, prompt, "Polish", hooks) == pytest.approx(clean, rel=1e-4)
    some = corrupt + loc_edit.restoration_hooks(cache, layers=[0], pos=list(everywhere)[:1], site="resid_post")
    assert p(deep, prompt, "Polish", some) != pytest.approx(clean, rel=1e-3)


def test_positions_before_the_subject_cannot_matter(deep, facts):
    prompt, noise = case(deep, facts[1])
    assert prompt.subject.start > 0
    trace = loc_edit.trace(deep, prompt, "Polish", noise=noise)
    before, after = trace.p_restored[:, : prompt.subject.start], trace.p_restored[:, prompt.subject.start :]
    assert torch.equal(before, torch.full_like(before, trace.p_corrupted))
    assert trace.effect[:, : prompt.subject.start].abs().max() < 1e-7
    assert not torch.isclose(after, torch.tensor(trace.p_corrupted), rtol=1e-3).all()


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 10])
def test_windows_are_clipped_and_even_ones_reach_down(window):
    for n_layers in (1, 4, 6):
        for center in range(n_layers):
            expected = [k for k in range(center - window // 2, center - window // 2 + window) if 0 <= k < n_layers]
            assert list(loc_edit.window_layers(center, window, n_layers)) == expected
    assert list(loc_edit.window_layers(20, 10, 40)) == [15, 16, 17, 18, 19, 20, 21, 22, 23, 24]


CASES = [
    ("gpt2_deep", "mlp_out", 1, 0),
    ("gpt2_deep", "mlp_out", 2, 1),
    ("gpt2_deep", "mlp_out", 3, 2),
    ("gpt2_deep", "mlp_out", 10, 1),
    ("gpt2_deep", "attn_out", 4, 3),
    ("gpt2_deep", "resid_post", 1, 1),
    ("gpt2", "attn.hook_z", 2, 1),
    ("gpt2", "hook_resid_mid", 1, 0),
    ("gpt2", "hook_resid_pre", 1, 0),
    ("gpt2", "mlp.hook_post", 2, 3),
    ("llama", "mlp_out", 2, 1),
    ("llama", "attn_out", 3, 0),
    ("gptj", "mlp_out", 3, 1),
    ("gptj", "resid_post", 1, 3),
    ("gemma3", "mlp_out", 2, 1),
]


@pytest.mark.parametrize(("shape", "site", "window", "which"), CASES)
def test_slow_equals_fast(shapes, facts, shape, site, window, which):
    model, fact = shapes[shape], facts[which]
    prompt, noise = case(model, fact)
    answer = answer_of(model, prompt, fact.target_true)
    fast = loc_edit.trace(model, prompt, fact.target_true, noise=noise, site=site, window=window)
    clean, corrupted, grid = oracles.trace(
        model, prompt.tokens, prompt.subject, answer, noise, site, window, oracles.probability
    )
    scale = max(clean, corrupted)
    assert (grid - corrupted).abs().max() > 0.01 * scale, "restoring did something"
    assert fast.p_clean == pytest.approx(clean, rel=1e-4)
    assert fast.p_corrupted == pytest.approx(corrupted, rel=1e-4)
    torch.testing.assert_close(fast.p_restored.double(), grid, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(fast.effect.double(), grid - corrupted, rtol=1e-3, atol=2e-4 * scale)


def test_other_metrics_equal_the_slow_version(tiny, facts):
    prompt, noise = case(tiny, facts[2])
    answer, foil = answer_of(tiny, prompt, "Switzerland"), answer_of(tiny, prompt, "Norway")
    assert len(answer) > 1

    def difference(logits, n_prompt, answer):
        return logits[n_prompt - 1, answer[0]] - logits[n_prompt - 1, foil[0]]

    for metric, by_hand in (("log_probability", oracles.sequence_log_prob), ("logit_difference", difference)):
        fast = loc_edit.trace(tiny, prompt, "Switzerland", noise=noise, window=2, metric=metric, foil="Norway")
        clean, corrupted, grid = oracles.trace(
            tiny, prompt.tokens, prompt.subject, answer, noise, "mlp_out", 2, by_hand
        )
        assert fast.metric == metric
        assert fast.p_clean == pytest.approx(clean, abs=1e-4)
        assert fast.p_corrupted == pytest.approx(corrupted, abs=1e-4)
        torch.testing.assert_close(fast.p_restored.double(), grid, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [0, 3])
def test_window_1_agrees_with_transformer_lens_patching(deep, facts, which):
    """`get_act_patch_mlp_out`, one noise sample at a time, averaged."""
    fact = facts[which]
    prompt, noise = case(deep, fact)
    token = answer_of(deep, prompt, fact.target_true)[:1]
    _, clean = deep.run_with_cache(prompt.tokens[None])
    grids = []
    for eps in noise:

        def corrupt(value, hook, eps=eps):
            value = value.clone()
            value[:, prompt.subject] += eps
            return value

        with deep.hooks(fwd_hooks=[("hook_embed", corrupt)]):
            grids.append(
                get_act_patch_mlp_out(
                    deep, prompt.tokens[None], clean, lambda logits: logits[0, -1].softmax(-1)[token[0]]
                )
            )
    trace = loc_edit.trace(deep, prompt, token, noise=noise, window=1)
    torch.testing.assert_close(trace.p_restored, torch.stack(grids).mean(0), rtol=1e-4, atol=1e-7)


def test_the_public_hooks_make_the_same_cell(deep, facts):
    prompt, noise = case(deep, facts[1])
    answer = answer_of(deep, prompt, "Polish")
    _, cache = deep.run_with_cache(torch.cat([prompt.tokens, answer[:-1]])[None])
    trace = loc_edit.trace(deep, prompt, "Polish", noise=noise, window=3)
    pos = prompt.last_subject
    hooks = loc_edit.corruption_hooks(prompt, noise)
    hooks += loc_edit.restoration_hooks(cache, layers=loc_edit.window_layers(2, 3, 4), pos=[pos])
    assert p(deep, prompt, "Polish", hooks) == pytest.approx(trace.p_restored[2, pos].item(), rel=1e-4)
    assert p(deep, prompt, "Polish", hooks[:1]) == pytest.approx(trace.p_corrupted, rel=1e-4)


def test_corruption_hooks_take_one_row_one_per_sample_or_groups(tiny, facts):
    prompt, noise = case(tiny, facts[0])
    hooks = loc_edit.corruption_hooks(prompt, noise)
    outputs = {}
    for rows in (1, K, 2 * K):
        with tiny.hooks(fwd_hooks=hooks):
            outputs[rows] = tiny(prompt.tokens.repeat(rows, 1))
    torch.testing.assert_close(outputs[1], outputs[K])
    torch.testing.assert_close(outputs[2 * K], outputs[K].repeat(2, 1, 1))
    with pytest.raises(ValueError, match="3 noise samples do not fit a batch of 2 rows"), tiny.hooks(fwd_hooks=hooks):
        tiny(prompt.tokens.repeat(2, 1))


def test_batch_size_does_not_matter(deep, facts):
    prompt, noise = case(deep, facts[0])
    one, some, all_at_once = (
        loc_edit.trace(deep, prompt, "Paris", noise=noise, batch_size=b).p_restored for b in (1, 2 * K + 1, 10_000)
    )
    torch.testing.assert_close(one, all_at_once, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(some, all_at_once, rtol=1e-5, atol=1e-8)


def test_the_users_own_hooks_still_fire(deep, facts):
    """An ablation of one head, added by the user, is part of all three runs."""
    prompt, noise = case(deep, facts[1])
    answer = answer_of(deep, prompt, "Polish")

    def ablate(value, hook):
        value = value.clone()
        value[:, :, 0] = 0
        return value

    plain = loc_edit.trace(deep, prompt, "Polish", noise=noise, window=2)
    for layer in (0, 3):
        mine = [(f"blocks.{layer}.attn.hook_z", ablate)]
        with deep.hooks(fwd_hooks=mine):
            fast = loc_edit.trace(deep, prompt, "Polish", noise=noise, window=2)
            clean, corrupted, grid = oracles.trace(
                deep, prompt.tokens, prompt.subject, answer, noise, "mlp_out", 2, oracles.probability
            )
        assert clean != pytest.approx(plain.p_clean, rel=1e-3)
        assert fast.p_clean == pytest.approx(clean, rel=1e-4)
        assert fast.p_corrupted == pytest.approx(corrupted, rel=1e-4)
        torch.testing.assert_close(fast.p_restored.double(), grid, rtol=1e-4, atol=1e-7)
    assert loc_edit.trace(deep, prompt, "Polish", noise=noise, window=2).p_clean == plain.p_clean, "no hook was left"
    assert not any(point.fwd_hooks for point in deep.hook_dict.values())


def test_degenerate_fractions_are_nan_and_flagged(tiny, facts):
    prompt, noise = case(tiny, facts[1], scale=0.0)
    trace = loc_edit.trace(tiny, prompt, "Polish", noise=noise)
    assert trace.degenerate
    assert trace.fraction.isnan().all()
    assert trace.by_layer().isnan().all()
    assert trace.by_layer("last_subject").isnan().all()
    assert trace.to_frame()["degenerate"].all()
    assert not trace.effect.isnan().any()


def made_up(p_clean, p_corrupted, p_restored, prompt):
    return loc_edit.Trace(prompt, "x", p_clean, p_corrupted, torch.tensor(p_restored), 1, "mlp_out")


def test_effect_fraction_and_regressors_by_hand(tiny):
    prompt = find_subject(tiny, "The train", "train", fact_id=4)
    n_before = prompt.subject.start
    assert (n_before, prompt.subject.stop) == (1, 2)
    trace = made_up(0.6, 0.2, [[0.2, 0.4, 0.8], [0.2, 0.0, 0.1]], prompt)
    torch.testing.assert_close(trace.effect, torch.tensor([[0.0, 0.2, 0.6], [0.0, -0.2, -0.1]]))
    torch.testing.assert_close(trace.fraction, torch.tensor([[0.0, 0.5, 1.5], [0.0, -0.5, -0.25]]))
    torch.testing.assert_close(trace.by_layer(), torch.tensor([1.5, 0.0]))  # floored at 0
    torch.testing.assert_close(trace.by_layer("last_subject"), torch.tensor([0.5, -0.5]))  # not floored
    torch.testing.assert_close(trace.by_layer(denominator="max"), torch.tensor([1.0, 0.0]))
    assert not trace.degenerate
    rises = made_up(0.2, 0.6, [[0.6, 0.4, 0.2], [0.6, 0.6, 0.7]], prompt)  # noise that helps: sign kept, no abs()
    torch.testing.assert_close(rises.by_layer(), torch.tensor([1.0, 0.0]))
    assert made_up(0.5, 0.5 - 9e-7, [[0.5, 0.5, 0.5]], prompt).degenerate
    assert not made_up(0.5, 0.5 - 3e-6, [[0.5, 0.5, 0.5]], prompt).degenerate
    for call in (lambda: trace.by_layer("mean"), lambda: trace.fractions("mean")):
        with pytest.raises((ValueError, TypeCheckError), match="'mean'"):  # a checker of types sees it first
            call()


def test_to_frame_is_one_row_a_cell(tiny, facts):
    prompt, noise = case(tiny, facts[1])
    trace = loc_edit.trace(tiny, prompt, "Polish", noise=noise, window=2)
    frame = trace.to_frame()
    assert {
        "fact_id", "layer", "pos", "window", "site", "metric", "p_restored", "p_clean", "p_corrupted",
        "subject_begin", "subject_end", "token", "degenerate",
    } <= set(frame)  # fmt: skip
    assert len(frame) == 2 * len(prompt)
    assert not frame.duplicated(["layer", "pos"]).any()
    for row in frame.itertuples():
        assert math.isclose(row.p_restored, trace.p_restored[row.layer, row.pos].item())
        assert row.token == tiny.tokenizer.decode([prompt.tokens[row.pos].item()])
    assert set(frame["fact_id"]) == {1}
    assert (frame["subject_begin"].iloc[0], frame["subject_end"].iloc[0]) == (prompt.subject.start, prompt.subject.stop)


def test_bad_arguments_are_refused_and_named(tiny, facts):
    prompt, noise = case(tiny, facts[1])

    def refused(match, target="Polish", **changes):
        with pytest.raises((ValueError, TypeCheckError), match=match):
            loc_edit.trace(tiny, prompt, target, **{"noise": noise, **changes})

    refused("expected window to be an integer of at least 1 and at most 128, got 0", window=0)
    refused("site 'mlp_in_out'.*hook point", site="mlp_in_out")
    refused("hook_pattern", site="attn.hook_pattern")
    refused("hook_result", site="attn.hook_result")  # a hook point that never fires unless the model is told to
    refused("'perplexity'", metric="perplexity")
    refused("foil", metric="logit_difference")
    refused("empty", target=" ")
    refused("fact 1: noise of shape", noise=noise[:, :1])
    refused("exceed the context", target="x" * 60)
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values()), "a refusal leaves no hook behind"


def test_logits_that_are_not_numbers_name_the_fact(make_model, facts, caplog):
    model = make_model(n_layers=3)
    with torch.no_grad():
        model.unembed.W_U[:, 3] = float("nan")
    prompt, noise = case(model, facts[1])
    with pytest.raises(ValueError, match="fact 1: its trace is not a number, as the model's logits are NaN"):
        loc_edit.trace(model, prompt, "Polish", noise=noise)
    [[found]] = loc_edit.trace_many(model, [prompt], ["Polish"], noises=[noise], windows=[1])
    assert "fact 1: its trace is not a number" in caplog.text  # a grid goes on with its other facts
    assert found.degenerate
    assert found.to_frame()["p_restored"].isna().any()


def test_resid_post_takes_a_window_of_1(deep, facts):
    prompt, noise = case(deep, facts[0])
    wide = loc_edit.trace(deep, prompt, "Paris", noise=noise, site="resid_post", window=5)
    assert wide.window == 1
    narrow = loc_edit.trace(deep, prompt, "Paris", noise=noise, site="resid_post", window=1)
    assert torch.equal(wide.p_restored, narrow.p_restored)


def test_a_trace_prints_and_plots_itself(tiny, facts):
    prompt, noise = case(tiny, facts[1])
    trace = loc_edit.trace(tiny, prompt, "Polish", noise=noise)
    said = repr(trace)
    assert "Polish" in said
    assert "mlp_out" in said
    assert "tensor" not in said
    assert trace._repr_png_().startswith(b"\x89PNG")


@pytest.mark.skipif(VERSION >= 4, reason="a bridge's positions are a parameter of full length under another name")
def test_a_prompt_and_its_target_may_fill_the_context_exactly(make_model, facts):
    fact, target, wide = facts[0], "Parisian", make_model(n_ctx=64)
    n_target = len(loc_edit.target_tokens(wide, fact.prompt, target))
    assert n_target > 1
    n = len(loc_edit.encode(wide, fact)) + n_target - 1
    traces = []
    for n_ctx in (64, n):
        model = make_model(n_ctx=n_ctx)
        with torch.no_grad():
            model.W_pos[:n] = wide.W_pos[:n]
            for name, p in model.named_parameters():
                if "W_pos" not in name:
                    p.copy_(wide.get_parameter(name))
        prompt = loc_edit.encode(model, fact)
        noise = loc_edit.subject_noise(model, prompt, scale=1.5, samples=3)
        traces.append(loc_edit.trace(model, prompt, target, noise=noise, window=1).p_restored)
    torch.testing.assert_close(*traces)
    short = make_model(n_ctx=n - 1)
    prompt = loc_edit.encode(short, fact)
    noise = loc_edit.subject_noise(short, prompt, scale=1.5, samples=3)
    with pytest.raises(loc_edit.BadPrompt, match=rf"exceed the context: {n} tokens, expected at most {n - 1}"):
        loc_edit.trace(short, prompt, target, noise=noise, window=1)
