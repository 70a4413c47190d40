"""Sampled texts against a slow sampler that runs the whole text again for every token."""

from types import SimpleNamespace

import pytest
import torch

import loc_edit
from loc_edit.models.decoding import sample_tokens, share_batches
from loc_edit.prompts import sampling
from loc_edit.prompts.encoding import encode, encode_context
from loc_edit.prompts.randomness import generator
from loc_edit.prompts.sampling import MEMIT_STARTS, ROME_LENGTHS, _clean_text, sample_contexts, sample_essences


def slow_sample(model, tokens, draws, top_k=5):
    """One token after the other, no cache, no batch; a draw picks the first token whose cumulated share passes it."""
    for draw in draws.tolist():
        top, ids = model(tokens[None])[0, -1].topk(top_k)
        share = top.softmax(-1).cumsum(-1).tolist()
        chosen = next((i for i, s in enumerate(share) if draw < s), top_k - 1)
        tokens = torch.cat([tokens, ids[chosen][None]])
    return tokens


def draws_of(n, *key):
    return torch.rand(n, generator=generator("test", *key))


@pytest.fixture
def favouring(make_model):
    """Makes a model whose likeliest tokens are mostly the given texts."""

    def make(*texts, strength=6.0):
        model = make_model(seed=3)
        for text in texts:
            [token] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            model.unembed.b_U[token] += strength
        return model

    return make


def test_samples_equal_the_slow_sampler(editable):
    prompts = [editable.to_tokens(text, prepend_bos=False)[0] for text in ("The", "In the north", "Nobody", "A train")]
    draws = [draws_of(n, i) for i, n in enumerate((9, 9, 4, 9))]
    for prompt, draw, found in zip(prompts, draws, sample_tokens(editable, prompts, draws), strict=True):
        torch.testing.assert_close(found, slow_sample(editable, prompt, draw))
        assert len(found) == len(prompt) + len(draw)


def test_lengths_share_a_batch_unless_a_hook_could_count_positions(tiny):
    lengths = [5, 2, 5, 3, 2]
    assert share_batches(tiny, lengths, 64) == [[1, 4, 3, 0, 2]]
    assert share_batches(tiny, lengths, 2) == [[1, 4], [3, 0], [2]]
    with tiny.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: None)]):
        assert share_batches(tiny, lengths, 64) == [[1, 4], [3], [0, 2]]


