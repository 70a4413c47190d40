"""The editors beside ROME, MEMIT and constrained fine-tuning: what their theorems say, batches, the grid."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict

import oracles
import pytest
import torch
from conftest import POST_NORM
from edit_requests import ask, at_last_subject, relative
from runs import edited

import loc_edit
from loc_edit import (
    AlphaEditSettings,
    DecayFinetuneSettings,
    EmmetSettings,
    FinetuneSettings,
    FreeFinetuneSettings,
    RomeSettings,
    RRomeSettings,
)
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.settings import SETTINGS, resolve_settings
from loc_edit.editing.update import edit_hooks
from loc_edit.names import METHODS, WAYS_OF, method_label, parse_method

STEPS = 5


@pytest.mark.parametrize("name", ["rome", "r_rome", "emmet", "memit", "alphaedit", "finetune"])
def test_an_editor_shows_its_name_its_text_and_its_parameters(name):
    editor = getattr(loc_edit, name)
    assert editor.__name__ == name
    assert "dit of " in editor.__doc__
    shown = inspect.signature(editor)
    place = "layer" if METHODS[name].one_layer else "layers"
    texts = ["stats", "contexts"] if METHODS[name].contexts else []
    more = ["earlier"] if "kept" in WAYS_OF.get(name, ()) else []
    assert list(shown.parameters) == ["model", "request", place, *texts, "settings", *more]
    assert shown.parameters["request"].annotation == loc_edit.EditRequest | Sequence[loc_edit.EditRequest]
    assert shown.return_annotation == loc_edit.Edit | list[loc_edit.Edit]


def test_one_request_makes_an_edit_and_a_sequence_makes_a_list(deep, facts):
    request, settings = ask(deep, facts[1]), FinetuneSettings(steps=2)
    one = loc_edit.finetune(model=deep, request=request, layers=[1], settings=settings)
    (many,) = loc_edit.finetune(deep, request=(request,), layers=[1], settings=settings)
    assert torch.equal(one.delta(1), many.delta(1))
    assert loc_edit.finetune(deep, [], [1]) == []
    with pytest.raises(TypeError, match="layer"):
        loc_edit.finetune(deep, request, layer=1)


def given(model, stats_of, contexts):
    return {"stats": stats_of(model), "contexts": contexts}


def mean_key(model, request, contexts, layer):
    rows, _ = oracles.rows_of(model, request, contexts)
    name = f"blocks.{layer}.mlp.hook_post"
    return torch.stack([oracles.read_at(model, row, name) for row in rows]).mean(0)


def cost(delta, moment):
    """The change of what the old keys read out, mean square."""
    return (delta.T @ moment @ delta).trace().item()


def assert_least(delta, keys, moment):
    """No other change that reads out the same at `keys` changes less of what the old keys read out."""
    draws = torch.Generator().manual_seed(0)
    onto_keys = torch.linalg.pinv(keys.double()) @ keys.double()
    for size in (0.01, 0.1, 1.0):
        other = size * delta.norm() * torch.randn(delta.shape, generator=draws).double() / delta.numel() ** 0.5
        other -= onto_keys @ other  # reads out nothing at the keys
        assert cost(delta.double() + other, moment.double()) > cost(delta.double(), moment.double())


@pytest.mark.parametrize("which", ["bare", "mean"])
def test_one_key_reads_out_v_star_at_the_least_change(editable, facts, stats_of, moments, contexts, which):
    layer, request = 1, ask(editable, facts[1])
    settings = RRomeSettings(steps=STEPS, key=which)
    edit = loc_edit.r_rome(editable, request, layer, **given(editable, stats_of, contexts), settings=settings)
    bare = at_last_subject(editable, request, f"blocks.{layer}.mlp.hook_post")
    key = bare if which == "bare" else mean_key(editable, request, contexts, layer)
    delta = edit.delta(layer)
    rows, essence = oracles.rows_of(editable, request, contexts)
    where, start = oracles.value_start(editable, rows[0], layer)
    change = oracles.value_delta(editable, rows, essence, request, where, start, settings, last_updates=False)
    assert change.norm() > 0.1 * start.norm(), "there was something to do"
    torch.testing.assert_close(oracles.through_W_out(editable, layer, key, delta), start + change, rtol=2e-3, atol=2e-3)
    assert_least(delta, key[None], moments(editable)[layer])
    assert edit.about["method"] == "r_rome"


def test_with_the_bare_prompt_alone_rome_and_r_rome_agree(deep, facts, stats_of, contexts):
    request = ask(deep, facts[1])
    alone, settings = given(deep, stats_of, ["{}"]), {"steps": STEPS}
    rome = loc_edit.rome(deep, request, 1, **alone, settings=RomeSettings(**settings))
    for key in ("bare", "mean"):
        other = loc_edit.r_rome(deep, request, 1, **alone, settings=RRomeSettings(**settings, key=key))
        assert relative(other.delta(1), rome.delta(1)) < 1e-5
    full = given(deep, stats_of, contexts)
    rome = loc_edit.rome(deep, request, 1, **full, settings=RomeSettings(**settings))
    other = loc_edit.r_rome(deep, request, 1, **full, settings=RRomeSettings(**settings))
    assert relative(other.delta(1), rome.delta(1)) > 1e-2
    with pytest.raises(ValueError, match="settings of r_rome: expected key to be 'bare' or 'mean', got 'first'"):
        resolve_settings("r_rome", "fact_erasure", {"r_rome": {"key": "first"}})


def test_emmet_reads_out_every_value_at_the_least_change(deep, facts, stats_of, moments, contexts):
    layer, requests = 1, [ask(deep, fact) for fact in facts[:3]]
    settings = EmmetSettings(steps=STEPS)
    joint = loc_edit.emmet_joint(deep, requests, layer, **given(deep, stats_of, contexts), settings=settings)
    alone = loc_edit.emmet(deep, requests, layer, **given(deep, stats_of, contexts), settings=settings)
    mlp, delta = deep.blocks[layer].mlp, joint.delta(layer)
    keys = torch.stack([mean_key(deep, request, contexts, layer) for request in requests])
    wanted = torch.stack([key @ (mlp.W_out + one.delta(layer)) for key, one in zip(keys, alone, strict=True)])
    assert (wanted - keys @ mlp.W_out).norm() > 0.1, "there was something to do"
    torch.testing.assert_close(keys @ (mlp.W_out + delta), wanted, rtol=1e-3, atol=1e-3)
    together = sum(one.delta(layer) for one in alone)
    assert (keys @ (mlp.W_out + together) - wanted).norm() > 1e-2, "one by one they disturb each other"
    assert torch.linalg.matrix_rank(delta, rtol=1e-5) == 3
    assert_least(delta, keys, moments(deep)[layer])
    assert [said["fact_id"] for said in joint.about["requests"]] == [0, 1, 2]


def test_emmet_of_one_fact_is_r_rome_with_the_mean_key(deep, facts, stats_of, contexts):
    request, both = ask(deep, facts[2]), given(deep, stats_of, contexts)
    emmet = loc_edit.emmet(deep, request, 1, **both, settings=EmmetSettings(steps=STEPS))
    joint = loc_edit.emmet_joint(deep, [request], 1, **both, settings=EmmetSettings(steps=STEPS))
    r_rome = loc_edit.r_rome(deep, request, 1, **both, settings=RRomeSettings(steps=STEPS, key="mean"))
    assert relative(emmet.delta(1), r_rome.delta(1)) < 1e-4
    assert relative(joint.delta(1), r_rome.delta(1)) < 1e-4


@pytest.mark.parametrize("share", [0.3, 2.0])
def test_alphaedit_leaves_what_is_used_and_fits_the_rest(deep, facts, stats_of, moments, contexts, share):
    """Against least squares in the free directions: min ||k D - r||^2 + ||D||^2 over D = P D, at a single layer."""
    layer, request = 2, ask(deep, facts[1])
    settings = AlphaEditSettings(steps=STEPS, null_space=share)
    edit = loc_edit.alphaedit(deep, request, [layer], **given(deep, stats_of, contexts), settings=settings)
    values, vectors = torch.linalg.eigh(moments(deep)[layer].double())
    free = values < share * values.mean()
    assert 0 < free.sum() < len(values)
    delta = edit.delta(layer).double()
    assert delta.norm() > 1e-3
    used = vectors[:, ~free].T
    assert (used @ delta).norm() < 1e-5 * delta.norm(), "what the old keys use is left alone"
    rows, _ = oracles.rows_of(deep, request, contexts)
    name = f"blocks.{layer}.mlp.hook_post"
    keys = torch.stack([oracles.read_at(deep, row, name) for row in rows]).double()
    key = (keys[0] + keys[1:].mean(0)) / 2
    # r is what the same request wants where nothing is held back: MEMIT's numerator, from its own update.
    plain = loc_edit.memit(
        deep,
        request,
        [layer],
        **given(deep, stats_of, contexts),
        settings=loc_edit.MemitSettings(steps=STEPS, moment_weight=1e-9),
    )
    wanted = key @ plain.delta(layer).double()
    basis = vectors[:, free]
    stacked = torch.cat([(key @ basis)[None], torch.eye(int(free.sum()), dtype=torch.float64)])
    zeros = torch.zeros(int(free.sum()), len(wanted), dtype=torch.float64)
    best = basis @ torch.linalg.lstsq(stacked, torch.cat([wanted[None], zeros])).solution
    assert relative(delta, best) < 1e-3


def test_alphaedit_says_where_no_direction_is_free(deep, facts, stats_of, contexts):
    with pytest.raises(ValueError, match=r"layer 1: the old keys use every direction: .* null_space is 0.001"):
        loc_edit.alphaedit(
            deep,
            ask(deep, facts[1]),
            [1, 2],
            **given(deep, stats_of, contexts),
            settings=AlphaEditSettings(steps=2, null_space=1e-3),
        )


@pytest.mark.parametrize("settings", [FreeFinetuneSettings(steps=6), DecayFinetuneSettings(steps=6, weight_decay=40.0)])
def test_fine_tuning_without_a_box_equals_the_slow_version(deep, facts, settings):
    request = ask(deep, facts[1])
    edit = loc_edit.finetune(deep, request, [1], settings=settings)
    slow = oracles.finetune(deep, request, [1], settings)
    assert relative(edit.delta(1), slow[1][0]) < 1e-3
    boxed = loc_edit.finetune(deep, request, [1], settings=FinetuneSettings(steps=6))
    assert edit.delta(1).abs().max() > 2 * boxed.delta(1).abs().max()


def test_decay_holds_the_weights_back(deep, facts):
    request = ask(deep, facts[1])
    norms = [
        loc_edit.finetune(deep, request, [1], settings=DecayFinetuneSettings(steps=20, weight_decay=decay)).norm
        for decay in (0.0, 10.0, 100.0)
    ]
    free = loc_edit.finetune(deep, request, [1], settings=FreeFinetuneSettings(steps=20)).norm
    assert norms[0] == free
    assert norms[0] > 1.05 * norms[1] > 1.05 * norms[2] > 0


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("shape", ["gpt2_deep", *POST_NORM])
def test_every_method_edits_many_as_one_at_a_time(shapes, shape, facts, stats_of, contexts, name):
    model = shapes[shape]
    requests = [ask(model, fact) for fact in facts]
    layers = [1] if METHODS[name].one_layer else [0, 1]
    more = given(model, stats_of, contexts) if METHODS[name].contexts else {}
    settings = SETTINGS[name](steps=3, **({"null_space": 1.0} if name == "alphaedit" else {}))
    edits = EDITORS[name](model, requests, layers, settings=settings, **more)
    for request, edit in zip(requests, edits, strict=True):
        (alone,) = EDITORS[name](model, [request], layers, settings=settings, **more)
        assert edit.layers == tuple(layers)
        assert edit.norm > 0
        for layer in layers:
            assert relative(edit.delta(layer), alone.delta(layer)) < 1e-3
    tokens = requests[0].prompt.tokens.expand(len(edits), -1)
    with model.hooks(fwd_hooks=edit_hooks(model, edits, torch.arange(len(edits)))):
        hooked = model(tokens)
    for edit, logits in zip(edits, hooked, strict=True):
        with edit.applied(model):
            torch.testing.assert_close(logits, model(tokens[:1])[0], rtol=1e-3, atol=1e-3)
    assert EDITORS[name](model, [], layers, settings=settings, **more) == []


def test_methods_and_settings_have_the_same_names():
    assert set(METHODS) == set(SETTINGS) == set(EDITORS)
    assert parse_method("alphaedit") == ("alphaedit", 5)
    assert parse_method("alphaedit-3") == ("alphaedit", 3)
    assert parse_method("finetune_free-5") == ("finetune_free", 5)
    with pytest.raises(ValueError, match=r"method 'emmet-3': expected a window of exactly 1 layer"):
        parse_method("emmet-3")
    assert asdict(FreeFinetuneSettings())["eps"] == math.inf


@pytest.mark.slow
def test_every_method_is_in_the_grid(lab, facts, tmp_path):
    methods = ("r_rome", "emmet", "alphaedit-2", "finetune_free-1", "finetune_decay-2")
    wide = {"alphaedit": {"null_space": 1.0}}
    run = lab(methods=methods, problems=("error_injection", "fact_forcing"), windows=(1,), settings=wide).run()
    rows = edited(run)
    assert set(zip(rows["method"], rows["window"], strict=True)) == {parse_method(name) for name in methods}
    assert (rows["status"] == "done").all()
    assert rows.groupby(["problem", "method"])["rewrite"].max().gt(0).all()
    labels = [method_label(*parse_method(name)) for name in methods]
    assert labels == ["R-ROME", "EMMET", "AlphaEdit (window 2)", "FT-1 free", "FT-2 decay"]
    assert len(loc_edit.fits(run.frame())) == len(methods) * 2
