"""Subject noise: its scale, and the draws of each rule."""

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


def test_a_number_is_the_standard_deviation_of_the_noise(tiny, facts):
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
def test_a_meaningless_noise_scale_is_refused(tiny, facts, scale):
    with pytest.raises(ValueError, match=r"noise.scale"):
        loc_edit.noise_scale(tiny, scale, facts)


def test_s3_needs_a_data_set_and_samples_are_positive_and_few(tiny, facts):
    for nothing in (None, []):
        with pytest.raises(ValueError, match="give facts="):
            loc_edit.noise_scale(tiny, "s3", nothing)
    for samples in (0, 100_001):
        with pytest.raises(ValueError, match=f"samples to be .*got {samples}"):
            loc_edit.subject_noise(tiny, loc_edit.encode(tiny, facts[0]), scale=1.0, samples=samples)


def test_uniform_noise_fills_its_box(tiny, facts):
    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale="u0.2", samples=300)
    assert noise.abs().max() <= 0.2
    assert noise.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.05)
    half = loc_edit.noise_scale(tiny, "s3", facts)
    wide = loc_edit.subject_noise(tiny, prompt, scale="us3", facts=facts, samples=300)
    assert 0.95 * half < wide.abs().max() <= half


def test_full_covariance_noise_has_the_covariance_of_the_subjects(tiny, facts):
    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale="m2", facts=facts, samples=20_000)
    ids = [i for f in facts for i in tiny.tokenizer(f.subject, add_special_tokens=False)["input_ids"]]
    expected = 4 * torch.cov(tiny.embed.W_E[ids].T)
    torch.testing.assert_close(noise.flatten(0, 1).T.cov(), expected, rtol=0, atol=0.06 * expected.abs().max().item())
    assert (expected - expected.diag().diag()).abs().max() > 0.2 * expected.abs().max()  # more than a scale


def test_swapping_the_subject_gives_the_other_subjects_prompt(tiny, facts):
    fact = facts[1]
    prompt = loc_edit.encode(tiny, fact)
    other = loc_edit.Fact(template=fact.template, subject="Anna Norway", target_true="-")
    assert len(loc_edit.encode(tiny, other)) == len(prompt)
    long = loc_edit.Fact(template=fact.template, subject="A much longer name than that", target_true="-")
    pool = [fact, long, *facts]
    with pytest.raises(ValueError, match="fact 1: no other subject of 1 facts takes the place of 'Anna Kowalska'"):
        loc_edit.subject_noise(tiny, prompt, scale="swap", facts=[fact])
    noise = loc_edit.subject_noise(tiny, prompt, scale="swap", facts=[*pool, other])
    assert len(noise) >= 1
    with tiny.hooks(fwd_hooks=loc_edit.corruption_hooks(prompt, noise)):
        swapped = tiny(prompt.tokens[None])
    expected = tiny(loc_edit.encode(tiny, other).tokens[None])[0]
    assert min((row - expected).abs().max().item() for row in swapped) < 1e-4
    plain = tiny(prompt.tokens[None])[0]
    assert min((row - plain).abs().max().item() for row in swapped) > 1e-2


@pytest.mark.parametrize("scale", ["u", "m-1", "mx", "us"])
def test_rules_without_a_number_are_refused(tiny, facts, scale):
    with pytest.raises(ValueError, match=r"noise scale .* expected a finite number"):
        loc_edit.subject_noise(tiny, loc_edit.encode(tiny, facts[0]), scale=scale, facts=facts)
