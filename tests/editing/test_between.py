"""The edit between two checkpoints: whoever changed which weights, it can be applied, saved, scored and taken back."""

from copy import deepcopy

import pytest
import torch
from checkpoints import CONFIGS, save_random
from safetensors.torch import load_file, save_file

import loc_edit
from loc_edit import Edit, EditMismatch
from loc_edit.editing.changes import MOST_RANK, parts
from loc_edit.editing.update import edit_hooks
from loc_edit.models.adapter import VERSION, lens
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import make_probes

pytestmark = pytest.mark.skipif(VERSION >= 4, reason="a TransformerBridge cannot be copied")


@pytest.fixture
def tokens(deep):
    return torch.randint(1, 400, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def edited(deep):
    """A copy of the model with a low-rank W_out and W_in, a whole W_Q and two biases changed."""
    other, draws = deepcopy(deep), torch.Generator().manual_seed(1)

    def rank(n, weight):
        left, right = torch.randn(weight.shape[0], n, generator=draws), torch.randn(n, weight.shape[1], generator=draws)
        return 0.1 * left @ right

    with torch.no_grad():
        for parameter, n in ((other.blocks[1].mlp.W_out, 1), (other.blocks[0].mlp.W_in, 2), (other.embed.W_E, 1)):
            parameter.add_(rank(n, parameter))
        for parameter in (other.blocks[2].attn.W_Q, other.blocks[1].mlp.b_out, other.ln_final.w):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return other


def test_it_makes_one_checkpoint_of_the_other_and_back(deep, edited, tokens):
    edit = Edit.between(deep, edited, {"method": "elsewhere"})
    before = {name: parameter.clone() for name, parameter in lens.named_weights(deep).items()}
    with edit.applied(deep):
        assert not torch.equal(deep.blocks[0].mlp.W_in, before["blocks.0.mlp.W_in"])
        for name, parameter in lens.named_weights(edited).items():
            torch.testing.assert_close(dict(lens.named_weights(deep).items())[name], parameter, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(deep(tokens), edited(tokens), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(parameter, before[name]) for name, parameter in lens.named_weights(deep).items())
    assert edit.about == {"model": loc_edit.fingerprint(deep), "method": "elsewhere"}
    assert "others=5" in repr(edit)


def test_changes_of_low_rank_are_factors_and_random_numbers_are_nobody_s_concern(deep, edited):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    edit = Edit.between(deep, edited)
    assert torch.equal(torch.rand(1), expected)
    ranks = {update.name: None if update.left is None else update.left.shape[1] for update in edit.others}
    assert ranks == {
        "embed.W_E": 1,
        "blocks.0.mlp.W_in": 2,
        "blocks.1.mlp.b_out": None,
        "blocks.2.attn.W_Q": None,
        "ln_final.w": None,
    }
    assert edit.updates[0].left.shape == (deep.cfg.d_mlp, 1)
    assert edit.layers == (1,)


def test_it_is_saved_and_comes_back(deep, edited, tmp_path):
    edit = Edit.between(deep, edited)
    edit.save(tmp_path / "e.safetensors")
    again = Edit.load(tmp_path / "e.safetensors", deep)
    assert again.norm == edit.norm
    assert [update.name for update in again.others] == sorted(update.name for update in edit.others)
    with again.applied(deep):
        torch.testing.assert_close(deep.embed.W_E, edited.embed.W_E, rtol=1e-5, atol=1e-6)


def test_its_scores_are_those_of_the_edited_checkpoint(deep, edited, facts):
    edit = Edit.between(deep, edited)
    request = loc_edit.pose(facts[0], "error_injection", deep)
    score = loc_edit.score(deep, facts[0], request, edit, essence=False)
    direct = loc_edit.score(edited, facts[0], request, essence=False)
    assert score.after.rewrite == pytest.approx(direct.before.rewrite, rel=1e-4)
    assert score.after.neighborhood == pytest.approx(direct.before.neighborhood, rel=1e-4)
    assert score.after.rewrite != pytest.approx(score.before.rewrite, rel=1e-2), "there was something to see"


def test_edits_of_both_kinds_are_scored_in_one_batch(deep, edited, facts, stats_of, contexts):
    requests = [loc_edit.pose(fact, "error_injection", deep) for fact in facts[:2]]
    rome = loc_edit.rome(deep, requests[0], 1, stats=stats_of(deep), contexts=contexts)
    meter = Meter(deep, [make_probes(deep, *pair) for pair in zip(facts, requests, strict=False)], [1])
    both = meter.measure([rome, Edit.between(deep, edited)])
    assert both[0] == meter.measure([rome, None])[0]
    assert both[1] == meter.measure([None, Edit.between(deep, edited)])[1]


def test_between_a_model_and_its_edited_self_lies_the_edit(deep, facts, stats_of, contexts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    edit = loc_edit.rome(deep, request, 1, stats=stats_of(deep), contexts=contexts)
    with edit.applied(deep):
        state = {name: value.clone() for name, value in deep.state_dict().items()}
    found = Edit.between(deep, state)
    assert not found.others
    assert found.updates[0].left.shape[1] == 1
    torch.testing.assert_close(found.delta(1), edit.delta(1), rtol=1e-4, atol=1e-6)
    part = {"blocks.1.mlp.W_out": state["blocks.1.mlp.W_out"]}
    torch.testing.assert_close(Edit.between(deep, part).delta(1), edit.delta(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_hugging_face_checkpoints_are_directories_or_their_tensors(architecture, tokenizer, tmp_path):
    folder, other = tmp_path / "base", tmp_path / "edited"
    for path in (folder, other):
        save_random(CONFIGS[architecture](), tokenizer, path)
    tensors = load_file(other / "model.safetensors")
    down = next(
        name
        for name in sorted(tensors)
        if ".0." in name and name.endswith(("c_proj.weight", "down_proj.weight")) and "mlp" in name
    )
    query = next(
        name for name in sorted(tensors) if ".1." in name and name.endswith(("c_attn.weight", "q_proj.weight"))
    )
    tensors[down] = tensors[down] + torch.outer(torch.ones(tensors[down].shape[0]), torch.ones(tensors[down].shape[1]))
    tensors[query] = 2 * tensors[query]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    edit = Edit.between(folder, other)
    assert edit.layers == (0,)
    assert edit.updates[0].left.shape[1] == 1
    torch.testing.assert_close(edit.delta(0), torch.ones_like(edit.delta(0)), rtol=1e-4, atol=1e-5)
    names = {update.name.rpartition(".")[2] for update in edit.others}
    assert names == ({"W_Q", "W_K", "W_V"} if architecture == "gpt2" else {"W_Q"})
    again = Edit.between(folder, tensors)
    assert again.norm == pytest.approx(edit.norm)
    with pytest.raises(loc_edit.BadModel, match="expected names of the model's parameters, or a base that is a dir"):
        Edit.between(loc_edit.load_model(folder), tensors)
    with pytest.raises(EditMismatch, match="export knows changes of W_out and b_out only, and the edit changes blocks"):
        loc_edit.export(edit, folder, tmp_path / "out")


def test_what_is_no_edit_is_refused(deep, tiny):
    with pytest.raises(EditMismatch, match="the same weights"):
        Edit.between(deep, deepcopy(deep))
    with pytest.raises(EditMismatch, match=r"parameter blocks.2.\S+: expected shape .*, got nothing"):
        Edit.between(deep, tiny)
    with pytest.raises(EditMismatch, match=r"parameter embed.W_E: expected shape"):
        Edit.between(deep, {"embed.W_E": deep.embed.W_E[1:]})
    edit = Edit.between(deep, {"ln_final.w": deep.ln_final.w + 1})
    with pytest.raises(EditMismatch, match="scoring without writing weights knows changes of W_out"):
        edit_hooks(deep, [edit], torch.zeros(1).long())


@pytest.mark.parametrize("rank", [MOST_RANK, MOST_RANK + 1])
def test_a_change_of_a_higher_rank_is_kept_whole(rank):
    draws = torch.Generator().manual_seed(0)
    change = torch.randn(150, rank, generator=draws) @ torch.randn(rank, 140, generator=draws)
    assert set(parts(change)) == ({"left", "right"} if rank == MOST_RANK else {"full"})
