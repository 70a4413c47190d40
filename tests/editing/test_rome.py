"""ROME: what the theorem says, what the settings say, and the slow version."""

from dataclasses import replace

import oracles
import pytest
import torch
from conftest import POST_NORM
from edit_requests import ask, at_last_subject, likely, mixed, p, relative

import loc_edit
from loc_edit import RomeSettings
from loc_edit.models.adapter import VERSION
from loc_edit.prompts.randomness import generator

SETTINGS = RomeSettings(steps=5)


def test_k_star_reads_out_v_star_by_a_change_of_rank_1(editable, facts, stats_of, contexts):
    layer, request = 1, ask(editable, facts[1])
    key = at_last_subject(editable, request, f"blocks.{layer}.mlp.hook_post")
    edit = loc_edit.rome(editable, request, layer, stats=stats_of(editable), contexts=contexts, settings=SETTINGS)
    delta = edit.delta(layer)
    rows, essence = oracles.rows_of(editable, request, contexts)
    where, before = oracles.value_start(editable, rows[0], layer)
    torch.testing.assert_close(oracles.through_W_out(editable, layer, key), before)
    v_star = before + oracles.value_delta(editable, rows, essence, request, where, before, SETTINGS, last_updates=False)
    assert (v_star - before).norm() > 0.1 * before.norm(), "there was something to do"
    torch.testing.assert_close(oracles.through_W_out(editable, layer, key, delta), v_star, rtol=1e-3, atol=1e-3)
    assert torch.linalg.matrix_rank(delta, rtol=1e-5) == 1
    with edit.applied(editable):
        now = at_last_subject(editable, request, f"blocks.{layer}.hook_mlp_out")
    norm = oracles.norm_after_mlp(editable, layer)
    torch.testing.assert_close(now, norm(v_star[None])[0] if norm else v_star, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["raise", "lower"])
@pytest.mark.parametrize("which", [1, 2])
def test_the_slow_version_agrees(editable, facts, stats_of, moments, contexts, objective, which):
    request = ask(editable, facts[which]) if objective == "raise" else likely(editable, facts[which])
    assert len(request.target_tokens) > 1 or which == 1 or objective == "lower"
    layer = 1
    edit = loc_edit.rome(editable, request, layer, stats=stats_of(editable), contexts=contexts, settings=SETTINGS)
    slow = oracles.rome(editable, request, layer, moments(editable)[layer], contexts, SETTINGS)
    assert slow.norm() > 1e-3
    assert relative(edit.delta(layer), slow) < 1e-3
    assert edit.norm == pytest.approx(slow.norm().item(), rel=1e-3)


@pytest.mark.parametrize("objective", ["raise", "lower"])
@pytest.mark.parametrize("shape", ["gpt2_deep", *POST_NORM])
def test_the_slow_version_agrees_under_noise(shapes, shape, facts, stats_of, moments, contexts, objective):
    """Fact forcing draw by draw: fixed noise for keys and values, a fresh draw per row and step in the loss."""
    model = shapes[shape]
    prompt = loc_edit.encode(model, facts[1])
    noise = loc_edit.subject_noise(model, prompt, scale=0.7, samples=3, seed=4)
    request = ask(model, facts[1], objective, noise=noise, noise_scale=0.7, seed=4)
    layer, length = 1, noise.shape[1:]
    rows, essence = oracles.rows_of(model, request, contexts)
    lengths = [row.subject.stop - row.subject.start for row in [*rows, essence]]

    def draw(draws, n):
        return 0.7 * torch.randn(n, length[1], generator=draws)

    fixed_draws = generator("fixed", 4, request.fact_id, "rome")
    fixed = [noise[0], *(draw(fixed_draws, n) for n in lengths[1:])]
    fresh_draws = generator("fresh", 4, request.fact_id, "rome", layer)
    slow = oracles.rome(
        model,
        request,
        layer,
        moments(model)[layer],
        contexts,
        SETTINGS,
        fixed,
        lambda step: [draw(fresh_draws, n) for n in lengths[:-1]],
    )
    fast = loc_edit.rome(model, request, layer, stats=stats_of(model), contexts=contexts, settings=SETTINGS)
    assert relative(fast.delta(layer), slow) < 2e-3
    clean = loc_edit.rome(
        model, ask(model, facts[1], objective), layer, stats=stats_of(model), contexts=contexts, settings=SETTINGS
    )
    assert relative(clean.delta(layer), slow) > 0.05, "the noise did something"


@pytest.mark.parametrize("objective", ["raise", "lower"])
def test_noise_of_scale_0_is_no_noise(deep, facts, stats_of, contexts, objective):
    clean = ask(deep, facts[1], objective)
    noised = replace(clean, noise=torch.zeros(3, 2, deep.cfg.d_model), noise_scale=0.0)
    a, b = (
        loc_edit.rome(deep, r, 1, stats=stats_of(deep), contexts=contexts, settings=SETTINGS) for r in (clean, noised)
    )
    assert relative(b.delta(1), a.delta(1)) < 1e-3


