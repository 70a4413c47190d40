"""Edits in sequence: the edits of one method at one layer, one after another in one model, looked at as they add up.

Each edit is made for the model as edited so far.  After 1, 3, 10, 30, ... edits and after the last one, a row says what
is left of the edits, of the neighbors, and of the model (Yang et al. 2024, arXiv 2402.09656).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.memit import edit_keys
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.registry import JOINT
from loc_edit.editing.stack import EditStack
from loc_edit.editing.update import Edit
from loc_edit.experiment.batch import Batch, Posed
from loc_edit.experiment.edits import EDIT_ERRORS, edit_batch, texts_of
from loc_edit.experiment.schedule import FactIndices
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import EditCell, edit_cells
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.keys.builtin_corpus import HELD_OUT, corpus_identity, held_out_documents
from loc_edit.localization.hooks import window_layers
from loc_edit.models.model import W_out
from loc_edit.names import WAYS_OF
from loc_edit.prompts.encoding import tokenize
from loc_edit.prompts.randomness import generator
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.perplexity import perplexity
from loc_edit.scoring.probes import Probe, Probes
from loc_edit.scoring.scores import compare, mean_of_numbers
from loc_edit.store.settings import cell_key

ALONE = ("alone",)
MEANS = ("rewrite", "paraphrase", "neighborhood", "essence")
"""The scores whose mean over all edits so far is in a row."""
N_HELD_OUT = 200
"""Documents whose perplexity is measured."""


def sequence_of(setup: Setup, facts: Sequence[Fact]) -> FactIndices:
    """Which of an experiment's facts a sequence edits, in an order drawn by lot: each fact's lot is its own.

    Raises:
        BadFact: there are fewer facts than the sequence is long.
    """
    length, seed = setup.config.sequence, setup.config.seed
    if not length:
        return ()
    if len(facts) < length:
        raise BadFact(f"{setup.config.data}: sequence {length} needs as many facts, and there are {len(facts)}")
    lots = [torch.rand((), generator=generator("sequence", seed, fact.fact_id)).item() for fact in facts]
    return tuple(sorted(range(len(facts)), key=lambda index: (lots[index], facts[index].fact_id))[:length])


def sequence_cells(setup: Setup, facts: Sequence[Fact]) -> list["SequenceCell"]:
    """Every problem, method, layer and way of editing many facts; none if no sequence is asked for."""
    if not setup.config.sequence:
        return []
    in_order = [facts[index] for index in sequence_of(setup, facts)]
    order = cell_key({"facts": [[fact.fact_id, fact.content] for fact in in_order]})
    edits = [cell for problem in setup.config.problems for cell in edit_cells(setup, problem)]
    return [
        SequenceCell(**vars(cell), way=way, order=order) for cell in edits for way in WAYS_OF.get(cell.method, ALONE)
    ]


def checkpoints(length: int) -> list[int]:
    """The numbers of edits after which a sequence is looked at: 1, 3, 10, 30, ... and its length."""
    numbers = [digit * 10**power for power in range(len(str(length))) for digit in (1, 3)]
    return [*(number for number in numbers if number < length), length]


@dataclass(frozen=True)
class SequenceCell(EditCell):
    """The edits of one method at one layer for one problem, of many facts in one model.

    Attributes:
        way: one of `WAYS`.
        order: a hash of the facts in their order.
    """

    way: str
    order: str
    kind = "sequences"  # type: ignore[assignment]  # mypy takes the kind of its parent for the only one

    def identity(self, setup: Setup) -> dict[str, Any]:
        """What single edits depend on, the way and the facts in their order, and the held-out texts."""
        return {**super().identity(setup), "held_out": [corpus_identity(*HELD_OUT), N_HELD_OUT]}

    def columns(self, setup: Setup) -> dict[str, Any]:
        """What its rows say about it."""
        return {**super().columns(setup), "way": self.way}

    def rows(self, batch: Batch) -> pd.DataFrame:
        """One row per checkpoint; an edit that fails leaves the model as it is, is counted, and the next one follows.

        Facts that the problem makes no sense for are not part of the sequence.  If no fact is left, the only row has
        no edits and a reason.  The weights come back exactly, also after an error.
        """
        columns, setup = self.columns(batch.setup), batch.setup
        texts_of(setup, self.method)  # of the unedited model, so before any edit
        posed, failed, rows, done = batch.posed(self.problem), list[str](), list[dict[str, Any]](), 0
        if not posed.requests:
            first, (_, reason) = batch.facts[0], posed.skipped[0]
            about = {"fact_id": first.fact_id, "fact_content": first.content, "n_edits": 0}
            return pd.DataFrame([{**columns, **about, "reason": f"no fact can be edited: {reason}"}])
        meter = _SequenceMeter(batch, posed, self._layers(setup))
        earlier: dict[int, Tensor] = {}
        with EditStack(setup.model) as stack:
            for n in checkpoints(len(posed.requests)):
                start = time.perf_counter()
                failed += self._edit(setup, stack, posed.requests[:n], done, earlier)
                seconds, done = (time.perf_counter() - start) / (n if self.way == "joint" else n - done), n
                about = {"failed": len(failed), "reason": "; ".join(dict.fromkeys(failed)), "seconds": seconds}
                rows.append({**columns, **meter.row(n), **about})
        return pd.DataFrame(rows)

    def _layers(self, setup: Setup) -> list[int]:
        return list(window_layers(self.layer, self.window, setup.model.cfg.n_layers))

    def _edit(
        self, setup: Setup, stack: EditStack, requests: Sequence[EditRequest], done: int, earlier: dict[int, Tensor]
    ) -> list[str]:
        """Brings a model with the first `done` requests in it to all of them; returns why edits failed."""
        if self.way == "joint":
            stack.clear()
            made = self._joint(setup, requests)
            return _written(stack, made)
        failed: list[str] = []
        for request in requests[done:]:
            held: dict[str, Any] = {"earlier": earlier} if self.way == "kept" else {}
            [made] = edit_batch(setup, [request], self.method, self.window, self.layer, self.settings, **held)
            failed += _written(stack, made)
            if self.way == "kept" and isinstance(made, Edit):
                contexts = texts_of(setup, self.method)["contexts"]
                keys = edit_keys(setup.model, request, self._layers(setup), contexts=contexts, method=self.method)
                for layer, key in keys.items():
                    earlier[layer] = torch.cat([earlier.get(layer, key[:0]), key])
        return failed

    def _joint(self, setup: Setup, requests: Sequence[EditRequest]) -> Edit | Exception:
        texts = texts_of(setup, self.method)
        try:
            return JOINT[self.method](setup.model, requests, self._layers(setup), settings=self.settings, **texts)
        except EDIT_ERRORS as error:
            return error

    def __str__(self) -> str:
        return f"{super().__str__()}, sequence, {self.way}"


def _written(stack: EditStack, made: Edit | Exception) -> list[str]:
    """Write an edit into the model; or return why there is none."""
    if isinstance(made, Exception):
        return [str(made)]
    stack.apply(made)
    return []


class _SequenceMeter:
    """Measures a model with the first edits of a sequence in its weights.

    Args:
        batch: the facts of the sequence.
        posed: the requests and their probes; the model is unedited now.
        layers: the edited layers.
    """

    def __init__(self, batch: Batch, posed: Posed, layers: Sequence[int]) -> None:
        self.model, self.posed, self.layers = batch.setup.model, posed, layers
        subjects = [fact.subject for fact in batch.facts]
        self.probes = [_without_neighbors_about(subjects, probes) for probes in posed.meter.probes]
        self.before = Meter(self.model, self.probes).before
        self.texts = [tokenize(self.model, text) for text in held_out_documents(N_HELD_OUT, subjects)]
        self.perplexity = perplexity(self.model, self.texts)
        self.weights = self._weights()

    def _weights(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return torch.stack([W_out(self.model, layer).detach().float() for layer in self.layers])

    def row(self, n: int) -> dict[str, Any]:
        """The columns of a row after `n` edits: scores, perplexity and norms."""
        fact, requests = self.posed.facts[n - 1], self.posed.requests[:n]
        after = Meter(self.model, self.probes[:n]).before
        triples = zip(self.before[:n], after, requests, strict=True)
        scores = [compare(before, measured, request.objective) for before, measured, request in triples]
        means = {name: mean_of_numbers(getattr(score, name) for score in scores) for name in MEANS}
        size, weights = self.weights.norm(), self._weights()
        return {
            "fact_id": fact.fact_id,
            "fact_content": fact.content,
            "n_edits": n,
            "rewrite_last": scores[-1].rewrite,
            "rewrite_first": scores[0].rewrite,
            **means,
            "perplexity": perplexity(self.model, self.texts),
            "perplexity_before": self.perplexity,
            "norm": (weights.norm() / size).item(),
            "change": ((weights - self.weights).norm() / size).item(),
        }


def _without_neighbors_about(subjects: Sequence[str], probes: Probes) -> Probes:
    """The probes but for neighbors that are edited themselves: what they say is to change."""

    def is_kept(probe: Probe) -> bool:
        is_neighbor = probe.kind[0].startswith("neighborhood")
        return not (is_neighbor and any(subject in probe.prompt.text for subject in subjects))

    return replace(probes, probes=tuple(filter(is_kept, probes.probes)))
