"""Hooks that a user has set are part of what is computed: a warning says so, and no cache keeps what they did."""

import warnings

import pytest
import torch

import loc_edit
from loc_edit.models.adapter import VERSION

PLACE = "blocks.0.hook_mlp_out"


@pytest.fixture
def hooked(tiny):
    """The model with the first layer's MLP silenced."""
    with tiny.hooks(fwd_hooks=[(PLACE, lambda value, hook: torch.zeros_like(value))]):
        yield tiny


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path))
    return tmp_path


def test_tracing_editing_and_scoring_warn_and_name_the_hook_point(hooked, facts, stats_of):
    fact = facts[0]
    prompt = loc_edit.encode(hooked, fact)
    noise = loc_edit.subject_noise(hooked, prompt, scale=0.5)
    request = loc_edit.pose(fact, "error_injection", hooked)
    with pytest.warns(UserWarning, match=PLACE):
        loc_edit.trace(hooked, prompt, fact.target_true, noise=noise)
    with pytest.warns(UserWarning, match=PLACE):
        loc_edit.rome(hooked, request, layer=1, stats=stats_of(hooked), contexts=["{}"])
    with pytest.warns(UserWarning, match=PLACE):
        loc_edit.score(hooked, fact, request, essence=False)


def test_a_model_without_hooks_is_traced_without_a_warning(tiny, facts):
    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loc_edit.trace(tiny, prompt, facts[0].target_true, noise=noise)


@pytest.mark.skipif(VERSION >= 4, reason="a bridge has hooks of its own outside its hook points")
def test_a_hook_that_is_no_hook_point_s_is_found_too(tiny, facts):
    handle = tiny.blocks[0].mlp.register_forward_hook(lambda module, given, output: output)
    try:
        with pytest.warns(UserWarning, match="outside its hook points"):
            loc_edit.answers(tiny, facts, n_tokens=1)
    finally:
        handle.remove()


def test_answers_of_a_hooked_model_are_not_taken_for_the_model_s_own(tiny, facts, cache):
    with (
        tiny.hooks(fwd_hooks=[(PLACE, lambda value, hook: torch.zeros_like(value))]),
        pytest.warns(UserWarning, match=PLACE),
    ):
        silenced = loc_edit.answers(tiny, facts, n_tokens=3)
    assert not (cache / "answers").exists()
    own = loc_edit.answers(tiny, facts, n_tokens=3)
    assert [answer.p_true for answer in own] != [answer.p_true for answer in silenced]
    with (
        tiny.hooks(fwd_hooks=[(PLACE, lambda value, hook: torch.zeros_like(value))]),
        pytest.warns(UserWarning, match=PLACE),
    ):
        assert loc_edit.answers(tiny, facts, n_tokens=3) == silenced  # nor are the model's own answers taken for these


def test_key_statistics_of_a_hooked_model_are_not_cached(tiny, cache):
    texts = ["The bridge is long and old.", "Anna lives in Rome, near the river."]
    own = loc_edit.key_stats(tiny, [1], texts, tokens=20)
    with (
        tiny.hooks(fwd_hooks=[(PLACE, lambda value, hook: torch.zeros_like(value))]),
        pytest.warns(UserWarning, match=PLACE),
    ):
        silenced = loc_edit.key_stats(tiny, [1], texts, tokens=20)
    assert not torch.equal(own.second_moment(1), silenced.second_moment(1))
    assert torch.equal(loc_edit.key_stats(tiny, [1], texts, tokens=20).second_moment(1), own.second_moment(1))
