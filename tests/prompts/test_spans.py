"""Subject spans and target tokens of hard texts, and of all real facts, against the tokens' spelling."""

import re
from pathlib import Path

import pytest
import torch
from conftest import random_model
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from spelling import KINDS, Speller, train

from loc_edit.facts.builtin import builtin_facts
from loc_edit.facts.fact import Fact
from loc_edit.facts.loading import load_facts
from loc_edit.models.adapter import lens
from loc_edit.prompts.encoding import (
    BadPrompt,
    Encoded,
    SubjectNotFound,
    encode,
    encode_all,
    find_subject,
    target_tokens,
)

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
FILES = ("counterfact_flat_10000.json", "counterfact_sample_5.json", "zsre_mend_300.json", "known_1000.json")

HARD = [
    ("{} is located in", "Kōbe", "Japan"),
    ("The mayor of {} is", "Łódź", "Jiří Šmíd"),
    ("{}", "Zürich", "Zürich"),
    ("It is {}", "東京", "日本"),
    ("{}位于", "東京", "日本"),
    ("首都是{}。", "東京", "日本"),
    ("{} plays", "Пётр Ильич", "piano"),
    ("{} هي عاصمة", "القاهرة", "مصر"),
    ("{} में है", "दिल्ली", "भारत"),
    ("{}'s mother tongue is", "Beyoncé", "English"),
    ("“{}” was written by", "L\u2019Étranger", "Albert Camus"),
    ('"{}" was written by', 'The "Good" Life', "O'Neill"),
    ("({}) belongs to", "3M", "S&P 500"),
    ("In 1999,{}was sold to", "Rock'n'Roll", "AT&T"),
    ("Rome is not {}, nor Rome", "Rome", "Paris"),
    ("an {} in Ann and Anna, by Ann", "Ann", "Ann"),
    ("Not Paris but {}", "Paris", "Paris"),
    ("  two spaces  {}  here", "a  b", "c"),
    ("tab\t{}\nline", "New\tYork", "x"),
    ("no\u00a0break {}\u00a0is", "Saint\u00a0Louis", "US"),
    ("e\u0301t\u00e9 {} is", "Ame\u0301lie", "franc\u0327ais"),
    ("the emoji {} means", "👩‍👩‍👧🙂", "family"),
    ("{} ends in a space ", "Oslo", "Norway"),
    ("set {} of", "{x} {0}", "{}"),
    ("{}", "a", "b"),
    ("ﬁve ﬂags in {} of", "ﬁnland ½", "№ 5"),
    ("x{}y", "q", "z"),
    ("pre{}", "fix", "ed"),
    ("{}s", "dog", "'s"),
]  # fmt: skip


def hard_facts():
    return [
        Fact(template=template, subject=subject, target_true=target, target_new="Rome", fact_id=i)
        for i, (template, subject, target) in enumerate(HARD)
    ]


@pytest.fixture(scope="module", params=KINDS)
def speller(request):
    facts = builtin_facts()[::3]
    texts = [f"{fact.prompt} {fact.target_true}" for fact in facts] + ["Zürich, Kōbe é “Q” Пётр 東京" for _ in range(3)]
    return Speller(request.param, train(request.param, texts, vocab_size=1200))


@pytest.fixture(scope="module")
def model_of(tokenizer):
    """speller -> a model that tokenizes with it (no test here runs it)."""
    model = random_model(tokenizer, n_ctx=256)

    def model_of(speller, bos=False):
        lens.give_tokenizer(model, speller.fast)
        model.cfg.default_prepend_bos = bos
        return model

    return model_of


def check(speller, fact, found):
    """Check a fact's tokens against the oracle, or that its error has a cause; returns a description of the case."""
    begin, _, end = fact.template.partition("{}")
    true, how = speller.target(fact.prompt, fact.target_true)
    new, _ = speller.target(fact.prompt, fact.target_new) if fact.target_new else ([], "")
    if isinstance(found, BadPrompt):
        assert true is None or new is None, f"refused without a reason: {found}"
        assert f"fact {fact.fact_id}: target" in str(found)
        return "no tokens for the target"
    assert isinstance(found, Encoded), found
    ids = found.prompt.tokens.tolist()
    assert ids == speller.ids(fact.prompt)
    span = found.prompt.subject
    assert (span.start, span.stop) == speller.span(ids, begin, fact.subject, end), (fact, found.prompt)
    assert found.target_true.tolist() == true
    assert (found.target_new is None) == (fact.target_new is None)
    if found.target_new is not None:
        assert found.target_new.tolist() == new
    return how


def test_hard_texts_have_exact_spans_and_targets(speller, model_of):
    facts = hard_facts()
    seen = [
        check(speller, fact, found) for fact, found in zip(facts, encode_all(model_of(speller), facts), strict=True)
    ]
    assert "after the prompt" in seen
    assert ("alone" in seen) == ("unsplit" in speller.kind), "there, a token may hold the end of one word and a space"
    if speller.kind == "unigram":
        assert "no tokens for the target" in seen, "some letters are unknown to it"
    else:
        assert "no tokens for the target" not in seen, "bytes spell everything"


LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Co"), exclude_characters="\u2581{}")
WORDS = st.lists(
    st.one_of(st.text(LETTERS, max_size=6), st.sampled_from(["the", "is", "Rome", "'s", "é", "東京"])), max_size=4
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=WORDS,
    subject=st.text(LETTERS, min_size=1, max_size=8),
    after=WORDS,
    target=st.text(LETTERS, min_size=1, max_size=9),
)
def test_any_text_has_an_exact_span(speller, model_of, before, subject, after, target):
    begin, end = " ".join(before), " ".join(after)
    texts = (begin, subject, end)
    assume(subject.strip() and target.strip())
    if "trimmed" in speller.kind:  # such offsets know no space
        assume(subject == subject.strip(" "))
    if not begin:  # a subject that opens the text with a space, or a letter that becomes a space and a mark
        assume(speller.normal(subject)[0] != " ")
    assume(
        "".join(map(speller.normal, texts)) == speller.normal("".join(texts))
    )  # no letter grows together over an edge
    assume(speller.normal(subject).strip() and speller.normal(target).strip() == speller.normal(target.strip()))
    fact = Fact(template=f"{begin}{{}}{end}", subject=subject, target_true=target, fact_id=0)
    [found] = encode_all(model_of(speller), [fact])
    check(speller, fact, found)


def test_encoding_facts_one_at_a_time_gives_the_same_tokens(speller, model_of):
    model = model_of(speller)
    facts = hard_facts()
    for fact, found in zip(facts, encode_all(model, facts, batch_size=4), strict=True):
        prompt = encode(model, fact)
        if isinstance(found, BadPrompt):
            with pytest.raises(BadPrompt, match="no tokens for part of it"):
                target_tokens(model, fact.prompt, fact.target_true)
            continue
        assert prompt == found.prompt
        assert prompt.subject == found.prompt.subject
        torch.testing.assert_close(prompt.tokens, found.prompt.tokens)
        torch.testing.assert_close(target_tokens(model, fact.prompt, fact.target_true), found.target_true)
        torch.testing.assert_close(target_tokens(model, fact.prompt, fact.target_new), found.target_new)


def test_the_space_that_sentencepiece_adds_is_not_part_of_the_subject(speller, model_of):
    prompt = find_subject(model_of(speller), "漢字 is in", "漢字")
    [first] = speller.fast.convert_ids_to_tokens(prompt.tokens[:1].tolist())
    assert prompt.subject.start == (first == "\u2581")
    assert (first == "\u2581") == (not speller.kind.startswith("byte-level"))
    spaced = find_subject(model_of(speller), " 漢字 is in", " 漢字")
    own_space = "trimmed" not in speller.kind  # such offsets know no space
    assert spaced.subject.start == (not own_space), "a space of the subject's own is"


def test_bos_moves_a_span_by_one(speller, model_of):
    facts = hard_facts()
    without = encode_all(model_of(speller), facts)
    speller.fast.bos_token = speller.fast.convert_ids_to_tokens(5)
    try:
        with_bos = encode_all(model_of(speller, bos=True), facts)
    finally:
        speller.fast.bos_token = None
    for a, b in zip(without, with_bos, strict=True):
        if isinstance(a, Encoded):
            assert b.prompt.tokens.tolist() == [5, *a.prompt.tokens.tolist()]
            assert b.prompt.subject == slice(a.prompt.subject.start + 1, a.prompt.subject.stop + 1)
            assert b.target_true.tolist() == a.target_true.tolist()


def test_a_fact_that_cannot_be_used_is_an_error_in_its_place(tiny):
    good = Fact(template="{} is in", subject="Rome", target_true="Italy", target_new="Spain", fact_id=1)
    long = Fact(template="{} is " + "q " * 80, subject="Rome", target_true="Italy", fact_id=2)
    n = len(encode(tiny, good).tokens)
    spent = Fact(template="{} is in", subject="Rome", target_true="z" * (tiny.cfg.n_ctx - n + 2), fact_id=3)
    fits = Fact(template="{} is in", subject="Rome", target_true="z" * 20, fact_id=4)
    found = encode_all(tiny, [good, long, spent, fits, good], batch_size=2)
    assert [type(one) for one in found] == [Encoded, BadPrompt, BadPrompt, Encoded, Encoded]
    assert "fact 2: prompt of" in str(found[1])
    assert re.match(r"fact 3: 6[5-9] tokens do not fit the context of 64: 'Rome is in'", str(found[2]))
    assert found[0].prompt == found[4].prompt
    assert encode_all(tiny, []) == []


def test_a_subject_that_no_token_covers_is_an_error_in_its_place(model_of, speller):
    model = model_of(speller)
    if "trimmed" not in speller.kind:
        found = find_subject(model, "New York", " ")
        span = speller.span(found.tokens.tolist(), "New", " ", "York")
        assert (found.subject.start, found.subject.stop) == span
        return
    with pytest.raises(SubjectNotFound, match=r"fact 3: no token"):
        find_subject(model, "New York", " ", fact_id=3)


def test_a_searched_subject_is_recorded(tiny):
    for searched in (False, True):
        fact = Fact(template="{} is in", subject="Rome", target_true="Italy", searched=searched)
        assert encode(tiny, fact).found == encode_all(tiny, [fact])[0].prompt.found == searched


@pytest.fixture(scope="module", params=[KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:4])])
def trained_on_them(request):
    path = DATA / FILES[0]
    if not path.is_file():
        pytest.skip("no ../shared/data beside the project: the real facts are not there to read")
    texts = [f"{fact.prompt} {fact.target_true}" for fact in load_facts(path, limit=3000)]
    return Speller(request.param, train(request.param, texts))


@pytest.mark.slow
def test_every_real_fact_has_an_exact_span_and_targets_or_a_named_error(trained_on_them, model_of):
    model = model_of(trained_on_them)
    for name in FILES:
        facts = load_facts(DATA / name)
        seen = [check(trained_on_them, f, e) for f, e in zip(facts, encode_all(model, facts), strict=True)]
        assert seen.count("no tokens for the target") < 0.05 * len(facts)
        if trained_on_them.kind != "unigram":
            assert "no tokens for the target" not in seen
