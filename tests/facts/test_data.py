"""The built-in facts, their wording and the corpus: they are clean, consistent and deterministic."""

from collections import Counter, defaultdict
from hashlib import sha256
from itertools import islice
from random import Random

import pytest

from loc_edit.facts.builtin import builtin_facts, builtin_rows
from loc_edit.facts.wording import held_out_templates, namesakes, relations, seen_templates
from loc_edit.keys.builtin_corpus import IDENTITY, builtin_corpus, corpus_identity, namesake, short_forms

ROWS = builtin_rows()
FACTS = builtin_facts()


def test_the_table_is_large_and_every_relation_is_worded():
    counts = Counter(row.relation for row in ROWS)
    assert len(ROWS) >= 600
    assert len(counts) >= 15
    assert min(counts.values()) >= 20
    assert set(counts) == set(relations())


def test_a_subject_has_one_object_in_a_relation():
    pairs = Counter((row.relation, row.subject) for row in ROWS)
    assert max(pairs.values()) == 1


def test_the_table_is_clean_text():
    for row in ROWS:
        for text in (row.relation, row.subject, row.object):
            assert text == text.strip()
            assert text.isascii()
            assert "{" not in text
            assert "  " not in text


def test_nearly_every_object_has_several_subjects():
    subjects = Counter((row.relation, row.object) for row in ROWS)
    assert min(subjects.values()) >= 2
    assert sum(n >= 3 for n in subjects.values()) >= 0.95 * len(subjects)


def test_relations_interleave():
    n_relations = len(relations())
    for length in (n_relations, 5 * n_relations, 20 * n_relations):
        counts = Counter(row.relation for row in ROWS[:length])
        assert set(counts.values()) == {length // n_relations}


@pytest.mark.parametrize("relation", relations().values(), ids=lambda relation: relation.name)
def test_the_wording_of_a_relation(relation):
    assert len(relation.templates) >= 5
    assert len(set(relation.templates)) == len(relation.templates)
    for text in (*relation.templates, *relation.clauses):
        assert text.count("{}") == 1
        assert text == text.strip()
    assert all(clause.endswith("{}") for clause in relation.clauses)
    assert relation.modifiers
    assert relation.remarks


def test_facts_follow_the_table():
    assert [(f.relation, f.subject, f.target_true) for f in FACTS] == [(r.relation, r.subject, r.object) for r in ROWS]
    assert [f.fact_id for f in FACTS] == list(range(len(FACTS)))
    assert all(f.template == relations()[f.relation].templates[0] for f in FACTS)


def test_the_false_object_is_a_false_one_of_the_same_relation():
    objects = defaultdict(set)
    for row in ROWS:
        objects[row.relation].add(row.object)
    for fact in FACTS:
        assert fact.target_new in objects[fact.relation] - {fact.target_true}


def test_the_seed_alone_decides_the_false_objects():
    assert builtin_facts(seed=0) == FACTS
    others = [fact.target_new for fact in builtin_facts(seed=1)]
    assert others != [fact.target_new for fact in FACTS]


def test_paraphrases_ask_about_the_subject_and_are_not_the_edit_prompt():
    for fact in FACTS:
        assert len(set(fact.paraphrases)) == 4
        prompts = {t.replace("{}", fact.subject) for t in relations()[fact.relation].templates[1:]}
        assert sum(paraphrase in prompts for paraphrase in fact.paraphrases) == 2
        for paraphrase in fact.paraphrases[2:]:
            sentence, _, rest = paraphrase.partition(". ")
            assert rest in prompts
            assert fact.target_true not in sentence


def test_neighbors_share_the_object():
    objects = {(row.relation, row.subject): row.object for row in ROWS}
    for fact in FACTS:
        assert 1 <= len(fact.neighbors) <= 8
        assert fact.prompt not in fact.neighbors
        before, after = fact.template.split("{}")
        for neighbor in fact.neighbors:
            subject = neighbor.removeprefix(before).removesuffix(after)
            assert objects[fact.relation, subject] == fact.target_true


def test_the_corpus_and_its_identity_are_deterministic():
    first = list(islice(builtin_corpus(seed=3), 500))
    assert first == list(islice(builtin_corpus(seed=3), 500))
    assert first != list(islice(builtin_corpus(seed=4), 500))
    assert corpus_identity() == corpus_identity()
    assert len({corpus_identity(), corpus_identity(seed=1), corpus_identity(exposures=7)}) == 3


def test_the_corpus_has_the_documents_that_its_identity_names():
    """Whoever changes a document has to change `IDENTITY` too: it names key statistics in caches and runs."""
    digest = sha256()
    for document in builtin_corpus():
        digest.update(document.encode() + b"\n")
    assert digest.hexdigest() == "b01bd2ad3d1fc7f92908fa7bd6cdf29434df5287753cdec73096e233f26e261a"
    assert corpus_identity() == IDENTITY == "d8f9ebcbc9a7b0dce3197752a687b0fe867ec6ee122336c882218a8de06cccd2"


@pytest.mark.slow
def test_the_corpus_never_uses_a_held_out_template():
    text = "\n".join(builtin_corpus(seed=1, exposures=15))
    uses = Counter()
    for row in ROWS:
        held_out = held_out_templates(row.relation, row.subject)
        seen = seen_templates(row.relation, row.subject)
        assert len(held_out) == 2
        assert seen[0] == relations()[row.relation].edit_template
        assert set(held_out) | set(seen) == set(relations()[row.relation].templates)
        for template in held_out:
            assert template.replace("{}", row.subject) + " " not in text
        uses.update((row.relation, t) for t in seen if t.replace("{}", row.subject) + " " in text)
    for relation in relations().values():  # every template is learned with other subjects
        assert all(uses[relation.name, template] >= 10 for template in relation.templates)


def test_the_corpus_states_every_fact_about_exposures_times():
    exposures = 12
    text = "\n".join(builtin_corpus(seed=2, exposures=exposures))
    for row in ROWS[::20]:
        name = short_forms().get(row.subject, row.subject)
        told = sum(line.count(name) for line in text.splitlines() if row.object in line)
        assert told >= 0.6 * exposures


def test_a_short_form_names_one_subject():
    subjects = {row.subject for row in ROWS}
    assert len(short_forms()) > 100
    for subject, word in short_forms().items():
        assert subject.endswith(f" {word}")
        assert [other for other in subjects if word in other.split()] == [subject]
    text = "\n".join(builtin_corpus(exposures=2))
    assert text.count(" Einstein ") > text.count("Albert Einstein ") > 0


def test_namesakes_are_not_subjects():
    subjects = {row.subject for row in ROWS}
    assert not {word for subject in subjects for word in subject.split()} & set(namesakes())
    rng, objects = Random(0), {row.object for row in ROWS}
    made = [(row, found) for row in ROWS if (found := namesake(row, rng))]
    assert len(made) > 300
    for row, found in made:
        assert found.subject not in subjects
        assert found.subject.rpartition(" ")[0] == row.subject.rpartition(" ")[0] not in ("", "The")
        assert found.relation == row.relation
        assert found.object in objects
    assert any(found.object != row.object for row, found in made)
