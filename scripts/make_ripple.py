"""Make `figures/ripple_questions.csv` and `figures/ripple.csv`: whether the consequences of edits follow them.

python scripts/make_ripple.py                   # the built-in model: the questions, then edits at every layer
python scripts/make_ripple.py smollm2 --no-edits

The first file says what unedited models answer, by the chain's two relations; the second has the scores of the edits of
the built-in model, by layer.  Rows of other models stay as they are.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

import loc_edit
from loc_edit.analysis.tables.paper import markdown, rounded
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import study
from loc_edit.facts.consequences import TwoHop, consequences
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.models.model import Model
from loc_edit.names import method_label, scores_of
from loc_edit.scoring.ripple import KNOWN, probabilities

FIGURES = Path(__file__).parents[1] / "figures"
METHODS = ("rome", "memit", "finetune-1", "finetune-5")
PROBLEMS = ("error_injection", "fact_erasure")


def ask(model: Model, facts: Sequence[loc_edit.Fact]) -> pd.DataFrame:
    """What a model answers, by chain: means over the chains of p of both facts, of the question, and of controls.

    `bare` is the question with the subject in place of the phrase for the object, which needs no second fact; `guess`
    is the same answer after the question about the next fact of the relation with another answer.
    """
    chains = [(fact, two_hop) for fact in facts for two_hop in consequences(fact, fact.target_true, facts).two_hop]

    def asked(fact: loc_edit.Fact, two_hop: TwoHop, texts: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        answer = two_hop.old.target_true
        bare = two_hop.old.template.replace("{}", fact.subject)
        first, second = (fact.prompt, fact.target_true), (two_hop.old.prompt, answer)
        pairs = {"first": [first], "second": [second], "bare": [(bare, answer)]}
        return pairs | {"two_hop": [(t, answer) for t in two_hop.texts], "guess": [(t, answer) for t in texts]}

    rows = []
    for i, (fact, two_hop) in enumerate(chains):
        relations = (fact.relation, two_hop.old.relation)
        alike = [
            other.texts
            for first, other in chains[i + 1 :] + chains[:i]
            if (first.relation, other.old.relation) == relations and other.old.target_true != two_hop.old.target_true
        ]
        rows.append((relations, asked(fact, two_hop, alike[0] if alike else ())))
    p = probabilities(model, {pair for _, pairs in rows for of_kind in pairs.values() for pair in of_kind})
    frame = pd.DataFrame(
        [
            {"first_relation": relations[0], "second_relation": relations[1]}
            | {f"p_{kind}": fmean(p[pair] for pair in of_kind) for kind, of_kind in pairs.items() if of_kind}
            for relations, pairs in rows
        ]
    )
    frame["second_known"] = frame["p_second"] >= KNOWN
    frame["answered"] = frame["second_known"] & (frame["p_two_hop"] >= KNOWN)
    grouped = frame.groupby(["first_relation", "second_relation"])
    counts = grouped[["second_known", "answered"]].sum().assign(chains=grouped.size())
    return grouped[[name for name in frame if name.startswith("p_")]].mean().join(counts).reset_index()


def edit(setup: Setup, facts: Sequence[loc_edit.Fact], n: int) -> Iterator[pd.DataFrame]:
    """The mean scores of edits at every layer, a table for each cell.

    The edited facts are `n` with two-hop questions in both problems and `n` of other relations whose subjects have
    other facts, each spread over the relations.
    """
    chained, related = list[loc_edit.Fact](), list[loc_edit.Fact]()
    for fact in facts:
        follows = [consequences(fact, target or "", facts) for target in (fact.target_new, fact.target_true)]
        if all(known.two_hop for known in follows):
            chained.append(fact)
        elif follows[1].same_subject and not follows[1].two_hop:
            related.append(fact)
    chosen = [*sample_by_relation(chained, n), *sample_by_relation(related, n)]
    scores = ["rewrite", "paraphrase", "neighborhood", *scores_of("ripple")]
    for cell, rows in study(setup, chosen):
        print(cell, flush=True)
        grouped = rows[rows["status"] == "done"].groupby(["problem", "method", "window", "layer"])[scores]
        yield grouped.mean().join(grouped.count().rename(columns="n_{}".format)).reset_index()


def show() -> None:
    """Write the tables of `docs/ripple.md`: all questions, and each method at the layer of its best rewrite score."""
    asked = pd.read_csv(FIGURES / "ripple_questions.csv")
    (FIGURES / "ripple_questions.md").write_text(markdown(rounded(asked)), encoding="utf-8")
    edits = pd.read_csv(FIGURES / "ripple.csv")
    best = edits.loc[edits.groupby(["problem", "method", "window"], sort=False)["rewrite"].idxmax()]
    scores = ["rewrite", "paraphrase", "neighborhood", "ripple_two_hop", "ripple_specificity", "ripple_objects"]
    labels = [method_label(*key) for key in zip(best["method"], best["window"], strict=True)]
    shown = best.assign(method=labels)[["problem", "method", "layer", *scores]]
    (FIGURES / "ripple.md").write_text(markdown(rounded(shown)), encoding="utf-8")


def main() -> None:
    """Ask, edit and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--no-edits", action="store_true", help="only ask the unedited model")
    parser.add_argument("--n", type=int, default=6, help="edit so many facts of each kind")
    options = parser.parse_args()
    facts = loc_edit.load_facts("builtin")
    model = loc_edit.load_model(options.model)
    file = FIGURES / "ripple_questions.csv"
    others = pd.read_csv(file).query("model != @options.model") if file.is_file() else pd.DataFrame()
    asked = ask(model, facts).assign(model=options.model)
    asked.insert(0, "model", asked.pop("model"))
    pd.concat([others, asked]).sort_values("model", kind="stable").round(4).to_csv(file, index=False)
    if options.no_edits:
        show()
        return
    config = ExperimentConfig(
        model=options.model,
        methods=METHODS,
        problems=PROBLEMS,
        localizers=(),
        essence=False,
        scores=("ripple",),
        chunk=2 * options.n,
    )
    tables = list[pd.DataFrame]()
    for table in edit(Setup(config).with_data(facts, model), facts, options.n):
        tables.append(table)
        pd.concat(tables).round(4).to_csv(FIGURES / "ripple.csv", index=False)
    show()


if __name__ == "__main__":
    main()
