"""The paper's regressions: R^2 and F by hand, against R, and the reasons for missing numbers."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from synthetic import edit_rows, regression_rows, trace_rows

from loc_edit.analysis.regression.ols import fit, fits
from loc_edit.analysis.tables.paper import table_1
from loc_edit.analysis.tables.rows import RowsMissing, join


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_r2_and_f_by_hand():
    # Two layers, means 1 and 3.  Around them +-1 on the line y = trace at layer 0, and unrelated at layer 1.
    frame = pd.DataFrame(
        {
            "fact_id": [0, 1, 2, 3] * 2,
            "layer": [0] * 4 + [1] * 4,
            "trace": [0, 0, 2, 2, 0, 0, 2, 2],
            "rewrite": [0, 0, 2, 2, 2, 4, 2, 4],
        }
    )
    fitted = fit(frame)
    # SS: total 16, between layers 8; layer 0's line takes 4 more; the line over all rows takes 2.
    np.testing.assert_allclose([fitted.r2_layer, fitted.r2_trace, fitted.r2_both], [8 / 16, 2 / 16, 12 / 16])
    np.testing.assert_allclose(fitted.r2_added, 4 / 16)
    np.testing.assert_allclose(fitted.f, (4 / 2) / (4 / 4))
    assert (fitted.df_num, fitted.df_den) == (2, 4)
    np.testing.assert_allclose(fitted.p, scipy.stats.f.sf(2, 2, 4))
    np.testing.assert_allclose(fitted.r2_both_adjusted, 1 - (4 / 4) / (16 / 7))
    assert (fitted.n, fitted.n_dropped, fitted.n_facts, fitted.layers) == (8, 0, 4, (0, 1))
    assert fitted.reason == ""


def test_values_that_r_gives():
    # R's data set mtcars: mpg ~ factor(cyl), mpg ~ wt, mpg ~ factor(cyl) * wt, as printed by summary(lm(...)).
    cyl = [6, 6, 4, 6, 8, 6, 8, 4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4, 8, 8, 8, 8, 4, 4, 4, 8, 6, 8, 4]
    mpg = [21, 21, 22.8, 21.4, 18.7, 18.1, 14.3, 24.4, 22.8, 19.2, 17.8, 16.4, 17.3, 15.2, 10.4, 10.4, 14.7]
    mpg += [32.4, 30.4, 33.9, 21.5, 15.5, 15.2, 13.3, 19.2, 27.3, 26, 30.4, 15.8, 19.7, 15, 21.4]
    wt = [2.62, 2.875, 2.32, 3.215, 3.44, 3.46, 3.57, 3.19, 3.15, 3.44, 3.44, 4.07, 3.73, 3.78, 5.25, 5.424]
    wt += [5.345, 2.2, 1.615, 1.835, 2.465, 3.52, 3.435, 3.84, 3.845, 1.935, 2.14, 1.513, 3.17, 2.77, 3.57, 2.78]
    fitted = fit(pd.DataFrame({"fact_id": range(32), "layer": cyl, "trace": wt, "rewrite": mpg}))
    r2s = [fitted.r2_layer, fitted.r2_layer_adjusted, fitted.r2_trace, fitted.r2_both, fitted.r2_both_adjusted]
    np.testing.assert_allclose(r2s, [0.7325, 0.714, 0.7528, 0.8616, 0.8349], atol=5e-5)
    assert (fitted.df_num, fitted.df_den) == (3, 26)
    assert fitted.f == pytest.approx(26 / 3 * (0.8616 - 0.7325) / (1 - 0.8616), rel=1e-3)


@pytest.mark.parametrize(("r2_layer", "r2_added"), [(0.6, 0.1), (0.9, 0.0), (0.1, 0.5)])
def test_known_shares_of_variance_are_recovered(r2_layer, r2_added):
    fitted = fit(regression_rows(r2_layer=r2_layer, r2_added=r2_added, n_facts=200))
    np.testing.assert_allclose(fitted.r2_layer, r2_layer, atol=1e-10)
    np.testing.assert_allclose(fitted.r2_added, r2_added, atol=1e-10)
    assert fitted.r2_both >= fitted.r2_layer


def test_degrees_of_freedom_of_the_study():
    frame = regression_rows(n_facts=50, layers=(0, 4, 5, 8, 12, 16, 20, 24, 27))
    fitted = fit(frame)
    assert (fitted.df_num, fitted.df_den) == (9, len(frame) - 18)


def test_nan_rows_are_dropped_once_and_counted():
    frame = regression_rows(n_facts=50)
    holes = frame.copy()
    holes.loc[[0, 1], "rewrite"] = np.nan
    holes.loc[[1, 9], "trace"] = np.nan
    fitted = fit(holes)
    assert fitted.n_dropped == 3
    assert fitted == replace(fit(frame.drop(index=[0, 1, 9])), n_dropped=3)


def test_fit_refuses_several_combinations_and_names_fits():
    frame = pd.concat([regression_rows(), regression_rows(method="finetune", window=5)])
    with pytest.raises(
        ValueError, match=r"got 2: error_injection x rome x 1, error_injection x finetune x 5; use fits"
    ):
        fit(frame)
    table = fits(frame)
    assert table[["method", "window"]].to_numpy().tolist() == [["finetune", 5], ["rome", 1]]
    assert table["r2_layer"].round(10).tolist() == [0.6, 0.6]


def test_controls_stay_out():
    frame = regression_rows()
    control = frame.assign(method="none", layer=-1, rewrite=0.0)
    assert fit(pd.concat([frame, control])) == fit(frame)
    assert len(fits(pd.concat([frame, control]))) == 1


@pytest.mark.parametrize(
    ("change", "computed", "reason"),
    [
        (lambda f: f[f["layer"] == 0], {"r2_trace"}, "there is one layer only"),
        (lambda f: f.assign(rewrite=1.0), set(), "rewrite is constant"),
        (lambda f: f.assign(trace=0.3), {"r2_layer", "r2_layer_adjusted"}, "the tracing effect is constant"),
        (lambda f: f.assign(rewrite=np.nan), set(), "no row has both"),
        (lambda f: f[f["fact_id"] == 0], {"r2_trace"}, "too few rows for the layers"),
        (
            lambda f: f[f["fact_id"] < 2],
            {"r2_trace", "r2_layer", "r2_layer_adjusted"},
            "too few rows for layer and",
        ),
        (lambda f: f.head(0), set(), "no row has both"),
        (
            lambda f: f.assign(trace=f["layer"] * 0.1),
            {
                "r2_trace",
                "r2_layer",
                "r2_layer_adjusted",
                "r2_both",
                "r2_both_adjusted",
                "r2_added",
                "df_num",
                "df_den",
            },
            "constant within every layer",
        ),
        (
            lambda f: f.assign(rewrite=f["trace"] + f["layer"]),
            {
                "r2_trace",
                "r2_layer",
                "r2_layer_adjusted",
                "r2_both",
                "r2_both_adjusted",
                "r2_added",
                "df_num",
                "df_den",
            },
            "the fit is exact",
        ),
    ],
)
def test_a_number_that_cannot_be_computed_has_a_reason(change, computed, reason):
    fitted = fit(change(regression_rows(n_facts=20)))
    numbers = ["r2_layer", "r2_trace", "r2_both", "r2_added", "r2_layer_adjusted", "r2_both_adjusted"]
    numbers += ["f", "df_num", "df_den", "p"]
    assert {name for name in numbers if not np.isnan(getattr(fitted, name))} == computed
    assert reason in fitted.reason


def test_a_layer_whose_effect_never_varies_costs_a_degree_of_freedom():
    frame = regression_rows(n_facts=30)
    frame.loc[frame["layer"] == 0, "trace"] = 0.0
    fitted = fit(frame)
    assert (fitted.df_num, fitted.df_den) == (3, len(frame) - 7)
    assert np.isfinite(fitted.p)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="fit: no column overall; there are fact_id, problem"):
        fit(regression_rows(), "overall")


def test_representations():
    fitted = fit(regression_rows())
    assert "R^2 layer 0.600" in repr(fitted)
    assert "ROME" in repr(fitted)
    assert "<table" in fitted._repr_html_()
    assert fitted.to_frame().loc[0, "r2_layer"] == fitted.r2_layer


def test_table_1_has_one_row_per_problem_of_rome():
    traces = trace_rows(n_facts=15)
    fitted = fits(join(edit_rows(traces), traces))
    assert len(fitted) == 8
    assert (fitted["r2_both"] >= fitted["r2_layer"]).all()
    table = table_1(fitted)
    assert table["Problem"].tolist() == ["Error injection", "Fact forcing"]
    assert table["Method"].unique().tolist() == ["ROME"]
    with pytest.raises(RowsMissing, match="ROME"):
        table_1(fitted[fitted["method"] == "memit"])
