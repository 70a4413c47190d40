"""The two real models of the package index: what they know, how they begin a text, a trace and an edit of each."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import loc_edit
from loc_edit.models.catalog import named_directory
from loc_edit.models.checks import BadModel
from loc_edit.models.model import W_out
from loc_edit.models.named import NAMED

pytestmark = pytest.mark.slow

TOWER = loc_edit.Fact(
    fact_id=1,
    template="{} is located in the city of",
    subject="The Eiffel Tower",
    target_true="Paris",
    target_new="Rome",
)


def fetched(name):
    """A named model; the test is skipped where it cannot be downloaded."""
    try:
        return loc_edit.load_model(name, accept_terms=True)
    except BadModel as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.long)])
def model(request):
    return fetched(request.param)


def test_the_eiffel_tower_is_in_paris(model):
    prompt = loc_edit.encode(model, TOWER)
    (token,) = loc_edit.target_tokens(model, TOWER.prompt, "Paris").tolist()
    with torch.inference_mode():
        probabilities = model(prompt.tokens[None])[0, -1].softmax(-1)
    assert probabilities[token] > 0.6
    assert probabilities.argmax() == token


def test_a_text_begins_as_the_model_was_trained(model):
    text = "The Eiffel Tower is located in the city of"
    prompt = loc_edit.encode(model, TOWER)
    fast = AutoTokenizer.from_pretrained(named_directory(model.cfg.model_name))
    assert prompt.tokens.tolist() == fast(text)["input_ids"]
    assert model.cfg.default_prepend_bos == (model.cfg.model_name == "gemma3-270m")


def test_the_logits_are_those_of_transformers(model):
    tokens = torch.randint(model.cfg.d_vocab, (1, 40), generator=torch.Generator().manual_seed(0))
    hf_model = AutoModelForCausalLM.from_pretrained(named_directory(model.cfg.model_name), dtype=torch.float32)
    with torch.inference_mode():
        theirs, ours = (net(tokens) for net in (hf_model, model))
        theirs, ours = theirs.logits.log_softmax(-1), ours.log_softmax(-1)
    likely = theirs > -20
    torch.testing.assert_close(ours[likely], theirs[likely], atol=1e-3, rtol=0)


def test_tracing_finds_a_site(model):
    prompt = loc_edit.encode(model, TOWER)
    noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=loc_edit.load_facts("builtin"), samples=4)
    trace = loc_edit.trace(model, prompt, "Paris", noise=noise, window=5)
    assert trace.p_corrupted < 0.3 * trace.p_clean
    assert trace.p_restored.max() > trace.p_corrupted + 0.1
    assert trace.p_restored.shape == (model.cfg.n_layers, len(prompt))


@pytest.mark.long
@pytest.mark.parametrize(("name", "layer", "least"), [("smollm2", 8, 0.9), ("gemma3-270m", 5, 0.9)])
def test_the_tower_is_moved_to_rome_and_back(name, layer, least):
    model = fetched(name)
    before = W_out(model, layer).clone()
    request = loc_edit.pose(TOWER, "error_injection", model)
    stats = loc_edit.key_stats(model, layers=[layer], tokens=20_000)
    edit = loc_edit.rome(model, request, layer=layer, stats=stats, contexts=loc_edit.sample_contexts(model))
    score = loc_edit.score(model, TOWER, request, edit)
    assert score.rewrite > least
    prompt = loc_edit.encode(model, TOWER)
    with edit.applied(model), torch.inference_mode():
        assert model.tokenizer.decode(model(prompt.tokens[None])[0, -1].argmax()).strip() == "Rome"
        assert not torch.equal(W_out(model, layer), before)
    assert torch.equal(W_out(model, layer), before)


@pytest.mark.long
def test_a_named_model_that_is_in_the_cache_needs_no_terms():
    fetched("gemma3-270m")
    assert NAMED["gemma3-270m"].terms
    assert named_directory("gemma3-270m").is_dir()
