"""The fast path of tracing: many prompts and windows in one sweep, exactly what each is by itself."""

import logging

import oracles
import pytest
import torch
from hypothesis import given, strategies as st

import loc_edit
from loc_edit.localization import groups as groups_room, sweep as sweep_room
from loc_edit.localization.sweep import LOCAL, plan
from loc_edit.localization.tracing import trace, trace_many
from loc_edit.models.adapter import VERSION, lens
from loc_edit.models.memory import Budget

SHAPES = {
    "local": {"n_layers": 4, "use_local_attn": True, "attn_types": ["local"] * 2 + ["global"] * 2, "window_size": 3},
    "neox": {
        "n_layers": 3,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": False,
    },
    "grouped": {
        "n_layers": 3,
        "n_heads": 4,
        "n_key_value_heads": 2,
        "d_head": 4,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "final_rms": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "default_prepend_bos": True,
    },
    "alibi": {"n_layers": 3, "positional_embedding_type": "alibi"},
    "split": {"n_layers": 3, "use_split_qkv_input": True, "use_hook_mlp_in": True, "use_attn_result": True},
}


@pytest.fixture(scope="module")
def cases(facts):
    """model -> prompts of several lengths, their targets, and noises of 3 and of 2 samples."""

    def make(model, which=range(4)):
        chosen = [facts[i] for i in which]
        prompts = [loc_edit.encode(model, fact) for fact in chosen]
        noises = [
            loc_edit.subject_noise(model, prompt, scale=1.5, samples=3 - i % 2) for i, prompt in enumerate(prompts)
        ]
        return prompts, [fact.target_true for fact in chosen], noises

    return make


def slow(model, prompt, target, noise, site, window):
    answer = loc_edit.target_tokens(model, prompt.text, target)
    return oracles.trace(model, prompt.tokens, prompt.subject, answer, noise, site, window)


LOG = {"metric": "log_probability"}  # the probability of many random tokens is next to nothing


def assert_equals_the_oracle(model, found, prompt, target, noise, site, window):
    clean, corrupted, grid = slow(model, prompt, target, noise, site, window)
    assert (grid - corrupted).abs().max() > 0.01, "restoring did something"
    assert (found.window, found.site, found.prompt) == (window, site, prompt)
    assert found.p_clean == pytest.approx(clean, abs=1e-4)
    assert found.p_corrupted == pytest.approx(corrupted, abs=1e-4)
    torch.testing.assert_close(found.p_restored.double(), grid, rtol=0, atol=1e-4)


def assert_equal(many, others, atol=1e-5):
    """Log-probabilities of two calls."""
    for some, same in zip(many, others, strict=True):
        for one, other in zip(some, same, strict=True):
            assert (one.window, one.prompt) == (other.window, other.prompt)
            assert (one.p_restored - one.p_corrupted).abs().max() > 1e-2
            assert one.p_clean == pytest.approx(other.p_clean, abs=atol)
            assert one.p_corrupted == pytest.approx(other.p_corrupted, abs=atol)
            torch.testing.assert_close(one.p_restored, other.p_restored, rtol=1e-6, atol=atol)


@pytest.fixture
def paddings(monkeypatch):
    """Collects whether batches had pasts of several lengths, one entry a batch."""
    seen = []

    def watched(units, steps):
        seen.append(units.padded)
        return sweep_room.sweep(units, steps)

    monkeypatch.setattr(groups_room, "sweep", watched)
    return seen


@pytest.mark.parametrize(
    ("shape", "site"),
    [
        ("gpt2_deep", "mlp_out"),
        ("gpt2_deep", "resid_post"),
        ("gptj", "mlp_out"),
        ("llama", "attn_out"),
        ("local", "mlp_out"),
        ("local", "attn.hook_k"),
        ("neox", "mlp_out"),
        ("neox", "attn.hook_rot_k"),
        ("grouped", "mlp_out"),
        ("alibi", "mlp_out"),
        ("split", "attn.hook_z"),
    ],
)
def test_many_prompts_in_one_batch_equal_the_slow_version(shapes, make_model, cases, paddings, shape, site):
    if site == "attn.hook_rot_k" and VERSION >= 4:
        pytest.skip("TransformerLens 4 has this hook point for some architectures only")
    model = make_model(7, **SHAPES[shape]) if shape in SHAPES else shapes[shape]
    prompts, targets, noises = cases(model)
    windows = [1] if site == "resid_post" else [1, 3]
    found = trace_many(model, prompts, targets, noises=noises, site=site, windows=windows, **LOG)
    assert (True in paddings) == lens.takes_past(model), "pasts of several lengths were in one batch"
    assert len({len(prompt) for prompt in prompts}) > 1
    for i in (1, 2):
        mine = found[i][-1]
        assert_equals_the_oracle(model, mine, prompts[i], targets[i], noises[i], site, windows[-1])


