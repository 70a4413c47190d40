"""Constrained fine-tuning: the box, the slow version with real weights, the stop rules."""

from dataclasses import replace

import oracles
import pytest
import torch
from conftest import POST_NORM
from edit_requests import ask, likely, mixed, p, relative

import loc_edit
from loc_edit import FinetuneSettings
from loc_edit.editing import finetune as room
from loc_edit.prompts.randomness import generator

SETTINGS = FinetuneSettings(steps=6, lr=5e-3, eps=2e-2)


def agree(edit, slow):
    for layer, changes in slow.items():
        assert changes[0].norm() > 1e-4, "there was something to do"
        assert relative(edit.delta(layer), changes[0]) < 1e-3
        (update,) = [u for u in edit.updates if u.layer == layer]
        if len(changes) > 1:
            assert relative(update.bias, changes[1]) < 1e-3
        else:
            assert update.bias is None


@pytest.mark.parametrize("objective", ["raise", "lower"])
@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_the_slow_version_agrees(editable, facts, objective, layers):
    for fact in facts[1:3]:
        request = ask(editable, fact) if objective == "raise" else likely(editable, fact)
        edit = loc_edit.finetune(editable, request, layers, settings=SETTINGS)
        before = [q.clone() for q in editable.parameters()]
        agree(edit, oracles.finetune(editable, request, layers, SETTINGS))
        assert all(torch.equal(a, b) for a, b in zip(before, editable.parameters(), strict=True))


@pytest.mark.parametrize("shape", ["gpt2_deep", *POST_NORM])
def test_the_slow_version_agrees_under_noise(shapes, shape, facts):
    model = shapes[shape]
    prompt = loc_edit.encode(model, facts[1])
    noise = loc_edit.subject_noise(model, prompt, scale=0.7, samples=3, seed=4)
    request, layers = ask(model, facts[1], noise=noise, noise_scale=0.7, seed=4), [1, 2]
    draws = generator("fresh", 4, request.fact_id, "finetune", layers)

    def copies(step):
        return [0.7 * torch.randn(noise.shape[1:], generator=draws) for _ in range(3)]

    agree(
        loc_edit.finetune(model, request, layers, settings=SETTINGS),
        oracles.finetune(model, request, layers, SETTINGS, copies),
    )


@pytest.mark.parametrize("eps", [1e-4, 3e-3])
def test_every_entry_stays_in_its_box_and_reaches_the_edge(editable, facts, eps):
    edit = loc_edit.finetune(editable, ask(editable, facts[1]), [0, 1], settings=FinetuneSettings(steps=8, eps=eps))
    for update in edit.updates:
        for change in filter(lambda t: t is not None, (update.full, update.bias)):
            assert change.abs().max() <= eps
            assert change.abs().max() > 0.5 * min(eps, 8 * 5e-4)
    eps32 = torch.finfo(torch.float32).eps
    start = [editable.blocks[k].mlp.W_out.detach().clone() for k in (0, 1)]
    with edit.applied(editable):
        for k, w in zip((0, 1), start, strict=True):
            moved = (editable.blocks[k].mlp.W_out - w).abs()
            assert (moved <= eps + 2 * eps32 * w.abs()).all()


@pytest.mark.parametrize("noised", [False, True])
def test_batched_is_one_at_a_time(editable, facts, noised):
    requests = mixed(editable, facts)
    requests = requests if noised else [r for r in requests if r.noise is None]
    together = loc_edit.finetune(editable, requests, [0, 1], settings=SETTINGS)
    for request, edit in zip(requests, together, strict=True):
        alone = loc_edit.finetune(editable, request, [0, 1], settings=SETTINGS)
        assert edit.about == alone.about
        for layer in (0, 1):
            assert relative(edit.delta(layer), alone.delta(layer)) < 1e-3


def test_no_more_is_trained_together_than_memory_allows(editable, facts, monkeypatch):
    requests, layers = mixed(editable, facts), [0, 1]
    sizes, real = [], room.Training.__init__

    def count(self, model, requests, *rest):
        sizes.append(len(requests))
        real(self, model, requests, *rest)

    monkeypatch.setattr(room.Training, "__init__", count)
    together = loc_edit.finetune(editable, requests, layers, settings=SETTINGS)
    assert sum(sizes) == len(requests)
    assert max(sizes) > 1
    sizes.clear()
    each = 16 * sum(editable.blocks[layer].mlp.W_out.numel() for layer in layers)
    monkeypatch.setattr(room, "STATE_BYTES", each)
    alone = loc_edit.finetune(editable, requests, layers, settings=SETTINGS)
    assert sizes == [1] * len(requests)
    for one, other, request in zip(together, alone, requests, strict=True):
        assert one.about["fact_id"] == other.about["fact_id"] == request.fact_id
        assert all(relative(one.delta(layer), other.delta(layer)) < 1e-3 for layer in layers)


def test_batched_is_one_at_a_time_also_when_sample_counts_differ(deep, facts):
    """The loss sums over a request's own copies, however many another request has."""
    requests = []
    for fact, samples in ((facts[1], 2), (facts[0], 4)):
        noise = loc_edit.subject_noise(deep, loc_edit.encode(deep, fact), scale=0.5, samples=samples)
        requests.append(ask(deep, fact, noise=noise, noise_scale=0.5))
    together = loc_edit.finetune(deep, requests, [1], settings=SETTINGS)
    for request, edit in zip(requests, together, strict=True):
        assert relative(edit.delta(1), loc_edit.finetune(deep, request, [1], settings=SETTINGS).delta(1)) < 1e-3


