"""What all parts of `scripts/bench_real.py` share: the model, its peer, facts, and the rows of its table."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import HookedTransformer

import loc_edit
from benching.counts import Asked
from benching.peers import make_peer
from benching.products import Products, floor_seconds
from benching.setup import SHAPES, make_model
from benching.timing import Clock, Times, ratio, spread_of
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.prompts.encoding import encode_all
from loc_edit.prompts.noise import corruption

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "counterfact_flat_10000.json"
"""CounterFact, where it lies beside the project."""
AT_MOST = 600
"""Facts that are read."""
SIZES = {"facts": 8, "traced": 20, "known": 30, "subjects": 3, "tokens": 5000, "samples": 10}
QUICK = {"facts": 2, "traced": 2, "known": 30, "subjects": 3, "tokens": 2000, "samples": 10}
TINY = {"facts": 2, "traced": 2, "known": 4, "subjects": 1, "tokens": 300, "samples": 2}


@dataclass
class Case:
    """A model under the benchmark, on one number of threads.

    Attributes:
        source: a named model, a directory, `builtin`, or a shape with random weights.
        args: the options of the script.
        clock: measures.
    """

    source: str
    args: Namespace
    clock: Clock
    _costs: list[dict[str, float]] = field(default_factory=list)

    @cached_property
    def model(self) -> HookedTransformer:
        return load(self.source, self.args.device, getattr(torch, self.args.dtype))

    @cached_property
    def peer(self) -> tuple[Any, bool]:
        """The Hugging Face model, and whether it has the same weights."""
        return make_peer(self.source, self.model)

    @cached_property
    def products(self) -> Products:
        return Products(self.model, self.clock)

    @cached_property
    def facts(self) -> list[loc_edit.Fact]:
        """Facts that have everything that the parts need, spread over relations if they have any."""
        data = self.args.data or (str(SHARED) if SHARED.is_file() else "builtin")
        facts = loc_edit.load_facts(data)[: AT_MOST * 10 : 10] if data != "builtin" else loc_edit.load_facts(data)
        facts = sample_by_relation(facts, min(len(facts), AT_MOST))
        pairs = zip(facts, encode_all(self.model, facts), strict=True)
        usable = [fact for fact, found in pairs if not isinstance(found, Exception) and fact.target_new]
        return [fact for fact in usable if fact.paraphrases and fact.neighbors]

    @cached_property
    def corruption(self) -> Any:
        return corruption(self.model, "s3", self.facts)

    @property
    def sizes(self) -> dict[str, int]:
        sizes = TINY if self.args.quick and self.source.startswith("tiny") else QUICK if self.args.quick else SIZES
        own = {"facts": self.args.facts, "traced": self.args.facts} if self.args.facts else {}
        return {**sizes, **own}

    @property
    def layer(self) -> int:
        """The edited layer: 8 of 30."""
        return self.model.cfg.n_layers * 8 // 30

    def spread(self, n: int) -> list[loc_edit.Fact]:
        """`n` facts whose prompts have lengths from the shortest to the longest, in the order of the data."""
        lengths = [len(loc_edit.encode(self.model, fact)) for fact in self.facts]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return [self.facts[i] for i in sorted(order[j * len(order) // n] for j in range(min(n, len(order))))]

    def typical(self, n: int) -> list[loc_edit.Fact]:
        """`n` facts from among those whose prompts have about 10 tokens."""
        return sorted(self.facts, key=lambda fact: abs(len(loc_edit.encode(self.model, fact)) - 10))[:n]

    def noise(self, fact: loc_edit.Fact, samples: int) -> Tensor:
        return self.corruption.draw(self.model, loc_edit.encode(self.model, fact), samples=samples)

    def asked(self, facts: Sequence[loc_edit.Fact], samples: int) -> list[Asked]:
        """The facts as `counts` takes them."""
        pairs = [(loc_edit.encode(self.model, fact), fact) for fact in facts]
        return [Asked(p, len(loc_edit.target_tokens(self.model, p.text, f.target_true)), samples) for p, f in pairs]

    def beside_floor(
        self, part: str, what: str, run: Callable[[], object], count: Counter[str], goal: float | None
    ) -> dict[str, Any]:
        """A row of the table: a call beside its weight products, which are measured in the same rounds."""
        self._costs.clear()
        self.products  # noqa: B018  (chosen before the rounds)
        self.warm_up(run)
        rounds = self.clock.rounds(
            {"ours": run, "products": lambda: self._costs.append(self.products.seconds())}, self.args.rounds
        )
        for times, costs in zip(rounds, self._costs, strict=True):
            times["floor"] = floor_seconds(count, costs)
        least, more = self.products.total(count), {}
        if self.args.flops:
            computed = flops(run) / least
            more = {"computed / floor, FLOP": computed, "note": f"computes {computed:.2f} times its products"}
        return row(part, what, rounds, "floor", goal, GFLOP=least / 1e9, **more)

    def beside_peer(
        self, part: str, what: str, versions: dict[str, Callable[[], object]], goal: float, **more: Any
    ) -> dict[str, Any]:
        """A row of the table: a call `ours` beside another version."""
        for run in versions.values():
            self.warm_up(run)
        rounds = self.clock.rounds(versions, self.args.rounds)
        return row(part, what, rounds, next(name for name in versions if name != "ours"), goal, **more)

    def warm_up(self, run: Callable[[], object]) -> None:
        """The first call on a GPU loads libraries; on a CPU it takes little longer than the others."""
        if self.model.W_E.device.type == "cuda":
            run()


def flops(run: Callable[[], object]) -> int:
    """The FLOPs of all matrix products that a call computes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def load(source: str, device: str, dtype: torch.dtype) -> HookedTransformer:
    """A model by name or directory, or of a shape with random weights."""
    if source in SHAPES:
        return make_model(source, device, dtype)
    return loc_edit.load_model(source, device=device, dtype=dtype)


def row(part: str, what: str, rounds: list[Times], peer: str, goal: float | None, **more: Any) -> dict[str, Any]:
    """A row of the table; `more` is written to the file only, but for a `note`."""
    return {
        "part": part,
        "what": what,
        "peer": peer,
        "ours, s": spread_of([times["ours"] for times in rounds]),
        "peer, s": spread_of([times[peer] for times in rounds]),
        "ratio": ratio(rounds, "ours", peer),
        "goal": goal,
        **more,
    }