@pytest.mark.slow
def test_each_trace_is_what_it_is_alone(deep, cases):
    prompts, targets, noises = cases(deep)
    for site in ("mlp_out", "attn.hook_v"):
        together = trace_many(deep, prompts, targets, noises=noises, site=site, windows=[1, 2, 5], **LOG)
        alone = [
            [trace(deep, p, target, noise=noise, site=site, window=w, **LOG) for w in (1, 2, 5)]
            for p, target, noise in zip(prompts, targets, noises, strict=True)
        ]
        assert [[found.target for found in some] for some in together] == [[target] * 3 for target in targets]
        assert_equal(together, alone, atol=5e-5)


@pytest.mark.parametrize("site", LOCAL)
def test_a_local_site_may_enter_above_its_first_layer(deep, cases, monkeypatch, site):
    prompts, targets, noises = cases(deep)
    fast = trace_many(deep, prompts, targets, noises=noises, site=site, windows=[1, 3], **LOG)
    monkeypatch.setattr(groups_room, "LOCAL", ())
    whole = trace_many(deep, prompts, targets, noises=noises, site=site, windows=[1, 3], **LOG)
    assert_equal(fast, whole, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 60, 10**6])
def test_batch_size_does_not_matter(deep, cases, batch_size):
    prompts, targets, noises = cases(deep)
    want = trace_many(deep, prompts, targets, noises=noises, windows=[2, 3], **LOG)
    got = trace_many(deep, prompts, targets, noises=noises, windows=[2, 3], batch_size=batch_size, **LOG)
    assert_equal(want, got, atol=5e-5)
    chances = [trace_many(deep, prompts, targets, noises=noises, batch_size=size) for size in (None, batch_size)]
    for (one,), (other,) in zip(*chances, strict=True):
        torch.testing.assert_close(one.p_restored, other.p_restored, rtol=0, atol=1e-5)


def test_the_same_call_gives_the_same_bits(deep, cases):
    prompts, targets, noises = cases(deep)
    first, second = (trace_many(deep, prompts, targets, noises=noises) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0].p_restored, b[0].p_restored)
        assert (a[0].p_clean, a[0].p_corrupted) == (b[0].p_clean, b[0].p_corrupted)


def set_position(where):
    def hook(value, hook):
        value = value.clone()
        value[:, where] = 0.1
        return value

    return hook


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("blocks.1.hook_mlp_out", set_position(3)),
        ("blocks.2.hook_resid_mid", set_position(-1)),
        ("blocks.0.hook_resid_pre", lambda value, hook: value + torch.linspace(-1, 1, 16)),
        ("blocks.1.attn.hook_pattern", lambda value, hook: value**2),
    ],
)
def test_hooks_of_the_user_may_count_positions(deep, cases, name, hook):
    """They see whole rows of one prompt, once a layer, though restored runs are tails of many."""
    prompts, targets, noises = cases(deep, [1, 2])
    plain = trace_many(deep, prompts, targets, noises=noises, windows=[2], **LOG)
    with deep.hooks(fwd_hooks=[(name, hook)]):
        found = trace_many(deep, prompts, targets, noises=noises, windows=[2], **LOG)
        for (mine,), (other,), *case in zip(found, plain, prompts, targets, noises, strict=True):
            assert abs(mine.p_corrupted - other.p_corrupted) > 0.01
            assert_equals_the_oracle(deep, mine, *case, "mlp_out", 2)
    assert not any(point.fwd_hooks for point in deep.hook_dict.values())


def test_a_hook_on_a_module_counts_as_one(deep, cases):
    prompts, targets, noises = cases(deep, [1])
    handle = deep.blocks[1].register_forward_hook(lambda module, inputs, output: set_position(2)(output, None))
    try:
        ((found,),) = trace_many(deep, prompts, targets, noises=noises, windows=[2], **LOG)
        assert_equals_the_oracle(deep, found, prompts[0], targets[0], noises[0], "mlp_out", 2)
    finally:
        handle.remove()


ranges = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.sets(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).map(lambda pair: tuple(sorted(pair))), min_size=1
        ),
    )
)


@given(ranges, st.booleans())
def test_a_plan_restores_each_run_in_its_layers_and_nowhere_else(case, entered):
    n_layers, chosen = case
    runs = sorted(chosen)
    states: list[tuple[frozenset[int], int]] = []  # layers restored so far, first layer
    for step in plan(runs, n_layers, entered=entered):
        done = {step.layer - 1} if entered else set()
        new = (frozenset(done), step.layer - entered)
        states = [(*states, new)[i] for i in step.source]
        if step.layer < n_layers:
            states = [(s | {step.layer} if i < step.n_restored else s, f) for i, (s, f) in enumerate(states)]
        assert len(set(states)) == len(states), "no state is computed twice"
    assert [(set(restored), first) for restored, first in states] == [
        (set(range(first, last + 1)), first) for first, last in runs
    ]