def test_a_hook_that_counts_positions_acts_on_each_text_alike(tiny):
    prompts = [torch.tensor(ids) for ids in ([3, 7, 9, 4], [4, 5, 11], [6, 2, 8, 5])]
    draws = [draws_of(6, i) for i in range(3)]
    plain = sample_tokens(tiny, prompts, draws)

    def push(value, hook):
        if value.shape[1] > 1:  # the prompt, not a later step with its single position
            value[:, 2, :5] += 9
        return value

    with tiny.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", push)]):
        together = sample_tokens(tiny, prompts, draws)
        alone = [sample_tokens(tiny, [prompt], [draw])[0] for prompt, draw in zip(prompts, draws, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(together, plain, strict=True))


def test_an_eos_inside_a_text_is_not_padding(favouring):
    eos = "<|endoftext|>"
    model = favouring(eos, strength=7.0)
    eos_id = model.tokenizer.eos_token_id
    start = torch.tensor([5, eos_id, 9, eos_id])
    prompts, draws = [start] * 6, [draws_of(20, i) for i in range(6)]
    found = sample_tokens(model, prompts, draws)
    inside = sum((row[len(start) : -1] == eos_id).sum().item() for row in found)
    assert inside > 6  # there was something to mistake
    for row, draw in zip(found, draws, strict=True):
        torch.testing.assert_close(row, slow_sample(model, start, draw))


def test_only_the_top_k_are_drawn(tiny):
    prompt = torch.tensor([7, 8, 9])
    draws = [draws_of(1, i) for i in range(300)]
    top = tiny(prompt[None])[0, -1].topk(5).indices.tolist()
    drawn = {row[-1].item() for row in sample_tokens(tiny, [prompt] * 300, draws)}
    assert drawn <= set(top)
    assert len(drawn) >= 3
    assert {row[-1].item() for row in sample_tokens(tiny, [prompt] * 50, draws[:50], top_k=1)} == {top[0]}


def test_a_draw_just_below_one_takes_the_last_of_the_top_tokens(tiny):
    below_one = torch.tensor([0.0, 1 - 2**-24])
    for draw in below_one:
        found = sample_tokens(tiny, [torch.tensor([7])], [draw[None]])[0]
        assert found[-1] == tiny(torch.tensor([[7]]))[0, -1].topk(5).indices[0 if draw == 0 else 4]


def test_a_text_does_not_depend_on_the_other_texts(tiny):
    prompts = [torch.tensor(ids) for ids in ([3], [4, 5], [6], [7, 8], [9])]
    draws = [draws_of(n, i) for i, n in enumerate((6, 6, 6, 3, 0))]
    together = sample_tokens(tiny, prompts, draws)
    for i, (prompt, draw) in enumerate(zip(prompts, draws, strict=True)):
        torch.testing.assert_close(sample_tokens(tiny, [prompt], [draw])[0], together[i])
    backwards = sample_tokens(tiny, prompts[::-1], draws[::-1], batch_size=1)[::-1]
    for one, other in zip(together, backwards, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(together[4], prompts[4])  # nothing drawn, nothing added


# Contexts


def lengths_of(monkeypatch, model, style):
    """Lengths and starts of the sampled token rows behind the contexts."""
    seen = []

    def spy(model, tokens):
        seen.append(tokens)
        return _clean_text(model, tokens)

    monkeypatch.setattr("loc_edit.prompts.sampling._clean_text", spy)
    contexts = sample_contexts(model, style)
    return seen, contexts


def test_rome_contexts_are_ten_of_five_and_ten_of_ten_tokens_from_eos(monkeypatch, tiny):
    assert ROME_LENGTHS == ((10, 5), (10, 10))
    rows, contexts = lengths_of(monkeypatch, tiny, "rome")
    assert [len(row) for row in rows] == [5] * 10 + [10] * 10
    assert {row[0].item() for row in rows} == {tiny.tokenizer.eos_token_id}
    assert len(contexts) == 21


def test_memit_contexts_are_five_of_ten_tokens_from_their_words(monkeypatch, tiny):
    rows, contexts = lengths_of(monkeypatch, tiny, "memit")
    starts = [tiny.tokenizer(word, add_special_tokens=False)["input_ids"] for word in MEMIT_STARTS]
    assert [len(row) for row in rows] == [len(start) + 9 for start in starts]  # a word counts as one
    assert all(context.startswith(word) for word, context in zip(MEMIT_STARTS, contexts[1:], strict=True))
    assert len(contexts) == 6


@pytest.mark.parametrize("style", ["rome", "memit"])
def test_contexts_begin_with_the_bare_prompt_and_end_with_its_place(tiny, style):
    contexts = sample_contexts(tiny, style)
    assert contexts[0] == "{}"
    assert all(context.endswith(". {}") for context in contexts[1:])
    assert all(context.count("\n") == 0 for context in contexts)


@pytest.mark.parametrize("style", ["rome", "memit"])
def test_contexts_depend_on_the_seed_alone(tiny, style):
    first = sample_contexts(tiny, style)
    torch.manual_seed(17)
    torch.rand(5)
    assert sample_contexts(tiny, style) == first
    other = sample_contexts(tiny, style, seed=1)
    assert other != first
    assert len(set(first)) > len(first) / 2


def test_another_style_is_refused_by_name(tiny):
    with pytest.raises((ValueError, TypeError), match="roma"):  # the annotation is checked first, where it is
        sample_contexts(tiny, "roma")


def test_braces_and_line_breaks_in_texts_break_nothing(favouring, facts, stats_of):
    model = favouring("{", "}", "\n", strength=30.0)
    contexts = sample_contexts(model)
    text = "".join(contexts[1:])
    assert text.count("{") > 25
    assert text.count("}") > 25
    assert "\n" not in text
    assert any("{}" in context[:-2] for context in contexts)
    fact = facts[0]
    prompt = encode(model, fact)
    for context in contexts:
        row = encode_context(model, context, prompt)
        assert row.text == context[:-2] + fact.prompt
        spanned = model.tokenizer.decode(row.tokens[row.subject])
        assert fact.subject in spanned
    request = loc_edit.pose(fact, "error_injection", model)
    edit = loc_edit.rome(model, request, 0, stats=stats_of(model), contexts=contexts)
    assert 0 < edit.norm < float("inf")


def test_special_tokens_and_line_breaks_are_left_out_of_contexts(tiny):
    ids = tiny.tokenizer("<|endoftext|>The\n\n old\tbridge <|endoftext|>", add_special_tokens=False)["input_ids"]
    assert tiny.tokenizer.eos_token_id in ids
    assert _clean_text(tiny, torch.tensor(ids)) == "The old bridge"


def test_contexts_start_from_bos_where_there_is_no_eos(tiny, monkeypatch):
    starts = []

    def sampled(model, prompts, draws):
        starts.extend(prompt.tolist() for prompt in prompts)
        return list(prompts)

    monkeypatch.setattr(sampling, "sample_tokens", sampled)
    eos = tiny.tokenizer.eos_token_id
    for known, expected in (({"eos_token_id": None, "bos_token_id": 3}, 3), ({"eos_token_id": eos}, eos)):
        tokenizer = SimpleNamespace(decode=lambda *_, **__: "text", **{"bos_token_id": None, **known})
        monkeypatch.setattr(sampling, "tokenizer", lambda model, tokenizer=tokenizer: tokenizer)
        sample_contexts(tiny, "rome")
        assert starts.pop() == [expected]
    monkeypatch.setattr(sampling, "tokenizer", lambda model: SimpleNamespace(eos_token_id=None, bos_token_id=None))
    with pytest.raises(ValueError, match="no EOS and no BOS token"):
        sample_contexts(tiny, "rome")


# Essence texts


def test_essence_texts_fill_the_context_and_begin_with_the_subject(tiny):
    subjects = ["The Golden Bridge", "Zürich"]
    found = sample_essences(tiny, subjects, [0, 2])
    for subject, texts in zip(subjects, found, strict=True):
        assert len(texts) == 5
        for text in texts:
            assert len(text) == min(100, tiny.cfg.n_ctx) == 64
            assert tiny.tokenizer.decode(text).startswith(f"{subject} is a")
        assert len({tuple(text.tolist()) for text in texts}) > 1


def test_essence_texts_have_a_hundred_tokens_in_a_long_context(make_model):
    model = make_model(n_ctx=120)
    [[*texts]] = sample_essences(model, ["Norway"], [0])
    assert [len(text) for text in texts] == [100] * 5


def test_essence_texts_begin_with_bos_if_prompts_do(shapes):
    [texts] = sample_essences(shapes["llama"], ["Norway"], [0])
    assert all(text[0] == shapes["llama"].tokenizer.bos_token_id for text in texts)
    assert all(len(text) == 64 for text in texts)


def test_essence_texts_depend_on_seed_and_fact_alone(tiny):
    both = sample_essences(tiny, ["Norway", "Anna"], [4, 5])
    [alone] = sample_essences(tiny, ["Anna"], [5])
    assert all(map(torch.equal, alone, both[1]))
    [swapped, _] = sample_essences(tiny, ["Anna", "Norway"], [5, 4])
    assert all(map(torch.equal, alone, swapped))
    [other_seed] = sample_essences(tiny, ["Anna"], [5], seed=1)
    [other_fact] = sample_essences(tiny, ["Anna"], [6])
    assert not all(map(torch.equal, alone, other_seed))
    assert not all(map(torch.equal, alone, other_fact))


def test_a_subject_that_fills_the_context_gets_no_new_tokens(tiny):
    subject = "Norway " * 70
    [texts] = sample_essences(tiny, [subject], [0])
    assert all(len(text) > tiny.cfg.n_ctx for text in texts)
