"""The lenses read what a site adds at its position; translators are fitted on other subjects, and kept."""

import pytest
import torch
from asking import only, questions
from oracles import add_noise

import loc_edit
from loc_edit.localization.lens import logit_lens, tuned_lens
from loc_edit.localization.translators import Fitter, Translators, fitted_translators
from loc_edit.models.model import logits_at


def read(model, stream, token):
    return logits_at(model, stream[None]).log_softmax(-1)[0, :, token]


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
@pytest.mark.parametrize("shape", ["gpt2_deep", "gptj", "gemma3"])
def test_an_effect_is_what_the_stream_says_with_the_output_less_without_it(shapes, facts, shape, site, tuned):
    model = shapes[shape]
    asked = questions(model, facts[2], site=site)  # a target of several tokens is read by its first
    found = only(tuned_lens(asked, facts) if tuned else logit_lens(asked))
    q = only(asked.each())
    subjects = sorted(fact.subject for fact in facts)[::2]
    others = [fact for fact in facts if (fact.subject in subjects) != (facts[2].subject in subjects)]
    (own,) = fitted_translators(model, [others])

    def added(eps, layer):
        with model.hooks(fwd_hooks=add_noise(eps, q.prompt.subject)):
            _, cache = model.run_with_cache(q.prompt.tokens[None])
        stream, output = (cache[f"blocks.{layer}.hook_{name}"][0] for name in ("resid_post", site))
        both = [own.translated(some, layer) if tuned else some for some in (stream, stream - output)]
        with_output, without = (read(model, some, q.answer[0]) for some in both)
        return with_output - without

    for layer in range(model.cfg.n_layers):
        corrupted = torch.stack([added(eps, layer) for eps in q.noise]).mean(0)
        expected = added(None, layer) - corrupted
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found[layer].float(), expected, rtol=1e-3, atol=2e-4)


def test_an_affine_relation_between_streams_is_found(deep):
    draws = torch.Generator().manual_seed(0)
    d = deep.cfg.d_model
    weight, bias = torch.randn(d, d, generator=draws), torch.randn(d, generator=draws)
    streams = torch.randn(4, 4000, d, generator=draws) * torch.linspace(0.1, 10, d)  # entries of very different size
    streams[-1] = streams[1] @ weight + bias
    fitter = Fitter(deep)
    for part in streams.split(700, 1):
        fitter.add(part)
    fitted = fitter.fit()
    fresh = torch.randn(300, d, generator=draws) * torch.linspace(0.1, 10, d)
    expected = fresh @ weight + bias
    wrong = (fitted.translated(fresh, 1) - expected).norm() / expected.norm()
    assert wrong < 0.02
    torch.testing.assert_close(fitted.translated(fresh, 3), fresh)  # nothing is above the last layer
    assert (fitted.translated(fresh, 0) - expected).norm() > 0.5 * expected.norm(), "nothing to be found there"


def test_a_fit_on_few_tokens_is_the_lens_with_the_mean_added_and_on_none_an_error(deep, facts):
    fitter = Fitter(deep)
    stream = torch.randn(4, 1, deep.cfg.d_model, generator=torch.Generator().manual_seed(0)).repeat(1, 5, 1)
    fitter.add(stream)
    assert fitter.fit().weight.abs().max() < 1e-3
    torch.testing.assert_close(fitter.fit().translated(stream[0], 0), stream[-1], rtol=1e-3, atol=1e-3)
    for n in (0, 1):
        fitter = Fitter(deep)
        fitter.add(stream[:, :n])
        with pytest.raises(ValueError, match=f"at least 2 tokens to be fitted on, got {n}"):
            fitter.fit()


def test_translators_are_kept_until_the_model_or_the_prompts_change(make_model, facts, monkeypatch):
    model, fits = make_model(), []
    fit = Fitter.fit
    monkeypatch.setattr(Fitter, "fit", lambda self: fits.append(self) or fit(self))
    first = fitted_translators(model, [facts[:2], facts[2:]])
    assert fitted_translators(model, [facts[:2], facts[2:]]) is first
    assert len(fits) == 2
    assert not torch.equal(first[0].weight, first[1].weight)
    fitted_translators(model, [facts[:3], facts[3:]])
    assert len(fits) == 4
    model.blocks[0].mlp.W_out.data.mul_(1.1)
    fitted_translators(model, [facts[:3], facts[3:]])
    assert len(fits) == 6
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value * 0)]):
        hooked = fitted_translators(model, [facts[:3], facts[3:]])
    assert not torch.equal(hooked[0].weight, fitted_translators(model, [facts[:3], facts[3:]])[0].weight)


def test_the_tuned_lens_says_more_about_what_follows_than_the_logit_lens_on_other_subjects():
    model, facts = loc_edit.load_model("builtin", device="cpu"), loc_edit.load_facts("builtin")[::4]
    (fitted,) = fitted_translators(model, [facts[40:]])
    seen = {fact.subject for fact in facts[40:]}
    prompts = [loc_edit.encode(model, fact) for fact in facts[:40] if fact.subject not in seen]
    assert len(prompts) > 20
    divergence = torch.zeros(2, model.cfg.n_layers - 1)
    with torch.no_grad():
        for prompt in prompts:
            _, cache = model.run_with_cache(prompt.tokens[None], names_filter=lambda name: name.endswith("resid_post"))
            streams = [cache[f"blocks.{layer}.hook_resid_post"][0] for layer in range(model.cfg.n_layers)]
            final = logits_at(model, streams[-1][None])[0].log_softmax(-1)
            for layer, stream in enumerate(streams[:-1]):
                for i, some in enumerate((stream, fitted.translated(stream, layer))):
                    read = logits_at(model, some[None])[0].log_softmax(-1)
                    divergence[i, layer] += (final.exp() * (final - read)).sum(-1).mean() / len(prompts)
    assert (divergence[1] < divergence[0]).all()
    assert (divergence[1, :4] < 0.7 * divergence[0, :4]).all()


def test_records_have_shapes(deep, facts):
    (fitted,) = fitted_translators(deep, [facts])
    assert isinstance(fitted, Translators)
    assert fitted.weight.shape == (4, 16, 16)
