"""The configuration of an experiment: one typed, validated record, read from TOML and from the command line."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tomli_w
import tyro
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from loc_edit.arguments import Count, Id, Index, NonNegative, Probability, Ridge, Samples, Window, fits, fitted
from loc_edit.editing.settings import Settings, preset_of, presets, resolve_settings
from loc_edit.experiment.plugins import check_loaded, load_installed, load_plugins
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS, SCORES, TRACING, nearest, parse_method, scores_of
from loc_edit.store.layout import on_disk


class BadConfig(ValueError):
    """A configuration that cannot be used; the message names the file and the key."""


HINT = "; a plug-in's file is named with --plugin"

FactCount = Annotated[
    Count | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|all",
        instance_from_str=lambda words: None if words[0] in ("all", "None") else int(words[0]),
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: ["all" if value is None else str(value)],
    ),
]
"""How many facts; `None` is the word `all` on the command line, as it is in TOML."""


class ExperimentConfig(BaseModel):
    """An experiment: which facts, layers, methods and problems, on which model.

    Every field is an option of the command line and a key of the TOML file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    plugins: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--plugin"])] = ()
    """Plug-ins, which add localizers, methods, problems and scores: files (my_file.py) or modules (my_package.module).
    They are loaded when the configuration is made."""
    model: str = "builtin"
    """The built-in model, a named one (see `loc-edit models`), a hub name, a Hugging Face directory, or a GGUF file."""
    edit: str | None = None
    """A saved edit that is written into the model first, such as planted facts (`loc-edit plant`)."""
    data: str = "builtin"
    """The built-in facts, a public data set by name (counterfact, zsre, known_1000), or a file of facts."""
    data_limit: Count | None = None
    """How many of its records are read, from the first on; all if None."""
    skip_invalid: bool = False
    """Whether malformed records are left out and counted, and not an error."""
    known: bool = False
    """Whether to keep only the facts whose object the model says within 36 tokens after the prompt."""
    min_probability: Probability = 0.0
    """The lowest p(o_true) of the facts that are kept."""
    facts: FactCount = 100
    """How many facts, spread evenly over the relations, or all (in TOML "all", in Python also None)."""
    skip_facts: Index = 0
    """How many facts are left out at the beginning of this choice, such as those that settings were tuned on."""
    layers: tuple[Index, ...] | None = None
    """Layers to edit, 0-based; all if None.  (Tracing covers every layer.)"""
    methods: tuple[str, ...] = ("rome",)
    """Editing methods: rome, memit, finetune-1, finetune-5 (the number is the window), r_rome, emmet, alphaedit,
    finetune_free-1, finetune_decay-1."""
    problems: tuple[str, ...] = ("error_injection",)
    """Editing problems: error_injection, tracing_reversal, fact_erasure, fact_amplification, fact_forcing.
    Without any (in TOML []), facts are only traced."""
    scores: tuple[str, ...] = ()
    """Scores beside those that every edit has: generation (what the model writes), survival (of rounding and merging),
    ripple (what follows from the fact), formats and relearning (is it gone), movement (of the tracing profile), and
    scores of plug-ins."""
    windows: tuple[Window, ...] = (5,)
    """How many layers localizers take together: the restoration windows of Causal Tracing, and of the others."""
    localizer_windows: tuple[Window, ...] | None = None
    """Windows of the localizers other than Causal Tracing, if they differ."""
    localizers: tuple[str, ...] = (TRACING,)
    """Ways to say where a fact is stored: causal_tracing, attribution, integrated_gradients,
    layer_integrated_gradients, relp, zero_ablation, mean_ablation, resample_ablation, severed_mlp, severed_attn,
    direct, logit_lens, tuned_lens, random, or all.  Without any, facts are only edited."""
    sequence: Index = 0
    """How many facts are also edited in sequence, one after another in one model, by each method at each layer.  The
    model is looked at after 1, 3, 10, 30, ... edits.  At most as many as there are facts; 0 for none."""
    site: str = "mlp_out"
    """Where localizers look and tracing restores: mlp_out, attn_out, resid_post, or what follows `blocks.<l>.`"""
    noise: str = "s3"
    """Subject noise: a standard deviation, or s3 for three standard deviations of the subjects' embeddings; u0.2 or us3
    (uniform), m1 (full covariance), swap (other facts' subjects)."""
    noise_samples: Samples = 10
    """Noise samples per fact."""
    corpus: str = "builtin"
    """Texts for the key statistics."""
    corpus_tokens: Annotated[int, Ge(2)] = 200_000
    """How many of its tokens are used at most."""
    ridge: Ridge = 0.0
    """What is added to the diagonal of the keys' second moments, in units of its mean, for a small corpus."""
    preset: str = "auto"
    """Settings of the methods: builtin, gpt-j, gpt2-xl, none, or auto (by the model's name)."""
    settings: Annotated[dict[str, dict[str, Any]], tyro.conf.Suppress] = {}
    """Settings that differ from the preset: `[settings.rome]`, `[settings.finetune-5.fact_forcing]`; TOML only."""
    essence: bool = True
    """Whether to score texts about the subject."""
    seed: Id = 0
    """What every random draw depends on, together with a fact's id."""
    chunk: Count = 25
    """Facts that are computed together, and lost together when a run is stopped."""
    workers: Count | None = None
    """Processes that compute side by side, each with its own copy of the model.  None: from the command line, on the
    CPU one for each core, or as many as fit into half of the free memory; else 1."""
    engine: Literal["local", "ray"] = "local"
    """Where rows are computed: on this machine, or on a Ray cluster (`pip install 'loc-edit[ray]'`)."""
    address: str | None = None
    """Address of the Ray cluster: auto, host:6379, ray://host:10001; None starts one on this machine."""
    gpus: NonNegative | None = None
    """GPUs of each Ray worker; None: one where the cluster has any."""
    mirror: str | None = None
    """An address to which the folder's files are copied, and from which an empty folder is filled: s3://bucket/run, or
    another that fsspec knows."""
    out: str = "runs/demo"
    """The run's folder."""

    @field_validator("*", mode="before")
    @classmethod
    def _fits(cls, value: Any, info: Any) -> Any:
        """Strict types and limits; the other validators of raw values, which stand below, come before this one."""
        value = tuple(value) if isinstance(value, list) else value
        return fitted(value, get_type_hints(cls, include_extras=True)[info.field_name])

    @field_validator("plugins")
    @classmethod
    def _load_plugins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        load_plugins(value)
        return value

    @field_validator("noise", mode="before")
    @classmethod
    def _noise_as_text(cls, value: Any) -> Any:
        return str(value) if fits(value, float) else value

    @field_validator("localizers", mode="before")
    @classmethod
    def _all_localizers(cls, value: Any) -> Any:
        names = [value] if value == "all" else value
        if not isinstance(names, list | tuple) or "all" not in names:
            return value
        own = [name for name, known in LOCALIZERS.items() if known.origin is None]
        return tuple(dict.fromkeys([*own, *(name for name in names if name != "all")]))

    @field_validator("facts", mode="before")
    @classmethod
    def _all_facts(cls, value: Any) -> Any:
        return None if value == "all" else value

    @field_validator("out")
    @classmethod
    def _on_a_disk(cls, value: str) -> str:
        on_disk(value)
        return value

    @field_validator("methods", "problems", "layers", "windows", "localizer_windows", "localizers", "scores")
    @classmethod
    def _not_twice(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"an entry stands twice in {list(value)}")
        return value

    @field_validator("methods", "layers", "windows", "localizer_windows")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value == ():
            raise ValueError("expected at least one entry, got none")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> "ExperimentConfig":
        if not self.localizers and not self.problems:
            raise ValueError("no localizers and no problems: expected something to compute")
        if self.sequence > (self.sequence if self.facts is None else self.facts):
            raise ValueError(f"sequence {self.sequence}: expected at most as many as facts, {self.facts}")
        if self.site == "resid_post" and {*self.windows, *(self.localizer_windows or ())} != {1}:
            raise ValueError("site resid_post is restored in one layer at a time: expected windows = [1]")
        if "fact_forcing" in self.problems and (self.noise == "swap" or self.noise[:1] in ("u", "m")):
            raise ValueError(
                f"noise {self.noise!r}: fact_forcing draws fresh Gaussian noise while it edits; "
                "expected a standard deviation, or a factor such as s3"
            )
        return self

    @model_validator(mode="after")
    def _known_names(self) -> "ExperimentConfig":
        methods = {name.partition("-")[0] for name in {*self.methods, *self.settings}}
        pairs = (
            (methods, METHODS),
            (self.localizers, LOCALIZERS),
            (self.problems, PROBLEMS),
            (self.scores, _scorers()),
        )
        if any(not {*named} <= {*known} for named, known in pairs):
            load_installed()
        if own := [score for score in self.scores if score in SCORES and score not in _scorers()]:
            raise ValueError(f"score {own[0]!r}: every edit has it, or it comes with {', '.join(_scorers())}")
        _refuse_unknown("localizer", self.localizers, [*LOCALIZERS, "all"])
        _refuse_unknown("problem", self.problems, PROBLEMS)
        _refuse_unknown("score", self.scores, _scorers())
        _refuse_unknown("preset", [self.preset], [*presets(), "none", "auto"], hint="")
        for method, table in self.settings.items():
            problems = [key for key, value in table.items() if isinstance(value, dict)]
            _refuse_unknown(f"settings.{method}: problem", problems, PROBLEMS, hint="")
        for localizer in self.localizers:
            sites = LOCALIZERS[localizer].sites
            if sites and self.site not in sites:
                raise ValueError(f"localizer {localizer!r} looks at site {' or '.join(sites)}, not at {self.site!r}")
        check_loaded(self.used)
        return self

    @model_validator(mode="after")
    def _fitting_settings(self) -> "ExperimentConfig":
        if len({parse_method(method) for method in self.methods}) < len(self.methods):
            raise ValueError(f"methods {', '.join(self.methods)}: a method stands twice")
        for method in {*self.methods, *self.settings}:
            parse_method(method)
            for problem in PROBLEMS:
                self.settings_of(method, problem)
        return self

    @classmethod
    def from_toml(cls, path: str | Path) -> "ExperimentConfig":
        """The configuration in a TOML file, or one of `NAMED` by its name.

        Raises:
            BadConfig: no such file, no TOML, or a key or value that is not known.
        """
        if str(path) in NAMED:
            return cls(**NAMED[str(path)])
        file = Path(path)
        if not file.is_file():
            raise BadConfig(f"configuration {str(path)!r}: no such file, and not one of {', '.join(NAMED)}")
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadConfig(f"{file}: no TOML: {error}") from error
        return cls.from_values(values, str(file))

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str = "configuration") -> "ExperimentConfig":
        """The configuration of plain values; unknown keys are refused with the nearest known one."""
        for key in values:
            if key not in cls.model_fields:
                raise BadConfig(f"{where}: unknown key {key!r}; {nearest(key, list(cls.model_fields))}")
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadConfig(f"{where}: {first_error(error)}") from error

    def to_toml(self) -> str:
        """The configuration as TOML, which `from_toml` reads back; it has no `None`."""
        every = {"facts": "all"} if self.facts is None else {}
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True) | every)

    @property
    def used(self) -> dict[str, tuple[str, ...]]:
        """The localizers, methods, problems and scores that it names, by kind."""
        methods = tuple(parse_method(name)[0] for name in self.methods)
        scores = tuple(column for name in self.scores for column in scores_of(name))
        return {"localizers": self.localizers, "methods": methods, "problems": self.problems, "scores": scores}

    def with_settings(self, assignments: Iterable[str]) -> "ExperimentConfig":
        """The configuration with some settings of methods set: `rome.clamp=6`, `finetune-5.fact_forcing.lr=1e-3`.

        Raises:
            BadConfig: no such setting, or a value of another type.
        """
        values = self.model_dump()
        for assignment in assignments:
            name, equals, value = (part.strip() for part in assignment.partition("="))
            if not equals or name.count(".") not in (1, 2):
                raise BadConfig(f"--set {assignment}: expected METHOD.SETTING=VALUE or METHOD.PROBLEM.SETTING=VALUE")
            *tables, setting = name.split(".")
            table = values["settings"]
            for key in tables:
                table = table.setdefault(key, {})
            try:
                table[setting] = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                table[setting] = value
        return self.from_values(values, "--set")

    def settings_of(self, method: str, problem: str, more: dict[str, Any] | None = None) -> Settings:
        """The resolved settings of a method for a problem: defaults, preset, this configuration's, then `more`."""
        preset = preset_of(self.model) if self.preset == "auto" else presets().get(self.preset, {})
        return resolve_settings(method, problem, preset, self.settings, {method: more or {}})


NAMED: dict[str, dict[str, Any]] = {
    "default": {},
    "smoke": {"facts": 6, "layers": (2, 4), "out": "runs/smoke", "corpus_tokens": 20_000},
    "full": {
        "facts": None,
        "methods": ("rome", "memit", "finetune-1", "finetune-5"),
        "problems": tuple(PROBLEMS),
        "windows": (1, 3, 5, 10),
        "out": "runs/full",
    },
}
"""Configurations that have a name."""


def _scorers() -> list[str]:
    """What `scores` may name."""
    return list(dict.fromkeys(known.scorer for known in SCORES.values() if known.scorer))


def _refuse_unknown(kind: str, names: Iterable[str], known: Iterable[str], hint: str = HINT) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{kind} {name!r}: {nearest(name, known)}{hint}")


def first_error(error: ValidationError) -> str:
    """The first of a validation's errors in one line: the key, and what was expected."""
    first = error.errors()[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
