"""The gallery in `examples/`: each file is a plug-in that does what it says."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

import loc_edit
from loc_edit.models.adapter import VERSION

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.usefixtures("registries")


def example(name):
    """The module of a file of the gallery, which registers what it defines."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def question(tiny, facts):
    """The question about a fact whose target has two tokens, in a model of two layers."""
    asked = []

    @loc_edit.localizer("ask")
    def ask(question):
        asked.append(question)
        return torch.zeros(2, len(question.prompt))

    prompt = loc_edit.encode(tiny, facts[2])
    noise = loc_edit.subject_noise(tiny, prompt, scale=1.5, samples=3)
    loc_edit.localize(tiny, prompt, facts[2].target_true, noise=noise, localizer="ask", window=1)
    rows = prompt.tokens[None]
    for _ in range(2):  # the two tokens that the model itself says next
        rows = torch.cat([rows, tiny(rows)[:, -1:].argmax(-1)], dim=1)
    return replace(asked[0], answer=rows[0, -2:])


def probability(question, hooks, rows=1):
    """p(target) of the question's prompt under hooks, in the slow and obvious way."""
    with torch.no_grad(), question.model.hooks(fwd_hooks=hooks):
        log_p = question.model(question.tokens.repeat(rows, 1))[:, len(question.prompt) - 1 :].log_softmax(-1)
    return log_p[:, range(len(question.answer)), question.answer].sum(-1).exp().double()


def test_the_effect_of_a_head_is_the_slope_of_restoring_it(question):
    effects = example("head_localizer").by_head(question)
    n = len(question.prompt)
    assert effects.shape == (2, n, question.model.cfg.n_heads)
    corrupt = loc_edit.corruption_hooks(question.prompt, question.noise)
    layer, pos, head, step = 0, question.prompt.last_subject, 1, 1e-2
    name = f"blocks.{layer}.attn.hook_z"
    _, clean = question.model.run_with_cache(question.tokens[None], names_filter=name)

    def toward_clean(z, hook):
        z = z.clone()
        z[:, pos, head] += step * (clean[name][:, pos, head] - z[:, pos, head])
        return z

    rows = len(question.noise)
    before, after = (probability(question, [*corrupt, *more], rows) for more in ([], [(name, toward_clean)]))
    assert effects[layer, pos, head].item() == pytest.approx((after - before).mean().item() / step, rel=0.1)
    assert effects[layer, pos, head].abs() > 1e-5, "there was something to measure"


@pytest.mark.skipif(VERSION >= 4, reason="the numbers suit the random weights of TransformerLens 3")
def test_the_attributions_of_a_layer_s_neurons_add_up_to_what_it_adds(question):
    attribution = example("neuron_localizer").by_neuron(question, steps=50)
    name = "blocks.1.mlp.hook_post"

    def silence(key, hook):
        return torch.zeros_like(key)

    change = probability(question, []) - probability(question, [(name, silence)])
    assert attribution[1].sum().item() == pytest.approx(change.item(), rel=0.1, abs=1e-3)
    assert change.abs().item() > 1e-3, "the layer matters"


def test_the_steps_of_the_lens_add_up_from_the_embedding_to_the_answer(question):
    steps = example("logit_lens").lens(question)
    last = len(question.prompt) - 1
    _, cache = question.model.run_with_cache(question.prompt.tokens[None])
    first = question.model.unembed(question.model.ln_final(cache["blocks.0.hook_resid_pre"])).softmax(-1)
    answer = question.model(question.prompt.tokens[None]).softmax(-1)
    expected = (answer - first)[0, last, question.answer[0]]
    torch.testing.assert_close(steps[:, last].sum(), expected)


def test_a_probe_has_not_seen_the_fact_that_it_is_asked_about(tiny, facts):
    module = example("linear_probe")
    many = [replace(facts[i % 4], fact_id=i, subject=f"{facts[i % 4].subject}{' Old' * (i // 4)}") for i in range(20)]
    objects, folds = module.train(tiny, many)
    lied_to = [replace(fact, target_true="Rome") if fact.fact_id % 5 == 2 else fact for fact in many]
    lied_to[0] = replace(lied_to[0], target_true="Rome")  # not in fold 2, so that both have the same objects
    changed_objects, changed = module.train(tiny, [*lied_to[1:]])
    _, same = module.train(tiny, many[1:])
    assert objects == sorted({fact.target_true for fact in many})
    rome = changed_objects.index("Rome")
    kept = [i for i in range(len(changed_objects)) if i != rome]
    torch.testing.assert_close(changed[2][..., kept], same[2])  # its own facts have changed, and it does not know
    assert not torch.allclose(changed[1][..., kept], same[1])
    assert len(folds) == module.FOLDS


@pytest.mark.parametrize("problem", ["error_injection", "fact_amplification", "fact_forcing"])
def test_lora_raises_the_target_by_a_change_of_the_rank_asked_for(tiny, facts, problem):
    module = example("lora_editor")
    request = loc_edit.pose(facts[0], problem, tiny, noise_scale=1.0)
    settings = module.LoraSettings(rank=2, steps=150, lr=0.1, weight_decay=0.0)
    (edit,) = module.lora(tiny, [request], [0, 1], settings=settings)
    assert [torch.linalg.matrix_rank(edit.delta(layer)).item() for layer in (0, 1)] == [2, 2]
    score = loc_edit.score(tiny, facts[0], request, edit, essence=False)
    assert score.after.rewrite > 10 * score.before.rewrite
    (again,) = module.lora(tiny, [request], [0, 1], settings=settings)
    assert torch.equal(again.delta(0), edit.delta(0))


def test_swapped_facts_have_each_other_s_object(facts):
    module = example("swap_problem")
    pair = [replace(fact, relation="one") for fact in facts[:2]]
    assert [module.swap(fact, pair) for fact in pair] == ["Polish", "Paris"]
    with pytest.raises(loc_edit.NotEligible, match="fact 0: all facts of its relation"):
        module.swap(pair[0], pair[:1])


@pytest.mark.slow
def test_the_whole_gallery_runs_in_one_grid(tmp_path):
    files = tuple(str(path) for path in sorted(EXAMPLES.glob("*.py")))
    own = ("heads", "lens", "neurons", "probe")
    config = loc_edit.ExperimentConfig(
        plugins=files,
        localizers=("causal_tracing", *own),
        methods=("lora",),
        problems=("error_injection", "swap"),
        scores=("text",),
        facts=3,
        layers=(2,),
        windows=(1,),
        settings={"lora": {"steps": 10}},
        corpus="identity",
    )
    run = loc_edit.Experiment(config).run(tmp_path / "run")
    assert set(run.traces["localizer"]) == {"causal_tracing", *own}
    assert not run.traces["p_restored"].isna().any()
    assert set(run.edits["status"]) == {"done"}
    texts = run.edits.query("method == 'lora'")["text"]
    assert (texts > 0).all()
    assert (texts != 1).any()
    assert (run.edits.query("method == 'none'")["text"] == 1).all()
