"""MEMIT: closed forms against dense solves, the slow version, one fact and many."""

import oracles
import pytest
import torch
from conftest import POST_NORM
from edit_requests import ask, likely, mixed, p, relative

import loc_edit
from loc_edit import MemitSettings
from loc_edit.editing.memit import joint_factors
from loc_edit.models.adapter import VERSION
from loc_edit.prompts.randomness import generator

SETTINGS = MemitSettings(steps=5, moment_weight=3.0)


@pytest.mark.parametrize("objective", ["raise", "lower"])
@pytest.mark.parametrize("which", [1, 2])
def test_the_slow_version_agrees(editable, facts, stats_of, moments, contexts, objective, which):
    request = ask(editable, facts[which]) if objective == "raise" else likely(editable, facts[which])
    layers = [0, 1]
    fast = loc_edit.memit(editable, request, layers, stats=stats_of(editable), contexts=contexts, settings=SETTINGS)
    before = [q.clone() for q in editable.parameters()]
    slow = oracles.memit(editable, request, layers, moments(editable), contexts, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(before, editable.parameters(), strict=True))
    assert fast.layers == (0, 1)
    for layer in layers:
        assert slow[layer].norm() > 1e-3, "there was something to do"
        assert relative(fast.delta(layer), slow[layer]) < 1e-3


@pytest.mark.parametrize("shape", ["gpt2_deep", *POST_NORM])
def test_the_slow_version_agrees_under_noise(shapes, shape, facts, stats_of, moments, contexts):
    model = shapes[shape]
    prompt = loc_edit.encode(model, facts[1])
    noise = loc_edit.subject_noise(model, prompt, scale=0.7, samples=3, seed=4)
    request, layers = ask(model, facts[1], noise=noise, noise_scale=0.7, seed=4), [0, 1]
    rows, essence = oracles.rows_of(model, request, contexts)
    lengths = [row.subject.stop - row.subject.start for row in [*rows, essence]]

    def draw(draws, n):
        return 0.7 * torch.randn(n, model.cfg.d_model, generator=draws)

    fixed_draws = generator("fixed", 4, request.fact_id, "memit")
    fixed = [noise[0], *(draw(fixed_draws, n) for n in lengths[1:])]
    fresh_draws = generator("fresh", 4, request.fact_id, "memit", layers[-1])
    slow = oracles.memit(
        model,
        request,
        layers,
        moments(model),
        contexts,
        SETTINGS,
        fixed,
        lambda step: [draw(fresh_draws, n) for n in lengths[:-1]],
    )
    fast = loc_edit.memit(model, request, layers, stats=stats_of(model), contexts=contexts, settings=SETTINGS)
    for layer in layers:
        assert relative(fast.delta(layer), slow[layer]) < 1e-3


def test_the_closed_form_is_the_dense_solve(deep, facts, stats_of, moments, contexts):
    """delta W = outer(C^-1 k, r) / (lambda + k C^-1 k) = outer((lambda C + k k^T)^-1 k, r), at the first layer."""
    request = ask(deep, facts[1])
    edit = loc_edit.memit(deep, request, [1], stats=stats_of(deep), contexts=["{}"], settings=SETTINGS)
    _, cache = deep.run_with_cache(request.prompt.tokens[None])
    k = cache["blocks.1.mlp.hook_post"][0, request.prompt.last_subject].double()
    dense = SETTINGS.moment_weight * moments(deep)[1].double() + torch.outer(k, k)
    with edit.applied(deep):
        _, after = deep.run_with_cache(request.prompt.tokens[None])
    name, pos = "blocks.1.hook_resid_post", request.prompt.last_subject
    moved = (after[name] - cache[name])[0, pos].double()
    u = torch.linalg.solve(dense, k)
    share = (k @ u).item()  # of the residual that one layer puts in place
    assert 0 < share < 1
    wanted = torch.outer(u, moved / share).float()
    assert relative(edit.delta(1), wanted) < 1e-3


