"""The fractional effect and the effect by layer, on numbers worked out by hand and on a trace and its own rows."""

import numpy as np
import pytest
import torch

import loc_edit
from loc_edit.analysis.tables.rows import EffectDefinition, by_layer, cell_effects
from loc_edit.effects import check_choice, effect_by_layer, fractional_effect, positions_that_count
from loc_edit.prompts.encoding import Prompt

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("restored", "clean", "corrupted", "best", "expected"),
    [
        (0.4, 0.6, 0.2, -INF, 0.5),
        (0.8, 0.6, 0.2, -INF, 1.5),  # better than the clean run
        (0.8, 0.6, 0.2, 0.8, 1.0),
        (0.4, 0.6, 0.2, 0.5, 0.5),  # the clean run is the best of all
        (0.0, 0.6, 0.2, -INF, -0.5),
        (0.4, 0.2, 0.6, -INF, 0.5),  # noise that helps keeps its sign
        (0.7, 0.2, 0.6, -INF, -0.25),
        (0.5, 0.5, 0.5, -INF, NAN),
        (0.9, 0.5, 0.5 - 9e-7, -INF, NAN),
        (0.5, 0.5, 0.5, 0.7, 0.0),  # the best run has a gap though the clean run has none
        (NAN, 0.6, 0.2, -INF, NAN),
        (0.4, NAN, 0.2, -INF, NAN),
        (0.4, NAN, 0.2, 0.8, NAN),
        (0.4, 0.6, NAN, 0.8, NAN),
    ],
)
def test_a_fraction_by_hand(restored, clean, corrupted, best, expected):
    fraction = fractional_effect(np.array([restored]), clean, corrupted, best)
    np.testing.assert_allclose(fraction, [expected], rtol=1e-12)


def test_a_gap_just_large_enough_has_a_fraction():
    np.testing.assert_allclose(fractional_effect(np.array([0.5]), 0.5, 0.5 - 3e-6, -INF), [1.0])


def test_facts_broadcast_along_their_rows():
    restored = np.array([0.4, 0.8, 0.3])
    clean, corrupted, best = np.array([0.6, 0.6, 0.5]), np.array([0.2, 0.2, 0.1]), np.array([0.8, 0.8, 0.3])
    np.testing.assert_allclose(fractional_effect(restored, clean, corrupted, best), [1 / 3, 1.0, 0.5])
    np.testing.assert_allclose(fractional_effect(restored, clean, corrupted, -INF), [0.5, 1.5, 0.5])


def test_the_positions_that_count():
    pos = np.arange(5)
    assert positions_that_count(pos, 1, 3).tolist() == [False, True, True, True, True]
    assert positions_that_count(pos, 1, 3, "last_subject").tolist() == [False, False, True, False, False]


def test_the_effect_by_layer_by_hand():
    values, layer = np.array([0.2, 0.5, -0.3, -0.1, NAN, 0.4, NAN]), np.array([0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(effect_by_layer(values, layer), [0.5, 0.0, 0.4, NAN])
    np.testing.assert_array_equal(effect_by_layer(values, layer, "last_subject"), [0.5, -0.1, 0.4, NAN])
    skipped = effect_by_layer(np.array([0.7]), np.array([2]), "last_subject")
    np.testing.assert_array_equal(skipped, [NAN, NAN, 0.7])
    assert effect_by_layer(np.array([]), np.array([], dtype=int)).shape == (0,)


def test_choices_that_do_not_exist_are_refused():
    check_choice("last_subject", "max")
    with pytest.raises(ValueError, match="regressor 'mean': expected 'max' or 'last_subject'"):
        check_choice("mean")
    with pytest.raises(ValueError, match="denominator 'best': expected 'clean' or 'max'"):
        check_choice("max", "best")


GRID = [[0.2, 0.25, 0.9, 0.1], [0.2, 0.1, 0.15, 0.05], [0.2, 0.3, 0.2, 0.7]]
HOLES = [[0.2, NAN, 0.9, 0.1], [0.2, NAN, NAN, NAN], [0.2, 0.3, NAN, 0.7]]


def made_up(p_clean, p_corrupted, restored):
    prompt = Prompt(7, "The old bridge is", "The {} is", "old bridge", torch.arange(4), slice(1, 3))
    tokens = ("The", "old", "bridge", "is")
    return loc_edit.Trace(
        prompt, "x", p_clean, p_corrupted, torch.tensor(restored, dtype=torch.float64), 1, "mlp_out", token_texts=tokens
    )


@pytest.mark.parametrize("denominator", ["clean", "max"])
@pytest.mark.parametrize("regressor", ["max", "last_subject"])
@pytest.mark.parametrize(
    ("p_clean", "p_corrupted", "restored", "n_numbers"),
    [
        (0.6, 0.2, GRID, 3),
        (0.2, 0.6, GRID, 3),  # noise that helps
        (0.6, 0.2, HOLES, None),
        (0.2, 0.2, GRID, None),  # no gap between the clean and the corrupted run
        (0.2 + 5e-7, 0.2, GRID, None),
        (NAN, 0.2, GRID, 0),
        (0.6, NAN, GRID, 0),
        (0.6, 0.2, [[NAN] * 4] * 3, 0),
    ],
    ids=["plain", "noise that helps", "holes", "no gap", "tiny gap", "clean NaN", "corrupted NaN", "all NaN"],
)
def test_a_trace_and_the_analysis_of_its_rows_agree(p_clean, p_corrupted, restored, n_numbers, regressor, denominator):
    trace = made_up(p_clean, p_corrupted, restored)
    definition = EffectDefinition(window=1, regressor=regressor, denominator=denominator)
    cells = cell_effects(trace.to_frame(), definition)
    np.testing.assert_allclose(trace.fractions(denominator).numpy().ravel(), cells["fraction"], rtol=1e-12)
    layers = by_layer(trace.to_frame(), definition)
    ours = trace.by_layer(regressor, denominator).numpy()
    assert layers["layer"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(ours, layers["trace"], rtol=1e-12)
    if n_numbers is not None:
        assert np.isfinite(ours).sum() == n_numbers