@pytest.mark.skipif(VERSION >= 4, reason="the numbers suit the random weights of TransformerLens 3")
def test_probability_moves_the_way_that_was_asked(deep, facts, stats_of):
    settings = RomeSettings(steps=20, decay=0.0)  # the decay outweighs a probability of a few percent
    for fact in (facts[1], replace(facts[1], template="In the north, {} is")):
        up, down = ask(deep, fact), likely(deep, fact)
        about = {"stats": stats_of(deep), "contexts": ["{}"], "settings": settings}
        rise, fall = loc_edit.rome(deep, up, 1, **about), loc_edit.rome(deep, down, 1, **about)
        high, low = p(deep, up), p(deep, down)
        with rise.applied(deep):
            assert p(deep, up) > 2 * high
        with fall.applied(deep):
            assert p(deep, down) < 0.7 * low
        assert (p(deep, up), p(deep, down)) == (high, low)


def test_a_value_that_nothing_reads_stays_as_it_is(editable, facts, stats_of, contexts):
    """In the last layer only the essence row reads it, whose loss is at its least: no rounding for Adam to follow."""
    last, requests = editable.cfg.n_layers - 1, mixed(editable, facts)
    assert all(r.prompt.last_subject < len(r.prompt) - 1 for r in requests)
    assert any(r.noise is not None for r in requests)
    common = {"stats": stats_of(editable), "contexts": contexts, "settings": SETTINGS}
    for edit in loc_edit.rome(editable, requests, last, **common):
        assert edit.norm < 1e-5  # rounding of the value itself
    for edit in loc_edit.rome(editable, requests, last - 1, **common):
        assert edit.norm > 1e-2


@pytest.mark.parametrize("noised", [False, True])
def test_batched_is_one_at_a_time(editable, facts, stats_of, contexts, noised):
    requests = mixed(editable, facts)
    requests = requests if noised else [r for r in requests if r.noise is None]
    stats = stats_of(editable)
    together = loc_edit.rome(editable, requests, 1, stats=stats, contexts=contexts, settings=SETTINGS)
    assert isinstance(together, list)
    for request, edit in zip(requests, together, strict=True):
        alone = loc_edit.rome(editable, request, 1, stats=stats, contexts=contexts, settings=SETTINGS)
        assert relative(edit.delta(1), alone.delta(1)) < 1e-3
        assert edit.about == alone.about
    assert {e.about["fact_id"] for e in together} == {r.fact_id for r in requests}


def v_change(model, request, layer, edit):
    """How far the edit moves the MLP output of the bare prompt's subject, and where from."""
    name = f"blocks.{layer}.hook_mlp_out"
    before = at_last_subject(model, request, name)
    with edit.applied(model):
        return (at_last_subject(model, request, name) - before).norm().item(), before.norm().item()


def test_the_clamp_binds_where_it_is_small(deep, facts, stats_of, contexts):
    request, stats = ask(deep, facts[1]), stats_of(deep)

    def moved(**changes):
        settings = RomeSettings(**{"steps": 8, **changes})
        edit = loc_edit.rome(deep, request, 1, stats=stats, contexts=contexts, settings=settings)
        return v_change(deep, request, 1, edit)

    far, v0 = moved(clamp=100.0)
    assert far > 0.3 * v0
    for clamp in (0.05, 0.2):
        near, v0 = moved(clamp=clamp)
        assert near == pytest.approx(clamp * v0, rel=1e-3)
    assert moved(steps=1)[0] == pytest.approx(0.0, abs=1e-5), "the last of `steps` forwards does not update"


@pytest.mark.skipif(VERSION >= 4, reason="the numbers suit the random weights of TransformerLens 3")
@pytest.mark.parametrize(("noised", "loss"), [(False, 7.0), (True, 8.0)])
def test_early_stop_leaves_each_request_as_it_is_then(deep, facts, stats_of, contexts, noised, loss):
    """Alone or in company, a request that stopped has the edit of the steps that it took."""
    problem = "fact_forcing" if noised else "error_injection"
    requests = [loc_edit.pose(fact, problem, deep, noise_scale=0.5) for fact in facts]

    def edits(some, **settings):
        chosen = loc_edit.RomeSettings(**{"clamp": 50.0, "lr": 2.0, "decay": 0.0, "kl": 0.0, **settings})
        return loc_edit.rome(deep, some, 1, stats=stats_of(deep), contexts=contexts, settings=chosen)

    after = [edits(requests, steps=steps) for steps in range(1, 9)]
    stopped = edits(requests, steps=8, early_stop=loss)
    taken = []
    for i, one in enumerate(stopped):
        gaps = [(one.delta(1) - some[i].delta(1)).norm().item() / (1 + one.norm) for some in after]
        taken.append(gaps.index(min(gaps)))
        assert min(gaps) < 1e-4
        torch.testing.assert_close(
            edits([requests[i]], steps=8, early_stop=loss)[0].delta(1), one.delta(1), rtol=1e-3, atol=1e-4
        )
    assert len(set(taken)) > 1  # else nothing stopped before the others
    for one, other in zip(edits(requests, steps=8, early_stop=1e9), after[0], strict=True):
        torch.testing.assert_close(one.delta(1), other.delta(1))  # none took a step


