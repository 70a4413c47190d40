"""The five problems as a table: what each asks of a fact, and which facts it refuses."""

from dataclasses import replace

import oracles
import pytest
import torch

import loc_edit
from loc_edit import NotEligible
from loc_edit.editing.problems import TARGETS


def next_token_probs(model, prompt, noise=None):
    """The next token's distribution, one pass per noise sample."""
    samples = [None] if noise is None else noise
    rows = [
        model.run_with_hooks(prompt.tokens[None], fwd_hooks=oracles.add_noise(eps, prompt.subject))[0, -1].softmax(-1)
        for eps in samples
    ]
    return torch.stack(rows).mean(0)


def word(model, token):
    return model.tokenizer.decode([token]).strip()


def known(model, fact):
    """The fact with a true object that the model finds likely: a whole word among its likeliest next tokens."""
    prompt = loc_edit.encode(model, fact)
    probs = next_token_probs(model, prompt)
    for token in probs.argsort(descending=True).tolist():
        ids = loc_edit.target_tokens(model, fact.prompt, word(model, token)).tolist() if word(model, token) else []
        if ids == [token]:
            return replace(fact, target_true=word(model, token)), probs[token].item()
    raise AssertionError("no likely word")


def test_the_table_of_problems_is_the_studys():
    rows = {
        name: (TARGETS[name].__name__, row.objective, row.subject_noised, row.noise)
        for name, row in loc_edit.PROBLEMS.items()
    }
    assert rows == {
        "error_injection": ("target_new", "raise", False, False),
        "tracing_reversal": ("noised_output", "raise", False, True),
        "fact_erasure": ("target_true", "lower", False, False),
        "fact_amplification": ("target_true", "raise", False, False),
        "fact_forcing": ("target_true", "raise", True, False),
    }


def test_injection_and_amplification_ask_for_a_target_on_the_clean_prompt(tiny, facts):
    for problem, target in (("error_injection", "Norway and Sweden"), ("fact_amplification", "Switzerland")):
        request = loc_edit.pose(facts[2], problem, tiny)
        assert (request.target, request.objective, request.noise) == (target, "raise", None)
        assert request.target_tokens.tolist() == loc_edit.target_tokens(tiny, facts[2].prompt, target).tolist()
        assert request.prompt == loc_edit.encode(tiny, facts[2])
        assert request.fact_id == 2


def test_erasure_takes_known_facts_only(tiny, facts, monkeypatch):
    fact, p = known(tiny, facts[1])
    assert p > 0.02
    request = loc_edit.pose(fact, "fact_erasure", tiny)
    assert (request.target, request.objective, request.noise) == (fact.target_true, "lower", None)
    with pytest.raises(NotEligible, match=r"fact 2: p\('Switzerland'\) = 0.0000 < 0.02"):
        loc_edit.pose(facts[2], "fact_erasure", tiny)
    monkeypatch.setattr("loc_edit.editing.problems.MIN_ERASURE", p * 1.01)
    with pytest.raises(NotEligible, match="nothing to erase"):
        loc_edit.pose(fact, "fact_erasure", tiny)
    monkeypatch.setattr("loc_edit.editing.problems.MIN_ERASURE", p * 0.99)
    loc_edit.pose(fact, "fact_erasure", tiny)


def test_reversal_asks_for_the_argmax_of_the_mean_noised_distribution(deep, facts):
    told_apart = 0
    for fact in facts:
        prompt = loc_edit.encode(deep, fact)
        for seed in range(6):
            noise = loc_edit.subject_noise(deep, prompt, scale=3.0, samples=3, seed=seed)
            probs = next_token_probs(deep, prompt, noise)
            alone = torch.stack([next_token_probs(deep, prompt, eps[None]) for eps in noise])
            told_apart += alone.log().mean(0).argmax() != probs.argmax()  # the mean of distributions, not of logits
            request = loc_edit.pose(fact, "tracing_reversal", deep, noise=noise)
            assert request.target_tokens.tolist() == [probs.argmax().item()], "one token, never encoded again"
            assert request.target == word(deep, probs.argmax().item())
            assert (request.objective, request.noise) == ("raise", None), "the input is clean"
    assert told_apart
    prompt = loc_edit.encode(deep, facts[1])
    drawn = loc_edit.pose(facts[1], "tracing_reversal", deep, noise_scale=1.5, seed=0)
    same = loc_edit.subject_noise(deep, prompt, scale=1.5, samples=10, seed=0)
    assert drawn.target_tokens.tolist() == [next_token_probs(deep, prompt, same).argmax().item()]


