"""The choice of facts: relations take turns, and a larger choice begins with the smaller one."""

from collections import Counter

import pytest
from hypothesis import example, given, strategies as st

from loc_edit.facts.builtin import builtin_facts
from loc_edit.facts.fact import Fact
from loc_edit.facts.sampling import sample_by_relation

FACTS = builtin_facts()


def facts_of(relations):
    """A fact for each letter, numbered in the order of the file."""
    return [
        Fact(template="{} is", subject=f"{relation}{i}", target_true="x", relation=relation, fact_id=i)
        for i, relation in enumerate(relations)
    ]


def check_even(chosen, facts):
    """No relation with facts left has fewer chosen facts than another one by more than one."""
    counts, available = Counter(f.relation for f in chosen), Counter(f.relation for f in facts)
    most = max(counts.values(), default=0)
    for relation, n in available.items():
        assert counts[relation] >= min(n, most - 1)


@pytest.mark.parametrize("n", [0, 1, 7, 20, 45, 400, 10_000])
def test_a_choice_is_even_and_always_the_same(n):
    chosen = sample_by_relation(FACTS, n)
    assert len(chosen) == min(n, len(FACTS))
    assert chosen == sample_by_relation(FACTS, n)
    for relation in {f.relation for f in FACTS}:
        ids = [f.fact_id for f in chosen if f.relation == relation]
        assert ids == [f.fact_id for f in FACTS if f.relation == relation][: len(ids)], "each relation in file order"
    check_even(chosen, FACTS)


def test_relations_with_few_facts_drop_out_of_the_turns():
    lopsided = facts_of("a" * 10 + "bb" + "c")
    assert [f.subject for f in sample_by_relation(lopsided, 6)] == ["a0", "b10", "c12", "a1", "b11", "a2"]
    with pytest.raises(ValueError, match="-1"):
        sample_by_relation(lopsided, -1)


def test_facts_without_a_relation_count_as_one_relation():
    facts = facts_of(["", "", "city", ""])
    assert [f.fact_id for f in sample_by_relation(facts)] == [0, 2, 1, 3]


@given(st.lists(st.sampled_from("ABCD"), max_size=30))
@example(list("BBABBCBBBBBCA"))
def test_any_choice_begins_with_every_smaller_one_and_is_even(relations):
    facts = facts_of(relations)
    everything = sample_by_relation(facts)
    assert sorted(f.fact_id for f in everything) == list(range(len(facts))), "every fact once"
    for n in range(len(facts) + 2):
        chosen = sample_by_relation(facts, n)
        assert chosen == everything[:n]
        check_even(chosen, facts)


def test_turns_do_not_follow_the_order_of_the_file():
    chosen = sample_by_relation(facts_of("BBABBCBBBBBCA"))
    assert "".join(f.relation for f in chosen) == "BACBACBBBBBBB"
    assert [f.fact_id for f in chosen] == [0, 2, 5, 1, 12, 11, 3, 4, 6, 7, 8, 9, 10]
