"""Compares the time of key statistics in one pass for all layers with the time of one pass per layer.

python scripts/benchmark_keys.py                       # the built-in model
python scripts/benchmark_keys.py --shape gpt2-small    # random weights: speed does not depend on their values

Each repetition times both, one after the other, on the same tokens.  Tokenizing before the pass and solving for the
convergence are not timed.  Prints a table and one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import loc_edit
from loc_edit.keys.builtin_corpus import builtin_corpus
from loc_edit.keys.streaming import BATCH, start_pass
from loc_edit.keys.tokens import TokenRows, write_tokens
from loc_edit.models.loading import quiet
from loc_edit.models.model import Model

SHAPES = {
    "gpt2-small": {"n_layers": 12, "d_model": 768, "n_heads": 12, "d_head": 64, "n_ctx": 1024},
    "gpt2-xl": {"n_layers": 48, "d_model": 1600, "n_heads": 25, "d_head": 64, "n_ctx": 1024},
    "gpt-j": {
        "n_layers": 28,
        "d_model": 4096,
        "n_heads": 16,
        "d_head": 256,
        "n_ctx": 2048,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 64,
        "rotary_adjacent_pairs": True,
    },
}


@dataclass(frozen=True)
class Timing:
    together: float
    apart: float

    @property
    def ratio(self) -> float:
        return self.apart / self.together


def random_model(name: str) -> Model:
    """Returns a model of a known shape with random weights, and the built-in model's tokenizer."""
    tokenizer = loc_edit.load_model().tokenizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    defaults = {"act_fn": "gelu_new", "normalization_type": "LN", "default_prepend_bos": False, "model_name": name}
    cfg = HookedTransformerConfig(**SHAPES[name], **defaults, d_vocab=len(tokenizer), device=device, seed=0)
    with quiet():
        return loc_edit.load_model(HookedTransformer(cfg, tokenizer))


def seconds(model: Model, layers: list[int], rows: TokenRows, batch: int) -> float:
    """Returns the time of one pass for some layers."""
    work = start_pass(model, layers, torch.float32, batch)
    work.samples.marks = ()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work.run(model, rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert work.seen == rows.n_tokens
    return time.perf_counter() - start


def measure(model: Model, rows: TokenRows, batch: int, repeats: int) -> list[Timing]:
    layers = list(range(model.cfg.n_layers))
    seconds(model, layers[:1], rows, batch)  # warms up
    timings = []
    for _ in range(repeats):
        together = seconds(model, layers, rows, batch)
        timings.append(Timing(together, sum(seconds(model, [layer], rows, batch) for layer in layers)))
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["builtin", *SHAPES], default="builtin")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = loc_edit.load_model() if args.shape == "builtin" else random_model(args.shape)
    with tempfile.TemporaryDirectory() as folder:
        rows = write_tokens(model, builtin_corpus(), args.tokens, Path(folder))
    timings = measure(model, rows, args.batch, args.repeats)
    ratios = [timing.ratio for timing in timings]
    results = {
        "shape": args.shape,
        "layers": model.cfg.n_layers,
        "d_mlp": model.cfg.d_mlp,
        "tokens": rows.n_tokens,
        "threads": torch.get_num_threads(),
        "device": str(model.W_E.device),
        "tokens_per_second_together": rows.n_tokens / statistics.median(t.together for t in timings),
        "tokens_per_second_apart": rows.n_tokens / statistics.median(t.apart for t in timings),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }
    for name, value in results.items():
        print(f"{name:<28} {value:,.2f}" if isinstance(value, float) else f"{name:<28} {value}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
