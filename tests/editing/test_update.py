"""An edit as a thing: applied and undone, as hooks, saved, composed."""

import errno
import os
from itertools import permutations

import pytest
import torch
from safetensors.torch import save_file

import loc_edit
from loc_edit import Edit, EditMismatch, EditStack, WeightUpdate
from loc_edit.editing.update import change, edit_hooks
from loc_edit.models.adapter import VERSION, lens


def weights(model):
    return {name: p.detach().clone() for name, p in lens.named_weights(model).items()}


def same_bits(model, before):
    return all(
        torch.equal(p.view(torch.int32), before[name].view(torch.int32))
        for name, p in lens.named_weights(model).items()
    )


def random_edit(model, layers=(0, 1), seed=0, rank=1, bias=False, full=False, size=0.3):
    draws = torch.Generator().manual_seed(seed)
    m, d = model.cfg.d_mlp, model.cfg.d_model

    def new(*shape):
        return size * torch.randn(*shape, generator=draws)

    updates = []
    for layer in layers:
        whole = {"full": new(m, d)} if full else {"left": new(m, rank), "right": new(rank, d)}
        updates.append(WeightUpdate(layer, **whole, bias=new(d) if bias else None))
    return Edit(tuple(updates), {"method": "rome", "model": loc_edit.fingerprint(model), "fact_id": seed})


def logits(model, tokens):
    return model(tokens)


@pytest.fixture
def tokens(tiny):
    return torch.randint(0, tiny.cfg.d_vocab, (3, 9), generator=torch.Generator().manual_seed(0))


def test_applied_writes_and_the_exact_bytes_come_back(editable, tokens):
    before, plain = weights(editable), logits(editable, tokens)
    edit = random_edit(editable, bias=not editable.cfg.gated_mlp)
    with edit.applied(editable) as model:
        assert model is editable
        for layer in (0, 1):
            torch.testing.assert_close(
                editable.blocks[layer].mlp.W_out, before[f"blocks.{layer}.mlp.W_out"] + edit.delta(layer)
            )
        assert (logits(editable, tokens) - plain).abs().max() > 0.01
    assert same_bits(editable, before)
    assert torch.equal(logits(editable, tokens), plain)
    # adding and subtracting would not have done
    naive = {name: p.clone() for name, p in before.items()}
    delta = edit.delta(0)
    naive["blocks.0.mlp.W_out"].add_(delta).sub_(delta)
    assert not same_bits(editable, naive)


def test_the_bytes_come_back_when_the_body_raises(tiny):
    before, edit = weights(tiny), random_edit(tiny, bias=True)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), edit.applied(tiny):  # noqa: PT012
            assert not same_bits(tiny, before)
            raise error
        assert same_bits(tiny, before)


def test_nested_edits_come_off_one_by_one(tiny, tokens):
    before = weights(tiny)
    a, b = random_edit(tiny, seed=1, bias=True), random_edit(tiny, layers=(1,), seed=2, full=True)
    with a.applied(tiny):
        only_a, with_a = weights(tiny), logits(tiny, tokens)
        with pytest.raises(RuntimeError), b.applied(tiny):  # noqa: PT012
            torch.testing.assert_close(tiny.blocks[1].mlp.W_out, before["blocks.1.mlp.W_out"] + a.delta(1) + b.delta(1))
            raise RuntimeError
        assert same_bits(tiny, only_a)
        assert torch.equal(logits(tiny, tokens), with_a)
    assert same_bits(tiny, before)


@pytest.mark.parametrize("full", [False, True])
def test_hooks_give_the_logits_of_written_weights(editable, tokens, full):
    """Many edits in one batch, each row under its own; a row without an edit is untouched."""
    bias = not editable.cfg.gated_mlp
    edits = [random_edit(editable, seed=1, bias=bias, full=full), None, random_edit(editable, (2,), 2, rank=3)]
    owner = torch.tensor([2, 0, 1])
    with editable.hooks(fwd_hooks=edit_hooks(editable, edits, owner)):
        together = logits(editable, tokens)
    plain = logits(editable, tokens)
    for row, i in enumerate(owner.tolist()):
        if edits[i] is None:
            torch.testing.assert_close(together[row], plain[row])
            continue
        with edits[i].applied(editable):
            wanted = logits(editable, tokens[row : row + 1])[0]
        torch.testing.assert_close(together[row], wanted, rtol=1e-3, atol=1e-4)
        assert (wanted - plain[row]).abs().max() > 0.01
    assert edit_hooks(editable, [None, None], owner) == []


