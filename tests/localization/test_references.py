"""The prompts that resample and mean ablation take from other facts."""

from dataclasses import replace

import pytest

from loc_edit.localization.references import FEWEST, references

PLACES = ("The bridge", "The river", "The city", "The north", "The company", "The teacher", "The train", "The people")


@pytest.fixture
def many(facts):
    """Eight subjects of one relation, each with two prompts."""
    templates = ("{} is in", "{} is in the city of")
    made = [
        replace(facts[0], subject=subject, template=text, relation="place") for text in templates for subject in PLACES
    ]
    return [replace(fact, fact_id=i) for i, fact in enumerate(made)]


def subjects(prompts):
    return {next(place for place in PLACES if prompt.text.startswith(place)) for prompt in prompts}


def test_a_subject_is_never_its_own_reference(tiny, many):
    for fact in many:
        prompts = references(tiny, fact, many, most=100)
        assert len(prompts) == 2 * (len(PLACES) - 1)
        assert subjects(prompts) == set(PLACES) - {fact.subject}


@pytest.mark.parametrize("alike", [FEWEST - 1, FEWEST])
def test_references_are_of_the_same_relation_if_that_has_enough(tiny, many, alike):
    fact, *others = many[: len(PLACES)]
    mixed = [other if i < alike else replace(other, relation="another") for i, other in enumerate(others)]
    enough = alike >= FEWEST
    assert len(references(tiny, fact, [fact, *mixed], most=100)) == (alike if enough else len(others))


def test_the_draw_depends_on_the_seed_and_the_fact(tiny, many):
    def drawn(fact, seed):
        return [prompt.text for prompt in references(tiny, fact, many, most=5, seed=seed)]

    assert drawn(many[0], 0) == drawn(many[0], 0)
    assert drawn(many[0], 0) != drawn(many[0], 1)
    same_pool = replace(many[0], fact_id=99)
    assert drawn(many[0], 0) != drawn(same_pool, 0)
    assert len(drawn(many[0], 0)) == 5


def test_prompts_that_cannot_be_used_are_passed_over(tiny, many):
    too_long = "{} is in" + " the city of" * tiny.cfg.n_ctx
    broken = [replace(other, template=too_long) if i % 2 else other for i, other in enumerate(many)]
    prompts = references(tiny, many[0], broken, most=100)
    assert 0 < len(prompts) < 2 * (len(PLACES) - 1)
    with pytest.raises(ValueError, match="fact 0: none of 1 facts has another subject"):
        references(tiny, many[0], many[:1])
