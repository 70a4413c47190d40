"""What follows from a fact: chains worked out by hand, whatever the order, and those of the real data sets."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from loc_edit.facts.consequences import consequences, description, nearly_one_to_one, relation_of
from loc_edit.facts.fact import Fact
from loc_edit.facts.loading import load_facts

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def fact(template, subject, target, new=None, paraphrases=(), **more):
    return Fact(template=template, subject=subject, target_true=target, target_new=new, paraphrases=paraphrases, **more)


def capital(country, city, **more):
    return fact("The capital of {} is", country, city, relation="capital", **more)


def river(city, name, **more):
    return fact("The river of {} is the", city, name, relation="river", **more)


FRANCE = capital("France", "Paris", new="Rome", fact_id=1)
WORLD = [
    FRANCE,
    capital("Italy", "Rome", fact_id=2),
    river("Paris", "Seine", paraphrases=("It rained. Paris lies on the", "In the Paris of old, boats went up the")),
    river("Rome", "Tiber"),
    fact("{} is a city on the continent of", "Paris", "Europe", relation="continent"),
    fact("{} is a city on the continent of", "Rome", "Europe", relation="continent"),
    fact("{} was founded by the", "Paris", "Parisii", relation="founder"),
    fact("People in {} speak", "France", "French", relation="language"),
    fact("{} is a country in", "France", "Europe", relation="country_continent"),
]


def test_a_chain_gives_a_question_that_names_only_its_beginning():
    found = consequences(FRANCE, "Rome", WORLD)
    [question] = found.two_hop
    assert question.texts == (
        "The river of the capital of France is the",
        "It rained. The capital of France lies on the",  # "In the the capital of France of old" is not English
    )
    assert (question.old.target_true, question.new.target_true) == ("Seine", "Tiber")
    assert [other.relation for other in found.same_subject] == ["country_continent", "language"]
    assert {(other.subject, other.target_true) for other in found.about_objects} == {
        ("Paris", "Seine"),
        ("Paris", "Europe"),
        ("Paris", "Parisii"),
        ("Rome", "Tiber"),
        ("Rome", "Europe"),
    }
    assert found.inverse == ()
    assert "3 chains: 1 with the same answer after the edit, 1 without a fact about 'Rome'" in found.without


def test_an_erased_object_takes_every_chain_with_it():
    found = consequences(FRANCE, "Paris", WORLD)
    assert [question.old.relation for question in found.two_hop] == ["founder", "river"]
    assert all(question.old is question.new for question in found.two_hop)
    assert "1 whose answer the subject gives away" in found.without  # France is in Europe too


@pytest.mark.parametrize(
    ("added", "removed", "reason"),
    [
        ([], [2, 4, 6], "no chain through 'Paris'"),
        ([], [3], "without a fact about 'Rome'"),
        ([river("Paris", "Marne")], [], "without a fact about 'Rome'"),  # two rivers: which one is meant?
        ([fact("{} is known for the", "France", "Tiber", relation="fame")], [], "gives away"),
    ],
)
def test_a_chain_without_a_clear_answer_gives_no_question(added, removed, reason):
    facts = [known for i, known in enumerate(WORLD) if i not in removed] + added
    found = consequences(FRANCE, "Rome", facts)
    assert found.two_hop == ()
    assert reason in found.without
    assert consequences(FRANCE, "Rome", WORLD).two_hop


def test_the_order_of_the_facts_does_not_matter():
    expected = [consequences(FRANCE, target, WORLD) for target in ("Rome", "Paris")]
    for seed in range(10):
        shuffled = random.Random(seed).sample(WORLD, len(WORLD))
        assert [consequences(FRANCE, target, shuffled) for target in ("Rome", "Paris")] == expected
    assert consequences(FRANCE, "Rome", [*WORLD, *WORLD]) == expected[0]


def test_only_a_relation_that_is_nearly_one_to_one_is_turned_round():
    more = [capital(f"Country {i}", f"City {i}") for i in range(20)]
    found = consequences(FRANCE, "Rome", [*WORLD, *more])
    [inverse] = found.inverse
    assert (inverse.old, inverse.new, inverse.answer) == ("Paris is the capital of", "Rome is the capital of", "France")
    shared = [capital(f"Land {i}", f"City {i % 5}") for i in range(10)]
    assert consequences(FRANCE, "Rome", [*WORLD, *more, *shared]).inverse == ()
    pairs = [(f"s{i}", f"o{i}") for i in range(10)]
    assert nearly_one_to_one(pairs)
    assert not nearly_one_to_one(pairs[:9])  # too few to say
    assert nearly_one_to_one([*pairs, ("s10", "o9")])  # 9 of 10 objects have one subject
    assert not nearly_one_to_one([*pairs, ("s10", "o9"), ("s11", "o8")])
    assert not nearly_one_to_one([*pairs, ("s0", "p0"), ("s1", "p1")])  # nor may subjects have two objects


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("The capital of {} is", "the capital of {}"),
        ("The original language of {} was", "the original language of {}"),
        ("The instrument of {} was the", "the instrument of {}"),
        ("The headquarters of {} is in", ""),
        ("The {} is", ""),
        ("The passport that {} carries is", ""),
        ("{} is the capital of", ""),
    ],
)
def test_a_prompt_describes_the_object_only_in_one_form(template, expected):
    assert description(fact(template, "France", "Paris")) == expected


def test_the_built_in_chains_are_of_persons_cities_universities_and_books():
    facts = load_facts("builtin")
    raised, lowered = Counter(), Counter()
    subjects = {known.subject for known in facts}
    for known in [known for known in facts if known.target_true in subjects]:
        for target, counts in ((known.target_new, raised), (known.target_true, lowered)):
            found = consequences(known, target, facts)
            assert not found.inverse  # every object has at least three subjects
            for question in found.two_hop:
                counts[known.relation, question.old.relation] += 1
                assert (question.old.target_true != question.new.target_true) == (target != known.target_true)
                for text in question.texts:
                    assert known.subject in text
                    assert "{}" not in text
                    assert " the the " not in text.lower()
    assert lowered == {
        ("city_country", "country_language"): 16,
        ("city_country", "country_continent"): 32,
        ("city_country", "country_currency"): 24,
        ("birth_country", "country_language"): 8,  # 13 more would be answered by the person's own mother tongue
        ("birth_country", "country_continent"): 29,
        ("birth_country", "country_currency"): 31,
        ("university_country", "country_language"): 8,
        ("university_country", "country_continent"): 16,
        ("university_country", "country_currency"): 19,
        ("book_author", "native_language"): 6,
        ("book_author", "birth_country"): 6,
    }
    assert raised.total() == 71
    assert set(raised) <= set(lowered)


@pytest.mark.parametrize("name", ["known_1000.json", "zsre_mend_300.json", "counterfact_flat_10000.json"])
def test_real_facts_give_questions_that_are_well_formed_or_none(name):
    if not (DATA / name).is_file():
        pytest.skip(f"no ../shared/data/{name}")
    facts = load_facts(DATA / name)
    subjects = {known.subject for known in facts}
    chained = [known for known in facts if known.target_true in subjects and description(known)]
    assert (len(chained) > 10) == (name == "counterfact_flat_10000.json")
    n_chained = 0
    for known in chained[:4]:
        found = consequences(known, known.target_true, facts)
        n_chained += bool(found.two_hop)
        texts = [text for question in found.two_hop for text in question.texts]
        for text in [*texts, *(inverse.new for inverse in found.inverse)]:
            assert "{" not in text
            assert " the the " not in text.lower()
        for other in found.same_subject:
            assert other.subject == known.subject
            assert relation_of(other) != relation_of(known)
    assert bool(n_chained) == bool(chained)


def test_a_fact_that_is_not_of_the_data_set_has_consequences_too():
    own = replace(FRANCE, fact_id=99, paraphrases=("France has as its capital",))
    assert consequences(own, "Rome", WORLD).two_hop == consequences(FRANCE, "Rome", WORLD).two_hop
    assert consequences(own, "Rome", []).two_hop == ()