def test_sums_of_edits_are_both_edits(editable, tokens):
    """Also behind a norm, where the change of the output by two updates is not the sum of the two changes."""
    bias = not editable.cfg.gated_mlp
    a, b = random_edit(editable, seed=1, bias=bias), random_edit(editable, layers=(1,), seed=2, full=True, bias=bias)
    both = a + b
    assert both.layers == (0, 1)
    torch.testing.assert_close(both.delta(1), a.delta(1) + b.delta(1))
    torch.testing.assert_close(both.delta(0), a.delta(0))
    with a.applied(editable), b.applied(editable):
        one_by_one = logits(editable, tokens)
    with both.applied(editable):
        torch.testing.assert_close(logits(editable, tokens), one_by_one)
    with editable.hooks(fwd_hooks=edit_hooks(editable, [both], torch.zeros(3, dtype=torch.long))):
        torch.testing.assert_close(logits(editable, tokens), one_by_one, rtol=1e-3, atol=1e-4)
    before = weights(editable)
    with both.applied(editable):
        assert not same_bits(editable, before)
    assert same_bits(editable, before)


def test_a_sum_belongs_to_the_model_of_both(tiny, deep, tmp_path):
    a, b = random_edit(tiny, seed=1), random_edit(tiny, seed=2)
    (a + b).save(tmp_path / "both.safetensors")
    assert Edit.load(tmp_path / "both.safetensors", tiny).layers == (0, 1)
    with pytest.raises(EditMismatch, match="was made for model"):
        Edit.load(tmp_path / "both.safetensors", deep)
    assert "model" not in (a + random_edit(deep)).about


# Several at once, undone in any order


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_edits_are_undone_exactly_in_any_order(tiny, order):
    """After each undo the weights are those that the remaining edits alone would have given, bit for bit."""
    before = weights(tiny)
    edits = [random_edit(tiny, seed=1, bias=True), random_edit(tiny, (1,), 2, full=True), random_edit(tiny, (0,), 3)]
    stack = EditStack(tiny)
    for edit in edits:
        stack.apply(edit)
    left = list(edits)
    for i in order:
        assert not same_bits(tiny, before)
        stack.undo(edits[i])
        left.remove(edits[i])
        assert list(stack.edits) == left
        found = weights(tiny)
        stack.clear()
        assert same_bits(tiny, before)
        for edit in left:
            edit.write(tiny)
        assert same_bits(tiny, found)
        with torch.no_grad():
            for name, parameter in lens.named_weights(tiny).items():
                parameter.copy_(before[name])
        for edit in left:
            stack.apply(edit)
    assert same_bits(tiny, before)


def test_undo_without_a_name_takes_the_last_edit_back(tiny):
    before, edits = weights(tiny), [random_edit(tiny, seed=seed) for seed in range(3)]
    stack = EditStack(tiny)
    for edit in edits:
        stack.apply(edit)
    for n_left in (2, 1, 0):
        stack.undo()
        assert list(stack.edits) == edits[:n_left]
    assert same_bits(tiny, before)


def test_an_edit_made_on_top_of_another_outlives_it(deep, facts, stats_of, contexts):
    before = weights(deep)
    one, other = (loc_edit.pose(fact, "error_injection", deep) for fact in facts[:2])
    with EditStack(deep) as stack:
        stack.apply(loc_edit.rome(deep, one, 1, stats=stats_of(deep), contexts=contexts))
        second = loc_edit.rome(deep, other, 1, stats=stats_of(deep), contexts=contexts)
        stack.apply(second)
        stack.undo(stack.edits[0])
        torch.testing.assert_close(deep.blocks[1].mlp.W_out, before["blocks.1.mlp.W_out"] + second.delta(1))
        stack.undo()
        assert same_bits(deep, before)
        stack.apply(second)
    assert same_bits(deep, before)


