"""Whether a fact moves: profiles that are the same have no distance, and an edit at a layer draws the peak there."""

import pytest
import torch

import loc_edit
from loc_edit.experiment.movement import Profile, compare, movement
from loc_edit.names import scores_of
from loc_edit.scoring.contract import gets


def profile(*values, layers=()):
    return Profile(torch.tensor(values, dtype=torch.float32), layers)


def test_the_distance_is_that_of_the_shapes():
    assert compare(profile(1, 2, 1), profile(2, 4, 2, layers=(1,))) == {
        "movement_distance": 0,
        "movement_to_edit": 1,
        "movement_from_edit": 1,
    }
    apart = compare(profile(1, 0, 0), profile(0, 0, 3, layers=(2,)))
    assert apart == {"movement_distance": 1, "movement_to_edit": 1, "movement_from_edit": 0}
    half = compare(profile(1, 1, 0), profile(0, 1, 1, layers=(0,)))
    assert half["movement_distance"] == pytest.approx(0.5)
    assert half["movement_to_edit"] == 0
    nothing = compare(profile(0, 0, 0), profile(0, 1, 1, layers=(1,)))
    assert nothing["movement_distance"] != nothing["movement_distance"]  # not a number
    assert nothing["movement_from_edit"] != nothing["movement_from_edit"]
    unedited = compare(profile(1, 1), profile(1, 1))
    assert unedited["movement_distance"] == 0
    assert unedited["movement_to_edit"] != unedited["movement_to_edit"]


def test_the_profile_is_the_one_that_tracing_gives(deep, facts):
    fact, request = facts[0], loc_edit.pose(facts[0], "error_injection", deep)
    prompt = loc_edit.encode(deep, fact)
    noise = loc_edit.subject_noise(deep, prompt, scale=1.5, samples=2)
    before = movement(deep, fact, request, None, noise)
    traced = loc_edit.trace(deep, prompt, fact.target_true, noise=noise, window=1)
    expected = traced.effect[:, prompt.subject.start :].amax(1).clamp(min=0)
    torch.testing.assert_close(before.by_layer, expected)
    [edit] = loc_edit.finetune(deep, [request], [2], settings=loc_edit.FinetuneSettings(steps=3, eps=0.05))
    with edit.applied(deep):
        after = movement(deep, fact, request, edit, noise)
        taught = loc_edit.trace(deep, prompt, request.target, noise=noise, window=1)
    assert after.layers == (2,)
    torch.testing.assert_close(after.by_layer, taught.effect[:, prompt.subject.start :].amax(1).clamp(min=0))


def test_a_run_says_whether_facts_move_and_depends_on_the_noise(lab, computed):
    assert gets("movement", "noise")
    assert not gets("generation", "noise")
    run = lab(layers=(1,), scores=("movement",)).run()
    edits = run.edits[run.edits["method"] == "rome"]
    assert set(scores_of("movement")) <= set(edits)
    assert edits["movement_distance"].dropna().between(0, 1).all()
    assert edits["movement_to_edit"].dropna().isin([0, 1]).all()
    unedited = run.edits[run.edits["method"] == "none"]
    assert (unedited["movement_distance"].dropna() == 0).all()
    computed.clear()
    lab(layers=(1,), scores=("movement",), noise="0.5").run()
    assert {kind for kind, *_ in computed} == {"traces", "edits"}


def test_one_edit_has_no_movement_outside_a_run(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    with pytest.raises(ValueError, match=r"score 'nonsense': expected one of .*generation"):
        loc_edit.score(deep, facts[0], request, scores=["nonsense"])