def test_noise_of_scale_0_and_one_copy_is_no_noise(deep, facts):
    clean = ask(deep, facts[1])
    noised = replace(clean, noise=torch.zeros(1, 2, deep.cfg.d_model), noise_scale=0.0)
    a, b = (loc_edit.finetune(deep, r, [0, 1], settings=SETTINGS) for r in (clean, noised))
    for layer in (0, 1):
        assert relative(b.delta(layer), a.delta(layer)) < 1e-3


def test_probability_moves_the_way_that_was_asked(deep, facts):
    settings = FinetuneSettings(steps=25, lr=5e-3, eps=5e-2)
    up, down = ask(deep, facts[1]), likely(deep, facts[1])
    rise, fall = loc_edit.finetune(deep, [up, down], [1, 2], settings=settings)
    high, low = p(deep, up), p(deep, down)
    with rise.applied(deep):
        assert p(deep, up) > 3 * high
    with fall.applied(deep):
        assert p(deep, down) < 0.3 * low


def test_no_bias_is_trained_if_the_checkpoint_has_none_or_the_settings_say_so(shapes, facts):
    llama, deep = shapes["llama"], shapes["gpt2_deep"]
    (gated,) = loc_edit.finetune(llama, ask(llama, facts[1]), [1], settings=SETTINGS).updates
    (plain,) = loc_edit.finetune(deep, ask(deep, facts[1]), [1], settings=SETTINGS).updates
    (without,) = loc_edit.finetune(deep, ask(deep, facts[1]), [1], settings=replace(SETTINGS, bias=False)).updates
    assert gated.bias is None
    assert without.bias is None
    assert plain.bias is not None
    assert plain.bias.abs().max() > 0


def losses(monkeypatch, table):
    """Let the loss of step s be table[s] (per request), with the gradient of the real one."""
    calls = []
    real = room.Training.loss

    def loss(self):
        values = torch.tensor(table[len(calls)])
        calls.append(values)
        true = real(self)
        return true - true.detach() + values

    monkeypatch.setattr(room.Training, "loss", loss)
    return calls


def steps_taken(monkeypatch, model, requests, table):
    """(forward passes, Adam steps of each request) under the given losses."""
    calls = losses(monkeypatch, table)
    seen = []
    real = room.Training.step

    def step(self, loss, updating):
        seen.append(updating.tolist())
        return real(self, loss, updating)

    monkeypatch.setattr(room.Training, "step", step)
    settings = FinetuneSettings(steps=len(table), lr=1e-3, eps=1.0)
    loc_edit.finetune(model, requests, [1], settings=settings)
    monkeypatch.undo()
    return len(calls), [sum(column) for column in zip(*seen, strict=True)]


def test_small_losses_pause_and_five_in_a_row_stop(deep, facts, monkeypatch):
    up = ask(deep, facts[1])
    small, large = [1e-3], [1.0]
    assert steps_taken(monkeypatch, deep, [up], [large] * 3 + [small] * 4 + [large] * 2) == (9, [5])
    assert steps_taken(monkeypatch, deep, [up], [large] * 2 + [small] * 5 + [large] * 3) == (7, [2])
    assert steps_taken(monkeypatch, deep, [up], [small] * 9) == (5, [0])
    down = replace(up, objective="lower")
    assert steps_taken(monkeypatch, deep, [down], [small] * 7 + [large] * 2) == (9, [2])
    edge = [torch.tensor(1e-2).item()]
    assert steps_taken(monkeypatch, deep, [up], [edge] * 3) == (3, [3]), "update while loss >= 1e-2"


def test_a_stopped_request_stays_stopped_while_others_go_on(deep, facts, monkeypatch):
    """Under fresh noise a stopped request's loss may rise again; alone it would not be looked at any more."""
    requests = [ask(deep, facts[1]), ask(deep, facts[0])]
    table = [[1.0, 1.0]] * 2 + [[1e-3, 1.0]] * 5 + [[1.0, 1.0]] * 3
    assert steps_taken(monkeypatch, deep, requests, table) == (10, [2, 10])


def test_refusals(deep, facts, make_model):
    request = ask(deep, facts[1])
    with pytest.raises(ValueError, match=r"layers \[4\].*0 to 3"):
        loc_edit.finetune(deep, request, [4])
    broken = make_model(n_layers=3)
    with torch.no_grad():
        broken.unembed.W_U[:, 3] = float("nan")
    with pytest.raises(loc_edit.EditFailed, match="fact 1: the loss of fine-tuning is not finite"):
        loc_edit.finetune(broken, ask(broken, facts[1]), [1])


def test_the_default_is_the_papers(deep, facts):
    edit = loc_edit.finetune(deep, ask(deep, facts[1]), [1])
    assert edit.about["settings"] == {"steps": 25, "lr": 5e-4, "eps": 1e-4, "bias": True, "weight_decay": 0.0}
    assert edit.delta(1).abs().max() <= 1e-4
