"""Subject noise: how large, drawn from what."""

import pytest
import torch

import loc_edit


def test_s3_by_hand_counts_every_occurrence(tiny, facts):
    twice = [*facts, facts[1]]  # a subject that occurs twice counts twice
    rows = []
    for fact in twice:
        ids = tiny.tokenizer(fact.subject, add_special_tokens=False)["input_ids"]  # alone, no BOS
        rows += [tiny.embed.W_E[i].double() for i in ids]
    entries = torch.cat(rows)
    std = ((entries - entries.mean()).square().sum() / (len(entries) - 1)).sqrt().item()
    assert loc_edit.noise_scale(tiny, "s3", twice) == pytest.approx(3 * std, rel=1e-9)
    assert loc_edit.noise_scale(tiny, "s0.5", twice) == pytest.approx(0.5 * std, rel=1e-9)
    assert loc_edit.noise_scale(tiny, "s3", facts) != pytest.approx(3 * std, rel=1e-9)


def test_a_number_is_itself_and_the_noise_has_that_scale(tiny, facts):
    assert loc_edit.noise_scale(tiny, 0.094) == 0.094
    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale=0.2, samples=300)
    assert noise.shape == (300, prompt.subject.stop - prompt.subject.start, tiny.cfg.d_model)
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)
    assert not loc_edit.subject_noise(tiny, prompt, scale=0.0).any()


def test_noise_is_a_function_of_seed_and_fact_not_of_order(tiny, facts):
    def draw(fact, seed=0):
        return loc_edit.subject_noise(tiny, loc_edit.encode(tiny, fact), scale=1.0, samples=2, seed=seed)

    forwards = [draw(f) for f in facts]
    torch.manual_seed(123)
    torch.randn(5)
    before = torch.random.get_rng_state()
    backwards = [draw(f) for f in reversed(facts)][::-1]
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    for a, b in zip(forwards, backwards, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(draw(facts[0]), draw(facts[0], seed=1))
    other = loc_edit.Fact(**{**vars(facts[0]), "fact_id": 99})
    assert not torch.equal(draw(facts[0]), draw(other))


def test_more_samples_scale_the_same_draws(tiny, facts):
    prompt = loc_edit.encode(tiny, facts[0])
    one, three = (loc_edit.subject_noise(tiny, prompt, scale=s, samples=2) for s in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "x3", "s", "s-1", "snan", ""])
def test_a_scale_that_means_nothing_is_refused(tiny, facts, scale):
    with pytest.raises(ValueError, match="noise scale"):
        loc_edit.noise_scale(tiny, scale, facts)


def test_s3_needs_a_data_set_and_samples_are_positive(tiny, facts):
    for nothing in (None, []):
        with pytest.raises(ValueError, match="give facts="):
            loc_edit.noise_scale(tiny, "s3", nothing)
    with pytest.raises(ValueError, match="samples 0"):
        loc_edit.subject_noise(tiny, loc_edit.encode(tiny, facts[0]), scale=1.0, samples=0)