@pytest.mark.parametrize("n", [1, 3])
def test_joint_factors_are_the_least_squares_solution(moments, deep, stats_of, n):
    draws = torch.Generator().manual_seed(n)
    K = torch.randn(n, deep.cfg.d_mlp, generator=draws)
    R = torch.randn(n, deep.cfg.d_model, generator=draws)
    left, right = joint_factors(stats_of(deep), 2, K, R, 7.0)
    C, K64 = moments(deep)[2].double(), K.double()
    wanted = torch.linalg.solve(7.0 * C + K64.T @ K64, K64.T @ R.double()).float()
    assert relative(left @ right, wanted) < 1e-4
    # the least squares it comes from: min lambda tr(D^T C D) + ||K D - R||^2, stacked
    root = torch.linalg.cholesky(7.0 * C).T
    stacked = torch.linalg.lstsq(
        torch.cat([root, K64]), torch.cat([torch.zeros(len(C), R.shape[1], dtype=torch.float64), R.double()])
    ).solution
    assert relative(left @ right, stacked.float()) < 1e-4


def test_nearly_parallel_keys_are_solved_in_float64(deep, stats_of, moments):
    """Requests about one subject have keys that differ in the fourth digit: solved in float32, they lose all digits."""
    draws, constant = torch.Generator().manual_seed(0), 1e-5
    K = torch.randn(1, deep.cfg.d_mlp, generator=draws) + 1e-3 * torch.randn(3, deep.cfg.d_mlp, generator=draws)
    R = torch.randn(3, deep.cfg.d_model, generator=draws)
    left, right = joint_factors(stats_of(deep), 2, K, R, constant)
    K64 = K.double()
    wanted = torch.linalg.solve(constant * moments(deep)[2].double() + K64.T @ K64, K64.T @ R.double()).float()
    assert relative(left @ right, wanted) < 1e-3
    single = torch.linalg.solve(K @ left + constant * torch.eye(3), R)
    assert relative(left @ single, wanted) > 1e-2


def test_layers_of_a_joint_edit_are_a_set(deep, facts, stats_of, contexts):
    about = {"stats": stats_of(deep), "contexts": contexts, "settings": SETTINGS}
    requests = [ask(deep, fact) for fact in facts[:2]]
    up, down = (loc_edit.memit_joint(deep, requests, layers, **about) for layers in ([1, 2], [2, 1]))
    assert down.layers == up.layers
    for layer in (1, 2):
        assert torch.equal(down.delta(layer), up.delta(layer))


def test_joint_of_one_is_single(editable, facts, stats_of, contexts):
    request, layers = ask(editable, facts[1]), [0, 1]
    about = {"stats": stats_of(editable), "contexts": contexts, "settings": SETTINGS}
    single = loc_edit.memit(editable, request, layers, **about)
    joint = loc_edit.memit_joint(editable, [request], layers, **about)
    for layer in layers:
        assert relative(joint.delta(layer), single.delta(layer)) < 1e-4


@pytest.mark.parametrize(("joint", "place"), [(loc_edit.memit_joint, [0, 1]), (loc_edit.emmet_joint, 0)])
def test_nobody_writes_no_facts_into_one_edit(deep, stats_of, contexts, joint, place):
    with pytest.raises(ValueError, match="expected at least one request, got none"):
        joint(deep, [], place, stats=stats_of(deep), contexts=contexts)


def test_joint_layers_follow_the_least_squares_on_the_partly_edited_model(deep, facts, stats_of, moments, contexts):
    requests, layers = [ask(deep, f) for f in facts[:3]], [1, 2]
    edit = loc_edit.memit_joint(
        deep,
        requests,
        layers,
        stats=stats_of(deep),
        contexts=contexts,
        settings=MemitSettings(steps=5, moment_weight=2.0),
    )
    written = loc_edit.Edit(())
    z = None
    for i, layer in enumerate(layers):
        with written.applied(deep):
            keys, residuals = [], []
            for request in requests:
                rows, _ = oracles.rows_of(deep, request, contexts)
                ks = [oracles.read_at(deep, row, f"blocks.{layer}.mlp.hook_post") for row in rows]
                keys.append(ks[0] / 2 + torch.stack(ks[1:]).mean(0) / 2)
                residuals.append(oracles.read_at(deep, rows[0], "blocks.2.hook_resid_post"))
        K, now = torch.stack(keys).double(), torch.stack(residuals).double()
        if z is None:
            where = "blocks.2.hook_resid_post"
            z = torch.stack(
                [
                    h
                    + oracles.value_delta(
                        deep,
                        *oracles.rows_of(deep, r, contexts),
                        r,
                        where,
                        h.float(),
                        MemitSettings(steps=5),
                        last_updates=False,
                    )
                    for r, h in zip(requests, now, strict=True)
                ]
            )
        R = (z - now) / (len(layers) - i)
        wanted = torch.linalg.solve(2.0 * moments(deep)[layer].double() + K.T @ K, K.T @ R).float()
        assert relative(edit.delta(layer), wanted) < 1e-3
        written = loc_edit.Edit(tuple(u for u in edit.updates if u.layer <= layer))


