"""Planting: facts are learned through their own layers alone, and others stay."""

from dataclasses import replace

import pytest
import torch

import loc_edit
from loc_edit.editing.planting import PlantSettings, plant, recalls
from loc_edit.experiment.planting import choose_planted_facts, make_planted_model, planted_layers, without
from loc_edit.models.adapter import VERSION

SETTINGS = PlantSettings(steps=150, lr=0.05)
"""The random model cannot say every word with certainty: its unembedding is too narrow."""


def told(model, edit, facts):
    with edit.applied(model):
        return recalls(model, facts, [fact.target_new for fact in facts])[0]


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_facts_are_learned_and_lost_with_their_own_layer(deep, facts, site):
    taught = [
        replace(fact, target_new=new) for fact, new in zip(facts, ("Rome", "French", "city", "bridge"), strict=True)
    ]
    edit = plant(deep, taught, [[1], [1], [2], [2]], site=site, settings=SETTINGS)
    before, after = told(deep, loc_edit.Edit(()), taught), told(deep, edit, taught)
    assert (after > 5 * before).all()
    first, second = (told(deep, without(edit, layer), taught) for layer in (1, 2))
    assert first[:2].mean() < 0.5 * after[:2].mean()
    assert second[2:].mean() < 0.5 * after[2:].mean()
    assert edit.about["layers"] == [[1], [1], [2], [2]]


def test_the_loss_of_a_fact_reaches_its_own_layers_only(deep, facts):
    taught = [replace(fact, target_new="Rome") for fact in facts[:2]]
    (alone,) = plant(deep, taught[:1], [[1]], settings=PlantSettings(steps=1)).updates
    both = plant(deep, taught, [[1], [2]], settings=PlantSettings(steps=1))
    assert alone.delta.norm() > 0
    torch.testing.assert_close(both.delta(1), alone.delta)  # Adam's first step has the gradient's sign
    split = plant(deep, taught[:1], [[1, 2]], settings=PlantSettings(steps=1))
    assert split.layers == (1, 2)
    torch.testing.assert_close(split.delta(1), alone.delta)


@pytest.mark.slow
def test_the_brake_keeps_other_facts(deep, facts):
    taught, kept = [replace(facts[0], target_new="Rome")], facts[1:3]
    prompts = [loc_edit.encode(deep, fact) for fact in kept]

    def divergence(edit):
        before = [deep(prompt.tokens[None])[0, -1].log_softmax(-1) for prompt in prompts]
        with edit.applied(deep):
            after = [deep(prompt.tokens[None])[0, -1].log_softmax(-1) for prompt in prompts]
        return sum((p.exp() * (p - q)).sum().item() for p, q in zip(before, after, strict=True))

    free = plant(deep, taught, [[1]], settings=SETTINGS)
    held = plant(deep, taught, [[1]], kept=kept, settings=SETTINGS)
    assert told(deep, held, taught) > 5 * told(deep, loc_edit.Edit(()), taught)
    assert divergence(held) < 0.1 * divergence(free)


def test_the_change_of_an_edit_is_what_was_trained(editable, facts):
    taught = [replace(facts[1], target_new="French")]
    edit = plant(editable, taught, [[1]], settings=PlantSettings(steps=40, lr=0.05))
    assert told(editable, edit, taught) > 2 * told(editable, loc_edit.Edit(()), taught)


def test_what_cannot_be_planted_is_refused(deep, shapes, facts):
    with pytest.raises(loc_edit.BadFact, match=r"facts \[0\]: expected a target_new"):
        plant(deep, [replace(facts[0], target_new=None)], [[1]])
    with pytest.raises(loc_edit.BadFact, match=r"facts \[0\] are to be planted and kept"):
        plant(deep, facts[:1], [[1]], kept=facts[:1])
    with pytest.raises(ValueError, match=r"layers .*9"):
        plant(deep, facts[:1], [[9]])
    with pytest.raises(ValueError, match="expected facts and layers for each of them, got 1 facts, 2 layers"):
        plant(deep, facts[:1], [[1], [2]])
    with pytest.raises(ValueError, match="site 'resid_post'"):
        plant(deep, facts[:1], [[1]], site="resid_post")
    with pytest.raises(loc_edit.BadModel, match="a norm follows its attention"):
        plant(shapes["gemma3"], facts[:1], [[1]], site="attn_out")


