"""Permutations and the wild cluster bootstrap: against refits, and uniform where there is no effect."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
from synthetic import dependent_rows

from loc_edit.analysis.regression.ols import fit
from loc_edit.analysis.regression.permutation import deals, permutation_p, wild_cluster_p
from loc_edit.analysis.regression.profiles import Profiles, Resampling


def nested(n_relations, size, rng, share=0.5):
    """Profiles of facts whose relations share half of the variance of both columns, and nothing with each other."""
    relation = np.repeat(np.arange(n_relations), size)

    def draw():
        of_relation = rng.normal(size=(n_relations, 3))
        return np.sqrt(share) * of_relation[relation] + np.sqrt(1 - share) * rng.normal(size=(len(relation), 3))

    return Profiles(draw(), draw(), relation, np.full(len(relation), np.nan), np.arange(3))


def test_the_permutation_statistic_is_the_refitted_one():
    frame = dependent_rows(4, 3, slope=0.5, rng=1)
    frame.loc[5, "rewrite"] = np.nan
    profiles = frame.pivot(index="fact_id", columns="layer", values="trace")
    refitted = []
    for order in permutations(range(4)):
        dealt = profiles.iloc[list(order)].set_axis(profiles.index).stack().rename("trace").reset_index()
        refitted.append(fit(frame.drop(columns="trace").merge(dealt, on=["fact_id", "layer"])).r2_added)
    expected = np.mean(np.asarray(refitted) >= refitted[0] - 1e-12)
    assert permutation_p(Profiles.of(frame), Resampling(20_000)) == pytest.approx(expected, abs=0.01)


def test_two_seeds_give_two_p_and_one_seed_gives_one():
    profiles = Profiles.of(dependent_rows(30, rng=4))
    for test in (permutation_p, wild_cluster_p):
        first, second, again = (test(profiles, Resampling(199, seed=seed)) for seed in (0, 1, 0))
        assert first == again
        assert first != second
        assert 0.01 < first < 0.99


def test_profiles_are_dealt_over_and_within_relations():
    relation = np.array([0, 0, 0, 1, 1, 2])
    means = np.array([10.0, 20.0, 30.0])
    values = (means[relation] + np.array([-1, 0, 1, -2, 2, 0]))[:, None] * np.ones(2)
    (dealt,) = deals(values, relation, Resampling(200))
    assert dealt.shape == (200, 6, 2)
    np.testing.assert_array_equal(dealt[..., 0], dealt[..., 1])  # a profile stays in one piece
    by_relation = np.stack([dealt[:, relation == r, 0].mean(1) for r in range(3)], 1)
    np.testing.assert_allclose(np.sort(by_relation, 1), np.tile(means, (200, 1)))
    assert len(np.unique(by_relation.round(6), axis=0)) == 6
    deviations = dealt[:, :3, 0] - by_relation[:, :1]
    np.testing.assert_allclose(np.sort(deviations, 1), np.tile([-1.0, 0, 1], (200, 1)), atol=1e-12)
    assert len(np.unique(deviations.round(6), axis=0)) == 6
    (within,) = deals(values, relation, Resampling(200), over_relations=False)
    np.testing.assert_allclose(within[:, relation == 1, 0].mean(1), 20.0)


@pytest.mark.slow
def test_under_no_effect_the_permutation_p_is_uniform_and_the_naive_one_is_not():
    rng = np.random.default_rng(0)
    frames = [dependent_rows(shared=0.95, rng=rng) for _ in range(120)]
    dealt = [permutation_p(Profiles.of(frame), Resampling(draws=99, seed=place)) for place, frame in enumerate(frames)]
    wild = [wild_cluster_p(Profiles.of(frame), Resampling(draws=99, seed=place)) for place, frame in enumerate(frames)]
    naive = [fit(frame).p for frame in frames]
    for p in (dealt, wild):
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
        assert np.mean(np.asarray(p) < 0.05) < 0.1
    # Each layer's slope is tested fairly, but the layers' slopes agree: small and large F are both too common.
    assert scipy.stats.kstest(naive, "uniform").pvalue < 1e-3
    assert np.mean(np.asarray(naive) < 0.05) > 0.1


def test_facts_of_one_relation_are_not_independent_evidence():
    rng = np.random.default_rng(1)
    data = [nested(12, 8, rng) for _ in range(120)]
    shuffling = Resampling(99)
    two_level = np.array([permutation_p(profiles, shuffling) for profiles in data])
    within = np.array([permutation_p(profiles, shuffling, over_relations=False) for profiles in data])
    wild = np.array([wild_cluster_p(profiles, shuffling) for profiles in data])
    facts_alone = [replace(profiles, relation=np.arange(96)) for profiles in data]
    exchanged = np.array([permutation_p(profiles, shuffling) for profiles in facts_alone])
    assert (exchanged < 0.05).mean() > 0.25
    for p in (two_level, within, wild):
        assert (p < 0.05).mean() <= 0.11
    assert scipy.stats.kstest(two_level, "uniform").pvalue > 0.01


def test_an_effect_is_found_by_each_test():
    rng = np.random.default_rng(2)
    profiles = nested(12, 5, rng)
    profiles = replace(profiles, score=profiles.score + 0.8 * profiles.trace)
    assert permutation_p(profiles, Resampling(199)) == 1 / 200
    assert permutation_p(profiles, Resampling(199), over_relations=False) == 1 / 200
    assert wild_cluster_p(profiles, Resampling(199)) <= 2 / 200


@pytest.mark.slow
def test_the_wild_bootstrap_refits_scores_with_dealt_signs():
    frame = dependent_rows(10, 3, slope=0.3, rng=1)
    profiles = Profiles.of(frame)
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=(50, 10)) * rng.choice(np.sqrt([0.5, 1.0, 1.5]), size=(50, 10))
    rest = frame["rewrite"] - frame.groupby("layer")["rewrite"].transform("mean")

    def partial(scores):
        fitted = fit(frame.assign(rewrite=scores + frame["layer"]))  # the layers' means do not matter
        return fitted.r2_added / (1 - fitted.r2_layer)

    as_large = sum(partial(rest * sign[frame["fact_id"]]) >= partial(rest) for sign in signs)
    assert wild_cluster_p(profiles, Resampling(50, seed=0)) == pytest.approx((1 + as_large) / 51)


def test_too_few_facts_have_no_p():
    assert np.isnan(permutation_p(Profiles.of(dependent_rows(2, rng=0))))
    assert np.isnan(wild_cluster_p(Profiles.of(dependent_rows(9, rng=0))))
    assert np.isfinite(wild_cluster_p(Profiles.of(dependent_rows(10, rng=0))))
    assert np.isnan(permutation_p(Profiles.of(dependent_rows(20, rng=0)), over_relations=False))
