"""Tokenization: the positions of the subject, and the tokens of the target."""

import pytest
import torch

import loc_edit
from loc_edit import BadPrompt, SubjectNotFound
from loc_edit.prompts import encoding as prompts


def texts(model, tokens):
    return [model.tokenizer.decode([i]) for i in tokens.tolist()]


def test_span_covers_the_subject_and_no_more(tiny, facts):
    for fact in facts:
        prompt = loc_edit.encode(tiny, fact)
        assert model_text(tiny, prompt.tokens) == fact.prompt == prompt.text
        assert model_text(tiny, prompt.tokens[prompt.subject]).strip() == fact.subject
        assert prompt.last_subject == prompt.subject.stop - 1
        assert prompt.subject.stop - prompt.subject.start > 1, "expected a subject of several tokens here"


def model_text(model, tokens):
    return model.tokenizer.decode(tokens.tolist())


def test_a_token_that_straddles_the_edge_counts(tiny):
    # " city" is one token: of the subject "cit" it holds all, of the subject "ty" the second half
    assert len(prompts.tokenize(tiny, " city")) == 1
    left = prompts.encode_template(tiny, "the {}y of", "cit")
    right = prompts.encode_template(tiny, "the ci{} of", "ty")
    whole = prompts.encode_template(tiny, "the {} of", "city")
    assert left.subject == right.subject == whole.subject
    assert texts(tiny, whole.tokens)[whole.subject.start] == " city"


def test_an_umlaut_is_covered_by_all_its_bytes(tiny):
    prompt = prompts.encode_template(tiny, "In {}", "Zü")
    assert model_text(tiny, prompt.tokens[prompt.subject]).strip() == "Zü"


def test_the_braces_mark_the_subject_and_not_its_first_occurrence(tiny):
    prompt = prompts.encode_template(tiny, "Rome is not {} at all", "Rome")
    assert prompt.subject.start > 0
    assert not prompt.found
    assert prompts.find_subject(tiny, prompt.text, "Rome").subject.start == 0
    assert prompts.find_subject(tiny, prompt.text, "Rome").found


def test_bos_shifts_the_span(shapes, facts):
    without, with_bos = loc_edit.encode(shapes["gpt2"], facts[0]), loc_edit.encode(shapes["llama"], facts[0])
    assert with_bos.tokens[0] == shapes["llama"].tokenizer.bos_token_id
    torch.testing.assert_close(with_bos.tokens[1:], without.tokens)
    assert with_bos.subject == slice(without.subject.start + 1, without.subject.stop + 1)
    assert without.subject.start == 0, "the subject opens the prompt"


def test_target_tokens_follow_the_prompt(tiny, facts):
    for fact in facts:
        ids = loc_edit.target_tokens(tiny, fact.prompt, fact.target_true)
        alone = tiny.tokenizer(" " + fact.target_true, add_special_tokens=False)["input_ids"]
        assert ids.tolist() == alone, "byte-level BPE: enc(' ' + o)"
        whole = tiny.tokenizer(fact.prompt + " " + fact.target_true, add_special_tokens=False)["input_ids"]
        assert whole[-len(alone) :] == alone
    lengths = {len(loc_edit.target_tokens(tiny, f.prompt, f.target_true)) for f in facts}
    assert len(lengths) > 1
    assert max(lengths) > 2


def test_target_has_no_bos(shapes, facts):
    llama = shapes["llama"]
    assert llama.tokenizer.bos_token_id not in loc_edit.target_tokens(llama, facts[0].prompt, "Paris").tolist()


def test_a_context_goes_before_the_prompt_and_its_braces_do_no_harm(tiny, facts):
    bare = loc_edit.encode(tiny, facts[1])
    prompt = prompts.encode_context(tiny, "A {teacher} is {} quiet {0};\n{}", bare)
    assert prompt.text == "A {teacher} is {} quiet {0};\n" + bare.text
    assert model_text(tiny, prompt.tokens[prompt.subject]).strip() == facts[1].subject
    assert prompt.fact_id == bare.fact_id
    same = prompts.encode_context(tiny, "{}", bare)
    torch.testing.assert_close(same.tokens, bare.tokens)
    assert same.subject == bare.subject


def test_a_subject_with_braces(tiny):
    prompt = prompts.encode_template(tiny, "The {} is", "set {} of {x}")
    assert prompt.text == "The set {} of {x} is"
    assert model_text(tiny, prompt.tokens[prompt.subject]).strip() == "set {} of {x}"


@pytest.mark.parametrize("context", ["no place", "{} and more", ""])
def test_a_context_without_its_place_at_the_end_is_refused(tiny, facts, context):
    with pytest.raises(BadPrompt, match="must end with"):
        prompts.encode_context(tiny, context, loc_edit.encode(tiny, facts[0]))


def test_a_missing_subject_is_refused_by_the_fact(tiny):
    with pytest.raises(SubjectNotFound, match=r"fact 77: subject 'Rome' is not in prompt 'Paris is big'"):
        prompts.find_subject(tiny, "Paris is big", "Rome", fact_id=77)
    with pytest.raises(SubjectNotFound, match="fact 78"):
        prompts.encode_template(tiny, "no braces", "Rome", fact_id=78)
    with pytest.raises(SubjectNotFound, match="fact 79"):
        prompts.encode_template(tiny, "The {} is", "", fact_id=79)
    assert issubclass(SubjectNotFound, ValueError)


def test_a_template_without_braces_or_with_two_is_refused_by_the_fact():
    for template in ("no braces", "{} and {}"):
        with pytest.raises(loc_edit.BadFact, match=r"fact 5: expected exactly one .* in template"):
            loc_edit.Fact(template=template, subject="Rome", target_true="Italy", fact_id=5)
    with pytest.raises(loc_edit.BadFact, match="fact 5: subject is empty"):
        loc_edit.Fact(template="{} is", subject=" ", target_true="Italy", fact_id=5)


def test_an_empty_target_and_a_long_prompt_are_refused(tiny):
    with pytest.raises(BadPrompt, match="empty"):
        loc_edit.target_tokens(tiny, "Rome is in", "  ")
    with pytest.raises(BadPrompt, match="half a character"):
        loc_edit.target_tokens(tiny, "Rome is in", "\ud800")
    fact = loc_edit.Fact(template="{} is " + "q" * 80, subject="Rome", target_true="Italy", fact_id=9)
    with pytest.raises(BadPrompt, match=r"fact 9: prompt of .* does not fit the context of 64"):
        loc_edit.encode(tiny, fact)


def test_the_representation_of_a_prompt_names_its_fact_text_and_subject(tiny, facts):
    text = repr(loc_edit.encode(tiny, facts[1]))
    assert "fact 1" in text
    assert facts[1].prompt in text
    assert "[" in text
    assert len(loc_edit.encode(tiny, facts[1])) == len(loc_edit.encode(tiny, facts[1]).tokens)
