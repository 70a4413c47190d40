"""Hyperparameters of the editing methods, as frozen records, and presets of them.  Loads without torch."""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_type_hints, runtime_checkable

from annotated_types import Gt, Le

from loc_edit.arguments import CheckedFields, Count, NonNegative, Positive, checked, fitted
from loc_edit.files import DATA
from loc_edit.names import parse_method

PRESETS_PATH = DATA / "presets.toml"
BUILTIN_PRESET_PATH = DATA / "model" / "presets.toml"

Eps = Annotated[float, Gt(0), Le(math.inf)]
"""How far an entry may go in fine-tuning; infinity is no limit."""


@dataclass(frozen=True)
class ValueSettings(CheckedFields):
    """Hyperparameters of the optimization of the value, which ROME and MEMIT share.

    Where a norm follows the MLP, v0 is u0, what `W_out` puts out before the norm, and delta, v0 and so the learning
    rate are in units of the root mean square of u0.

    Attributes:
        steps: forward passes; the last does not update (ROME with objective `lower`: it does).
        lr: Adam's learning rate.
        kl: weight of the essence row's KL divergence.
        decay: weight of ||delta|| / ||v0||^2 (in MEMIT z0, the residual stream, takes the place of v0).
        clamp: largest ||delta|| in units of ||v0||.
        early_stop: a request's value is left as it is once its loss is below this; 0 for never.  (The study's code
            has .05, and never gets there.)
    """

    steps: Count = 20
    lr: Positive = 0.5
    kl: NonNegative = 0.0625
    decay: NonNegative = 0.5
    clamp: Positive = 4.0
    early_stop: NonNegative = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class RomeSettings(ValueSettings):
    """Hyperparameters of ROME: only the value has any; the defaults are the study's."""


@dataclass(frozen=True)
class RRomeSettings(RomeSettings):
    """Hyperparameters of R-ROME.

    Attributes:
        key: the only key of the closed form: `bare`, the bare prompt's, or `mean`, the mean over the contexts.
    """

    key: Literal["bare", "mean"] = "bare"


@dataclass(frozen=True)
class EmmetSettings(RomeSettings):
    """Hyperparameters of EMMET: only the value has any."""


@dataclass(frozen=True)
class MemitSettings(ValueSettings):
    """Hyperparameters of MEMIT: for the value, and the weight of what the layers know already.

    Attributes:
        moment_weight: lambda, the weight of the old keys' second moment against the new keys.
    """

    steps: Count = 25
    clamp: Positive = 0.75
    moment_weight: NonNegative = 15000.0


@dataclass(frozen=True)
class AlphaEditSettings(ValueSettings):
    """Hyperparameters of AlphaEdit: for the value, and a threshold for what counts as unused by the old keys.

    Attributes:
        null_space: eigenvalues of the second moment below this share of its diagonal's mean count as zero.
    """

    steps: Count = 25
    clamp: Positive = 0.75
    null_space: Positive = 2e-2


@dataclass(frozen=True)
class FinetuneSettings(CheckedFields):
    """Hyperparameters of constrained fine-tuning.

    Attributes:
        steps: most Adam steps.
        lr: Adam's learning rate.
        eps: largest change of any entry.
        bias: whether `b_out` is trained too, where the checkpoint has one.
        weight_decay: weight of ||delta W||^2 in the loss; the stopping rule does not count it.
    """

    steps: Count = 25
    lr: Positive = 5e-4
    eps: Eps = 1e-4
    bias: bool = True
    weight_decay: NonNegative = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class FreeFinetuneSettings(FinetuneSettings):
    """Hyperparameters of fine-tuning without a box."""

    eps: Eps = math.inf


@dataclass(frozen=True)
class DecayFinetuneSettings(FreeFinetuneSettings):
    """Hyperparameters of fine-tuning held back by weight decay toward the old weights, not by a box."""

    weight_decay: NonNegative = field(default=0.1, kw_only=True)


@runtime_checkable
class Settings(Protocol):
    """The settings of some method: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


SETTINGS: dict[str, type[Settings]] = {
    "rome": RomeSettings,
    "r_rome": RRomeSettings,
    "emmet": EmmetSettings,
    "memit": MemitSettings,
    "alphaedit": AlphaEditSettings,
    "finetune": FinetuneSettings,
    "finetune_free": FreeFinetuneSettings,
    "finetune_decay": DecayFinetuneSettings,
}
"""The record of each method: frozen, of bools, ints, floats and strings with defaults."""


def resolve_settings(name: str, problem: str, *tables: dict[str, Any]) -> Settings:
    """The settings of a method for a problem: its defaults, then each of `tables` in turn.

    A table maps a method's name to its settings.  Among these, a problem's name maps to the settings that differ for
    it: `{"rome": {"clamp": 20, "fact_forcing": {"steps": 25}}}`.  `finetune` counts for every window, `finetune-5` for
    that one.

    Raises:
        ValueError: a table names a setting that the method does not have, or gives it a value of another type or
            outside its limits.
    """
    method, window = parse_method(name)
    record = SETTINGS[method]
    hints = get_type_hints(record, include_extras=True)
    kinds = {entry.name: hints[entry.name] for entry in fields(record)}
    values: dict[str, Any] = {}
    for entry in (table.get(key, {}) for table in tables for key in (method, f"{method}-{window}")):
        values |= {key: value for key, value in entry.items() if not isinstance(value, dict)} | entry.get(problem, {})
    if unknown := sorted(set(values) - set(kinds)):
        raise ValueError(f"settings of {name}: expected {', '.join(sorted(kinds))}; got {', '.join(unknown)}")
    try:
        return record(**{key: fitted(value, kinds[key], key) for key, value in values.items()})
    except ValueError as error:  # of a value, or of a plug-in's own check
        raise ValueError(f"settings of {name}: {error}") from error


def named_after(model: str, names: Iterable[str]) -> str | None:
    """The name that the last part of a model's name or path begins with, with or without its hyphens."""
    last = Path(model).name.lower()
    return next((name for name in names if last.startswith((name, name.replace("-", "")))), None)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Settings by preset: `builtin`, `gpt-j`, `gpt2-xl`, in the form that `resolve_settings` takes."""
    return {"builtin": tomllib.loads(BUILTIN_PRESET_PATH.read_text())} | tomllib.loads(PRESETS_PATH.read_text())


def preset_of(model: str) -> dict[str, Any]:
    """The preset of a model, by its name; empty if there is none."""
    return presets().get(named_after(model, presets()) or "", {})


@checked
def tuned_settings(model: str, method: str, problem: str = "error_injection") -> Settings:
    """The settings of a method that were tuned for a model, which grids take too; the defaults if there are none.

    Args:
        model: the model's name, `model.cfg.model_name`.
        method: `finetune-1`, `rome` or another method.
        problem: one of `PROBLEMS`.
    """
    return resolve_settings(method, problem, preset_of(model))