def test_a_stack_refuses_edits_that_are_not_in_it(tiny, deep):
    before = weights(tiny)
    stack, edit = EditStack(tiny), random_edit(tiny)
    with pytest.raises(ValueError, match="is not in the model"):
        stack.undo(edit)
    with pytest.raises(ValueError, match="None is not in the model"):
        stack.undo()
    stack.apply(edit)
    with pytest.raises(ValueError, match="is in the model already"):
        stack.apply(edit)
    with pytest.raises(ValueError, match="layers"):
        stack.apply(random_edit(tiny, layers=(7,)))
    with pytest.raises(EditMismatch, match=r"expected shape .* got \(24, 5\)"):
        stack.apply(Edit((WeightUpdate(0, full=torch.zeros(24, 5)),)))
    assert stack.edits == (edit,)
    with pytest.raises(KeyboardInterrupt), stack:
        raise KeyboardInterrupt
    assert same_bits(tiny, before)


# In other hands


def test_a_small_edit_is_added_before_it_is_rounded(make_model):
    """In half precision a weight takes the sum's nearest value, not the sum of rounded parts."""
    model = make_model().to(torch.bfloat16)
    before = model.blocks[0].mlp.W_out.float()
    edit = random_edit(model, (0,), full=True, size=0.01)
    with edit.applied(model):
        assert torch.equal(model.blocks[0].mlp.W_out, (before + edit.delta(0)).bfloat16())


@pytest.mark.skipif(VERSION >= 4, reason="TransformerLens 4 says so in other words")
def test_hugging_face_names_need_a_known_checkpoint(tiny):
    before = weights(tiny)
    with pytest.raises(loc_edit.BadModel, match="Hugging Face names"):
        random_edit(tiny, bias=True).to_state_dict(tiny)
    assert same_bits(tiny, before)


def test_norm_is_frobenius_over_all_layers(tiny):
    edit = random_edit(tiny, seed=3, rank=2)
    wanted = torch.stack([u.left @ u.right for u in edit.updates]).norm().item()
    assert edit.norm == pytest.approx(wanted, rel=1e-5)
    assert Edit(()).norm == 0
    overlapping = edit + edit  # the norm of the sum, not of the parts
    assert overlapping.norm == pytest.approx(2 * wanted, rel=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_saved_edits_come_back(tiny, tmp_path, full):
    edit = random_edit(tiny, (0, 1), 4, bias=full, full=full) + random_edit(tiny, (1,), 5)
    path = tmp_path / "e.safetensors"
    edit.save(path)
    loaded = Edit.load(path)
    assert loaded.about == edit.about
    assert len(loaded.updates) == 3
    for a, b in zip(edit.updates, loaded.updates, strict=True):
        assert a.layer == b.layer
        assert set(a.tensors()) == set(b.tensors())
        assert all(torch.equal(a.tensors()[k], b.tensors()[k]) for k in a.tensors())
    if not full:
        assert path.stat().st_size < 4 * tiny.cfg.d_mlp * tiny.cfg.d_model * 3, "factors, not matrices"


def test_a_file_is_the_old_edit_or_the_new_one_and_never_half(tiny, tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"
    random_edit(tiny, seed=1).save(path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*e\.safetensors"):
        random_edit(tiny, seed=2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_more_than_ten_updates_keep_their_order(tiny, tmp_path):
    edit = Edit(tuple(u for seed in range(12) for u in random_edit(tiny, (seed % 2,), seed).updates))
    edit.save(tmp_path / "e")
    loaded = Edit.load(tmp_path / "e")
    for a, b in zip(edit.updates, loaded.updates, strict=True):
        assert torch.equal(a.left, b.left)


def test_an_edit_of_a_method_survives_saving(deep, facts, stats_of, contexts, tmp_path):
    request = loc_edit.pose(facts[1], "error_injection", deep)
    settings = loc_edit.RomeSettings(steps=2)
    edit = loc_edit.rome(deep, request, 1, stats=stats_of(deep), contexts=contexts, settings=settings)
    edit.save(tmp_path / "e.safetensors")
    loaded = Edit.load(tmp_path / "e.safetensors", deep)
    assert torch.equal(loaded.delta(1), edit.delta(1))
    assert dict(loaded.about) == dict(edit.about)


def test_another_model_is_refused_with_both_names(tiny, deep, make_model, tmp_path):
    random_edit(tiny).save(tmp_path / "e")
    assert Edit.load(tmp_path / "e", tiny).layers == (0, 1)
    with pytest.raises(EditMismatch, match=f"{loc_edit.fingerprint(tiny)}.*{loc_edit.fingerprint(deep)}"):
        Edit.load(tmp_path / "e", deep)
    wider, before = make_model(d_mlp=32), None
    before = weights(wider)
    with (
        pytest.raises(EditMismatch, match=r"layer 0: expected shape \(32, 16\) of W_out, got \(24, 16\)"),
        random_edit(tiny).applied(wider),
    ):
        pass
    assert same_bits(wider, before)
    longer = random_edit(tiny)  # a file may hold what the constructor refuses in tests
    object.__setattr__(longer.updates[0], "bias", torch.zeros(17))
    with pytest.raises(EditMismatch, match=r"layer 0: expected shape \(16,\) of b_out, got \(17,\)"):
        longer.write(tiny)
    before = weights(tiny)
    with pytest.raises(ValueError, match=r"layers \[3\].*0 to 1"), random_edit(deep, (0, 3)).applied(tiny):
        pass
    assert same_bits(tiny, before)
    assert issubclass(EditMismatch, ValueError)


def test_files_that_are_no_edits_are_refused(tiny, tmp_path):
    (tmp_path / "noise").write_bytes(b"\x00" * 40)
    for name in ("noise", "absent"):
        with pytest.raises(ValueError, match=f"{name}: expected a saved edit, got no readable safetensors"):
            Edit.load(tmp_path / name)
    loc_edit.KeyStats.from_moments({0: torch.eye(3)}, n_tokens=9).save(tmp_path / "stats")
    with pytest.raises(ValueError, match=r"expected format 'loc_edit\.edit/1', got"):
        Edit.load(tmp_path / "stats")


FACTORS = {"0.1.left": torch.ones(24, 1), "0.1.right": torch.ones(1, 16)}


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"0.1.left": torch.full((24, 1), float("nan"))}, "{}"),
        ({"0.1.left": torch.ones(24, 2)}, "{}"),
        ({"0.1": torch.ones(3)}, "{}"),
        ({"first.1.bias": torch.ones(16)}, "{}"),
        ({"0.1.middle": torch.ones(3)}, "{}"),
        ({"embed.W_E/middle": torch.ones(3)}, "{}"),
        ({}, "{"),
        ({}, "[]"),
        ({}, None),
    ],
)
def test_a_damaged_edit_is_refused_by_the_name_of_its_file(tmp_path, changes, about):
    path, metadata = tmp_path / "e.safetensors", {"format": "loc_edit.edit/1", "about": "{}"}
    save_file(FACTORS, path, metadata)
    assert Edit.load(path).layers == (1,)
    metadata = {name: value for name, value in (metadata | {"about": about}).items() if value is not None}
    save_file(FACTORS | changes, path, metadata)
    with pytest.raises(ValueError, match=r"e\.safetensors: expected a saved edit, got one that is damaged"):
        Edit.load(path)