def test_reversal_of_an_output_that_is_true_is_refused(make_model, facts):
    model = make_model()
    (token,) = loc_edit.target_tokens(model, facts[1].prompt, "Polish").tolist()
    with torch.no_grad():
        model.unembed.b_U[token] += 50  # whatever it is asked
    with pytest.raises(NotEligible, match="fact 1: the noised output 'Polish' is the true object already"):
        loc_edit.pose(facts[1], "tracing_reversal", model, noise_scale=0.5)
    assert loc_edit.pose(facts[0], "tracing_reversal", model, noise_scale=0.5).target == "Polish"


def test_forcing_carries_its_noise(tiny, facts):
    prompt = loc_edit.encode(tiny, facts[1])
    noise = loc_edit.subject_noise(tiny, prompt, scale=0.4, samples=5, seed=7)
    given = loc_edit.pose(facts[1], "fact_forcing", tiny, noise=noise, noise_scale=0.4, seed=7)
    assert (given.target, given.objective, given.noise_scale, given.seed) == ("Polish", "raise", 0.4, 7)
    assert given.noise is noise
    drawn = loc_edit.pose(facts[1], "fact_forcing", tiny, noise_scale=0.4, seed=7)
    assert drawn.noise.shape == (10, *noise.shape[1:])
    assert torch.equal(drawn.noise, loc_edit.subject_noise(tiny, prompt, scale=0.4, seed=7))
    with pytest.raises(ValueError, match=r"fact 1: fact_forcing .*noise_scale="):
        loc_edit.pose(facts[1], "fact_forcing", tiny, noise=noise)


@pytest.mark.parametrize("problem", ["tracing_reversal", "fact_forcing"])
def test_problems_with_noise_need_some(tiny, facts, problem):
    with pytest.raises(ValueError, match=f"fact 1: {problem} .*noise_scale="):
        loc_edit.pose(facts[1], problem, tiny)


def test_forcing_at_scale_0_is_amplification(deep, facts, stats_of, contexts):
    """With the same settings, and for fine-tuning one copy of the noise."""
    loud = loc_edit.pose(facts[1], "fact_amplification", deep)
    prompt = loud.prompt
    none = torch.zeros(1, prompt.subject.stop - prompt.subject.start, deep.cfg.d_model)
    forced = loc_edit.pose(facts[1], "fact_forcing", deep, noise=none, noise_scale=0.0)
    about = {"stats": stats_of(deep), "contexts": contexts}
    short = {"settings": loc_edit.RomeSettings(steps=4)}
    pairs = [
        [loc_edit.rome(deep, r, 1, **about, **short) for r in (loud, forced)],
        [loc_edit.memit(deep, r, [0, 1], **about, settings=loc_edit.MemitSettings(steps=4)) for r in (loud, forced)],
        [loc_edit.finetune(deep, r, [1], settings=loc_edit.FinetuneSettings(steps=4)) for r in (loud, forced)],
    ]
    for a, b in pairs:
        assert a.norm > 0
        assert (a.delta(1) - b.delta(1)).norm() < 1e-3 * a.delta(1).norm()


def test_facts_that_ask_for_nothing_are_refused_by_name(tiny, facts):
    with pytest.raises(NotEligible, match=r"fact 1: .* needs target_new"):
        loc_edit.pose(replace(facts[1], target_new=None), "error_injection", tiny)
    with pytest.raises(NotEligible, match="fact 1: target_new 'Polish' is also target_true"):
        loc_edit.pose(replace(facts[1], target_new="Polish"), "error_injection", tiny)
    with pytest.raises(ValueError, match="problem 'fact_fishing': did you mean 'fact_forcing'"):
        loc_edit.pose(facts[1], "fact_fishing", tiny)
    with pytest.raises(ValueError, match="empty"):
        loc_edit.pose(replace(facts[1], target_new="  "), "error_injection", tiny)
    assert issubclass(NotEligible, ValueError)


def test_probabilities_that_are_not_numbers_are_refused(make_model, facts):
    model = make_model()
    with torch.no_grad():
        model.unembed.W_U[:, 3] = float("nan")
    with pytest.raises(ValueError, match="fact 1"):
        loc_edit.pose(facts[1], "fact_erasure", model)
    with pytest.raises(ValueError, match="fact 1"):
        loc_edit.pose(facts[1], "tracing_reversal", model, noise_scale=0.5)