@pytest.mark.parametrize("noised", [False, True])
def test_batched_is_one_at_a_time(editable, facts, stats_of, contexts, noised):
    requests = mixed(editable, facts)
    requests = requests if noised else [r for r in requests if r.noise is None]
    about = {"stats": stats_of(editable), "contexts": contexts, "settings": SETTINGS}
    together = loc_edit.memit(editable, requests, [0, 1], **about)
    for request, edit in zip(requests, together, strict=True):
        alone = loc_edit.memit(editable, request, [0, 1], **about)
        assert edit.about == alone.about
        for layer in (0, 1):
            assert relative(edit.delta(layer), alone.delta(layer)) < 1e-3


def test_noise_of_scale_0_is_no_noise(deep, facts, stats_of, contexts):
    clean = ask(deep, facts[1])
    noised = ask(deep, facts[1], noise=torch.zeros(3, 2, deep.cfg.d_model), noise_scale=0.0)
    a, b = (
        loc_edit.memit(deep, r, [0, 1], stats=stats_of(deep), contexts=contexts, settings=SETTINGS)
        for r in (clean, noised)
    )
    for layer in (0, 1):
        assert relative(b.delta(layer), a.delta(layer)) < 1e-3


@pytest.mark.skipif(VERSION >= 4, reason="the numbers suit the random weights of TransformerLens 3")
def test_probability_moves_the_way_that_was_asked(deep, facts, stats_of, contexts):
    settings = MemitSettings(steps=15, moment_weight=0.1, clamp=2.0)
    up, down = ask(deep, facts[1]), likely(deep, facts[1])
    about = {"stats": stats_of(deep), "contexts": contexts, "settings": settings}
    for request, better in ((up, lambda q, p0: q > 2 * p0), (down, lambda q, p0: q < 0.8 * p0)):
        edit, before = loc_edit.memit(deep, request, [0, 1, 2], **about), p(deep, request)
        with edit.applied(deep):
            assert better(p(deep, request), before)


def test_lower_has_no_extra_update_and_a_larger_lambda_edits_less(deep, facts, stats_of, contexts):
    about = {"stats": stats_of(deep), "contexts": contexts}
    one = MemitSettings(steps=1)
    for objective in ("raise", "lower"):
        edit = loc_edit.memit(deep, ask(deep, facts[1], objective), [0, 1], settings=one, **about)
        assert edit.norm == pytest.approx(0.0, abs=1e-5)
    light, heavy = (
        loc_edit.memit(deep, ask(deep, facts[1]), [1], settings=MemitSettings(steps=5, moment_weight=w), **about)
        for w in (1.0, 1e4)
    )
    assert heavy.norm < 0.1 * light.norm


def test_layers_are_a_set_and_refusals_name_the_reason(deep, facts, stats_of, contexts):
    request = ask(deep, facts[1])
    about = {"stats": stats_of(deep), "contexts": contexts, "settings": SETTINGS}
    a, b = (loc_edit.memit(deep, request, layers, **about) for layers in ([2, 0, 1], [0, 1, 2]))
    assert a.layers == b.layers == (0, 1, 2)
    assert all(torch.equal(a.delta(k), b.delta(k)) for k in range(3))
    with pytest.raises(ValueError, match=r"layers \[7\].*0 to 3"):
        loc_edit.memit(deep, request, [1, 7], **about)
    with pytest.raises(ValueError, match="layers"):
        loc_edit.memit(deep, request, [], **about)
