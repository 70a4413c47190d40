"""How many facts of real files have an exact subject span and exact target tokens, for four kinds of tokenizer.

    python scripts/measure_spans.py FILE [FILE ...]

The tokenizers are trained on the first file.  Every span and every target is compared with what the tokens' spelling
says (tests/spelling.py), which knows nothing of offsets.  Prints a table.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformer_lens import HookedTransformer, HookedTransformerConfig

from loc_edit.facts.loading import load_facts
from loc_edit.models.loading import quiet
from loc_edit.prompts.encoding import Encoded, encode, encode_all, target_tokens

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from spelling import KINDS, Speller, train


def shell(fast):
    """The smallest model that can carry a tokenizer; it is never run."""
    with quiet():
        model = HookedTransformer(
            HookedTransformerConfig(
                n_layers=1, d_model=4, n_ctx=512, d_head=4, d_vocab=4, act_fn="relu", default_prepend_bos=False
            )
        )
    model.tokenizer = fast
    return model


def measure(speller, facts):
    """Counts of what happened to each fact."""
    counts = Counter(facts=len(facts))
    model = shell(speller.fast)
    start = time.perf_counter()
    found = encode_all(model, facts)
    counts["batched, us a fact"] = round((time.perf_counter() - start) / len(facts) * 1e6)
    some = [fact for fact, one in zip(facts, found, strict=True) if isinstance(one, Encoded)][:1000]
    start = time.perf_counter()
    for fact in some:
        encode(model, fact)
        for target in (fact.target_true, fact.target_new):
            if target:
                target_tokens(model, fact.prompt, target)
    counts["one by one, us a fact"] = round((time.perf_counter() - start) / len(some) * 1e6)
    for fact, one in zip(facts, found, strict=True):
        if not isinstance(one, Encoded):
            counts[f"refused: {type(one).__name__}"] += 1
            continue
        begin, _, end = fact.template.partition("{}")
        ids, span = one.prompt.tokens.tolist(), one.prompt.subject
        counts["exact span"] += (span.start, span.stop) == speller.span(ids, begin, fact.subject, end)
        wanted, how = speller.target(fact.prompt, fact.target_true)
        counts["exact target"] += one.target_true.tolist() == wanted
        counts["target by itself"] += how == "alone"
        places = speller.places(ids, fact.prompt)
        start_byte = len(speller.normal(begin).encode())
        stop_byte = start_byte + len(speller.normal(fact.subject).encode())
        before = places[span.start][0] < start_byte - (begin[-1:] == " " or not begin)
        counts["straddles an edge"] += before or places[span.stop - 1][1] > stop_byte
        counts["unknown letters in it"] += any(speller.spelled[i] is None for i in ids[span])
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--vocab-size", type=int, default=4000)
    args = parser.parse_args()
    files = {path.name: load_facts(path) for path in args.files}
    texts = [f"{fact.prompt} {fact.target_true}" for fact in next(iter(files.values()))]
    rows = []
    for kind in KINDS[:4]:
        speller = Speller(kind, train(kind, texts, vocab_size=args.vocab_size))
        rows += [(kind, name, measure(speller, facts)) for name, facts in files.items()]
    columns = list(dict.fromkeys(key for *_, counts in rows for key in counts))
    table = Table("tokenizer", "file", *columns)
    for kind, name, counts in rows:
        table.add_row(kind, name, *(f"{counts[key]:,}" for key in columns))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