def test_written_for_good(make_model, tokens):
    model = make_model()
    before = weights(model)
    edit = random_edit(model, bias=True)
    edit.write(model)
    torch.testing.assert_close(model.blocks[0].mlp.W_out, before["blocks.0.mlp.W_out"] + edit.delta(0))
    torch.testing.assert_close(model.blocks[1].mlp.b_out, before["blocks.1.mlp.b_out"] + edit.updates[1].bias)


def test_an_update_without_content_is_refused():
    with pytest.raises(ValueError, match="layer 3 has neither"):
        WeightUpdate(3).delta  # noqa: B018


def test_the_repr_of_an_edit_is_short_and_its_html_is_escaped(tiny):
    edit = Edit(random_edit(tiny).updates, {"method": "rome", "target": "<b>Rome", "fact_id": 4})
    said = repr(edit)
    for part in ("rome", "<b>Rome", "4", "layers=[0, 1]", "norm="):
        assert part in said
    assert "tensor" not in said
    html = edit._repr_html_()
    assert "&lt;b&gt;Rome" in html
    assert "<b>" not in html
    assert repr(Edit(())) == "Edit(layers=[], norm=0)"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_change_is_computed_in_float32_whatever_the_keys_are(tiny, dtype, full):
    [update] = random_edit(tiny, layers=(0,), full=full, bias=True).updates
    key = torch.randn(5, tiny.cfg.d_mlp, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = key.double() @ Edit((update,)).delta(0).double() + update.bias.double()
    found = change(key, update)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    rounded = (key @ Edit((update,)).delta(0).to(dtype) + update.bias.to(dtype)).double()
    assert (rounded - expected).abs().max() > 1e-4, "half precision would show"