class Small:
    """A memory that holds so many token positions."""

    def __init__(self, work, size, error):
        self.work, self.size, self.error, self.refused = work, size, error, 0

    def __call__(self, model, residual, layer, past, mask=None):
        if residual.shape[0] * residual.shape[1] > self.size:
            self.refused += 1
            raise self.error
        return self.work(model, residual, layer, past, mask)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail] can't allocate memory"),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(deep, cases, monkeypatch, caplog, error):
    prompts, targets, noises = cases(deep)
    want = trace_many(deep, prompts, targets, noises=noises, windows=[1, 3], **LOG)
    memory = Small(sweep_room._block, 100 if lens.takes_past(deep) else 200, error)  # tails or whole rows
    monkeypatch.setattr(sweep_room, "_block", memory)
    with caplog.at_level(logging.WARNING, logger="loc_edit"):
        got = trace_many(deep, prompts, targets, noises=noises, windows=[1, 3], **LOG)
    assert memory.refused > 1
    assert "out of memory: going on with" in caplog.text
    assert "token positions at a time" in caplog.text
    assert_equal(want, got, atol=5e-5)
    assert 0 < got[0][0].batch_size < want[0][0].batch_size


def test_where_one_run_does_not_fit_the_error_comes_through(deep, cases, monkeypatch):
    prompts, targets, noises = cases(deep)
    no_memory = Small(sweep_room._block, 1, torch.OutOfMemoryError("out of memory"))
    monkeypatch.setattr(sweep_room, "_block", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        trace_many(deep, prompts, targets, noises=noises)
    assert not any(point.fwd_hooks for point in deep.hook_dict.values())


def test_models_that_would_be_computed_wrongly_are_refused(make_model, cases):
    for shape, match in (
        ({"positional_embedding_type": "shortformer"}, "shortformer"),
        ({"attention_dir": "bidirectional"}, "bidirectional"),
    ):
        model = make_model(3, **shape)
        prompts, targets, noises = cases(model)
        with pytest.raises(ValueError, match=match):
            trace_many(model, prompts, targets, noises=noises)
    tall = make_model(3, n_heads=7)  # as many heads as the prompt has positions
    prompts, targets, noises = cases(tall, [1])
    assert len(prompts[0]) == 7
    with pytest.raises(ValueError, match="hook_attn_scores"):
        trace_many(tall, prompts, targets, noises=noises, site="attn.hook_attn_scores")


def test_a_budget_gives_every_item_once_and_other_errors_pass(tiny):
    for n, cost, most in ((10, 3, None), (10, 100, None), (0, 1, None), (7, 1, 2)):
        given_out = []
        Budget(tiny, 20).spend(n, cost, lambda some, out=given_out: out.append(list(range(100))[some]), most)
        assert [i for some in given_out for i in some] == list(range(n))
        assert all(len(some) <= (most or max(1, 20 // cost)) for some in given_out)

    def fail(some):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Budget(tiny, 20).spend(3, 1, fail)


def test_metrics_of_many(deep, cases):
    prompts, targets, noises = cases(deep)
    foils = ["Rome", "French", "Norway", "city"]
    for metric in ("log_probability", "logit_difference"):
        found = trace_many(deep, prompts, targets, noises=noises, metric=metric, foils=foils, windows=[2])
        for i, (mine,) in enumerate(found):
            alone = trace(deep, prompts[i], targets[i], noise=noises[i], metric=metric, foil=foils[i], window=2)
            torch.testing.assert_close(mine.p_restored, alone.p_restored, rtol=1e-5, atol=1e-5)
            assert mine.p_clean == pytest.approx(alone.p_clean, abs=1e-5)
            assert mine.metric == metric


def test_lists_of_different_lengths_and_bad_facts_are_named(deep, cases):
    prompts, targets, noises = cases(deep)
    assert trace_many(deep, [], [], noises=[]) == []
    with pytest.raises(ValueError, match="expected lists of one length, got 4 prompts, 3 targets, 4 noises"):
        trace_many(deep, prompts, targets[:3], noises=noises)
    with pytest.raises(ValueError, match="fact 2: noise of shape"):
        trace_many(deep, prompts, targets, noises=[*noises[:2], noises[2][:, :1], noises[3]])
    with pytest.raises(ValueError, match="fact 1: metric 'logit_difference' needs a foil"):
        trace_many(deep, prompts, targets, noises=noises, metric="logit_difference", foils=["Rome", None, "a", "b"])
    with pytest.raises(ValueError, match=r"window to be .*got 0"):
        trace_many(deep, prompts, targets, noises=noises, windows=[3, 0])