def test_one_step_of_lower_does_update(deep, facts, stats_of, contexts):
    edit = loc_edit.rome(
        deep,
        ask(deep, facts[1], "lower"),
        1,
        stats=stats_of(deep),
        contexts=contexts,
        settings=RomeSettings(steps=1),
    )
    assert edit.norm > 1e-3


def test_the_essence_row_and_the_decay_hold_back(deep, facts, stats_of, contexts):
    request, stats = ask(deep, facts[1]), stats_of(deep)
    name = "blocks.1.hook_mlp_out"
    _, essence = oracles.rows_of(deep, request, contexts)

    def outcome(**changes):
        settings = RomeSettings(**{"steps": 12, "lr": 0.2, "decay": 0.0, "kl": 0.0, "clamp": 50.0, **changes})
        edit = loc_edit.rome(deep, request, 1, stats=stats, contexts=contexts, settings=settings)
        with edit.applied(deep):
            value = at_last_subject(deep, request, name)
        delta = value - at_last_subject(deep, request, name)

        def log_probs(d):
            with oracles.adding(deep, name, essence.last_subject, d):
                return deep(essence.tokens[None])[0, essence.last_subject].log_softmax(-1)

        now, then = log_probs(delta), log_probs(0 * delta)
        return (now.exp() * (now - then)).sum().item(), delta.norm().item()

    free = outcome()
    assert free[0] > 0.01
    assert outcome(kl=20.0)[0] < 0.3 * free[0]
    assert outcome(decay=100.0)[1] < 0.7 * free[1]


def test_the_length_of_the_moments_cancels(deep, facts, moments, contexts):
    request = ask(deep, facts[1])
    one, hundred = (
        loc_edit.rome(
            deep,
            request,
            1,
            stats=loc_edit.KeyStats.from_moments({1: c * moments(deep)[1]}, n_tokens=9999),
            contexts=contexts,
            settings=SETTINGS,
        )
        for c in (1.0, 100.0)
    )
    assert relative(hundred.delta(1), one.delta(1)) < 1e-4


def test_the_edit_remembers_what_it_is(deep, facts, stats_of, contexts):
    edit = loc_edit.rome(deep, ask(deep, facts[1]), 2, stats=stats_of(deep), contexts=contexts, settings=SETTINGS)
    assert edit.layers == (2,)
    about = edit.about
    assert (about["method"], about["fact_id"], about["target"], about["objective"]) == ("rome", 1, "French", "raise")
    assert about["settings"]["steps"] == 5
    assert about["model"] == loc_edit.fingerprint(deep)
    assert not any(point.fwd_hooks for point in deep.hook_dict.values())
    assert not any(q.requires_grad for q in deep.parameters())


def test_refusals(deep, facts, stats_of, moments, contexts):
    request, stats = ask(deep, facts[1]), stats_of(deep)
    with pytest.raises(ValueError, match=r"layers \[4\].*0 to 3"):
        loc_edit.rome(deep, request, 4, stats=stats, contexts=contexts)
    with pytest.raises(ValueError, match=r"layers \[-1\]"):
        loc_edit.rome(deep, request, -1, stats=stats, contexts=contexts)
    one = loc_edit.KeyStats.from_moments({1: moments(deep)[1]}, n_tokens=9999)
    with pytest.raises(loc_edit.BadKeyStats, match="layer 2: no key statistics"):
        loc_edit.rome(deep, request, 2, stats=one, contexts=contexts)
    for wrong in ([], ["It rained. {}"]):
        with pytest.raises(ValueError, match="bare"):
            loc_edit.rome(deep, request, 1, stats=stats, contexts=wrong)
    with pytest.raises(ValueError, match=r"fact 1: .* does not fit the context"):
        loc_edit.rome(deep, request, 1, stats=stats, contexts=["{}", "q" * 70 + " {}"])


def test_numbers_that_are_not_finite_name_the_fact(make_model, facts, stats_of, contexts):
    model = make_model(n_layers=3)
    with torch.no_grad():
        model.unembed.W_U[:, 3] = float("nan")
    with pytest.raises(loc_edit.EditFailed, match="fact 1"):
        loc_edit.rome(model, ask(model, facts[1]), 1, stats=stats_of(model), contexts=contexts, settings=SETTINGS)