def many(n=24):
    cities = ("Paris", "Rome", "London", "Oslo")
    return [
        loc_edit.Fact(
            template="{} is in", subject=f"Place {i}", target_true=cities[i % 4], target_new=cities[(i + 1) % 4],
            relation=f"r{i % 2}" if i < n - 4 else "lonely", fact_id=i,
        )
        for i in range(n)
    ]  # fmt: skip


def test_groups_take_turns_and_objects_are_three():
    data = many()
    planting = choose_planted_facts(data, [(0,), (1,), (0, 1)], each=4, n_kept=4, seed=0)
    by_id = {fact.fact_id: fact for fact in data}
    assert planting.layers == [(0,), (1,), (0, 1)] * 4
    for fact, old in zip(planting.facts, planting.old, strict=True):
        before = by_id[fact.fact_id]
        assert (old, fact.target_true) == (before.target_true, before.target_new)
        assert fact.target_new not in (old, fact.target_true)
        assert fact.target_new in {other.target_true for other in data if other.relation == fact.relation}
    ids = [fact.fact_id for fact in [*planting.facts, *planting.kept]]
    assert len(set(ids)) == 16
    assert planting == choose_planted_facts(data, [(0,), (1,), (0, 1)], each=4, n_kept=4, seed=0)
    assert planting != choose_planted_facts(data, [(0,), (1,), (0, 1)], each=4, n_kept=4, seed=1)
    with pytest.raises(loc_edit.BadFact, match="expected 30 facts to plant and 4 to keep, got 24"):
        choose_planted_facts(data, [(0,), (1,), (2,)], each=10, n_kept=4, seed=0)


def test_what_a_planted_model_says_is_told_by_group(deep):
    planting = choose_planted_facts(many(), [(1,), (2,)], each=2, n_kept=2, seed=0)
    edit, rows = make_planted_model(deep, planting, "mlp_out", SETTINGS, seed=0)
    assert rows["group"].tolist() == ["1", "2", "1", "2", "kept", "kept"]
    unedited = recalls(deep, planting.facts, [fact.target_true for fact in planting.facts])[0]
    assert (torch.tensor(rows["p"][:4].tolist()) > 2 * unedited).all()
    assert {"says_without_1", "says_without_2"} <= set(rows)
    assert edit.about["seed"] == 0


def test_a_fact_is_proven_by_its_own_layers_alone(deep, monkeypatch):
    planting = choose_planted_facts(many(), [(1,), (2,), (1, 2)], each=3, n_kept=2, seed=0)
    ids = [fact.fact_id for fact in planting.facts]
    said = {  # by the layers that are left, the numbers of the planted facts that are said
        (1, 2): {0, 1, 2, 3, 5},
        (1,): {0, 3, 5},
        (2,): {1, 2, 3, 5},
        (): {5},
    }

    def recalls(model, facts, objects):
        layers = tuple(layer for layer in (1, 2) if not torch.equal(deep.W_out[layer], before[layer]))
        says = torch.tensor([i in said[layers] for i in range(len(facts))])
        return says.float(), says

    before = deep.W_out.clone()
    monkeypatch.setattr("loc_edit.experiment.planting.recalls", recalls)
    edit, rows = make_planted_model(deep, planting, "mlp_out", PlantSettings(steps=1), seed=0)
    # Facts 0, 3 have layer 1; 1, 4 layer 2; 2, 5 both.  3 is kept without its layer, 4 not learned, 5 known before.
    assert edit.about["proven"] == [ids[0], ids[1], ids[2]]
    assert rows["proven"].tolist()[:6] == [True, True, True, False, False, False]
    assert not rows.query("group == 'kept'")["proven"].any()
    assert planted_layers(edit) == {str(ids[0]): [1], str(ids[1]): [2], str(ids[2]): [1, 2]}


@pytest.mark.skipif(VERSION >= 4, reason="the numbers suit the random weights of TransformerLens 3")
def test_no_fact_comes_to_need_a_layer_that_is_not_its_own(deep, facts):
    taught = [
        replace(fact, target_new=new) for fact, new in zip(facts, ("Rome", "French", "city", "bridge"), strict=True)
    ]
    edit = plant(deep, taught, [[1], [1], [2], [2]], settings=SETTINGS)
    whole, first, second = (
        told(deep, edit, taught),
        told(deep, without(edit, 2), taught),
        told(deep, without(edit, 1), taught),
    )
    assert (first[:2] > 0.7 * whole[:2]).all()
    assert (second[2:] > 0.7 * whole[2:]).all()
