"""The Python lines that do what a reader did in the playground."""

from collections.abc import Sequence

from loc_edit.experiment.setup import Setup
from loc_edit.explore.session import Made, Session
from loc_edit.facts.fact import Fact
from loc_edit.localization.hooks import window_layers
from loc_edit.localization.registry import grid_options
from loc_edit.localization.trace import Trace
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS, parse_method

FUNCTIONS = {"finetune_free": "finetune", "finetune_decay": "finetune"}
"""The public functions of methods that have another name."""


def python_lines(session: Session) -> str:
    """A script over the public functions with the session's trace, edits and comparison; empty without a fact."""
    if session.fact is None:
        return ""
    config = session.setup.config
    lines = ["import loc_edit", ""]
    if config.plugins:
        lines += [f"loc_edit.ExperimentConfig(plugins={config.plugins!r})  # loads the plug-ins"]
    lines += [f"model = loc_edit.load_model({config.model!r})"]
    lines += [f"facts = loc_edit.load_facts({config.data!r}, seed={config.seed})"]
    if session.trace is not None:
        lines += ["", *_fact(session.setup, session.fact), *_noise(session.setup)]
        lines += _trace(session.setup, session.fact, session.trace)
    if session.made:
        lines += ["", *_texts(session.setup, session.made), "stack = loc_edit.EditStack(model)"]
        for number, made in enumerate(session.made):
            lines += ["", *_fact(session.setup, made.fact), *_edit(session.setup, made, f"edit_{number}")]
            lines += [f"stack.apply(edit_{number})"]
        lines += ["", "stack.clear()  # scores begin with the unedited model"]
        lines += [f"together = {' + '.join(f'edit_{number}' for number in range(len(session.made)))}"]
        lines += ['together.save("edit.safetensors")']
    if session.comparison is not None and session.made[-1].fact == session.fact:
        essence = bool(session.comparison.score.before.essence)
        lines += [f"score = loc_edit.score(model, fact, request, together, essence={essence})"]
        lines += ["print(score.show(model))"]
    return "\n".join(lines) + "\n"


def _fact(setup: Setup, fact: Fact) -> list[str]:
    known = fact in setup.data
    made = f"next(fact for fact in facts if fact.fact_id == {fact.fact_id})" if known else f"loc_edit.{fact!r}"
    return [f"fact = {made}", "prompt = loc_edit.encode(model, fact)"]


def _noise(setup: Setup) -> list[str]:
    config = setup.config
    draws = f"samples={config.noise_samples}, seed={config.seed}"
    return [f"noise = loc_edit.subject_noise(model, prompt, scale={config.noise!r}, facts=facts, {draws})"]


def _trace(setup: Setup, fact: Fact, trace: Trace) -> list[str]:
    name, config = trace.localizer, setup.config
    given = f"localizer={name!r}, site={trace.site!r}, window={trace.window}"
    if not LOCALIZERS[name].references and not LOCALIZERS[name].facts:
        options = grid_options(name, setup.model, fact, (), config.seed)
        more = "".join(f", {key}={value!r}" for key, value in options.items())
        return [f"trace = loc_edit.localize(model, prompt, fact.target_true, noise=noise, {given}{more})"]
    return [
        "from loc_edit.localization.registry import grid_options",
        f"options = grid_options({name!r}, model, fact, facts, {config.seed})  # prompts of other facts",
        f"trace = loc_edit.localize(model, prompt, fact.target_true, noise=noise, {given}, **options)",
    ]


def _texts(setup: Setup, made: Sequence[Made]) -> list[str]:
    """Key statistics and contexts of the unedited model, for all edits."""
    config, lines, layers = setup.config, list[str](), set[int]()
    for name, window, layer in ((*parse_method(edit.method), edit.layer) for edit in made):
        layers |= set(window_layers(layer, window, setup.model.cfg.n_layers)) if METHODS[name].stats else set()
    if layers:
        tokens = f"tokens={config.corpus_tokens}, ridge={config.ridge}"
        lines += [f"stats = loc_edit.key_stats(model, {sorted(layers)}, {config.corpus!r}, {tokens})"]
    for style in sorted({METHODS[parse_method(edit.method)[0]].contexts or "" for edit in made} - {""}):
        lines += [f"{style}_contexts = loc_edit.sample_contexts(model, {style!r}, seed={config.seed})"]
    return lines


def _edit(setup: Setup, made: Made, name: str) -> list[str]:
    config, (method, window) = setup.config, parse_method(made.method)
    known, problem = METHODS[method], PROBLEMS[made.problem]
    noise = f", noise=noise, noise_scale={setup.corruption.sigma!r}" if problem.sees_noise else ""
    facts = ", facts=facts" if problem.facts else ""
    posed = f"request = loc_edit.pose(fact, {made.problem!r}, model{noise}{facts}, seed={config.seed})"
    layers = list(window_layers(made.layer, window, setup.model.cfg.n_layers))
    given = f"layer={made.layer}" if known.one_layer else f"layers={layers}"
    texts = (", stats=stats" if known.stats else "") + (
        f", contexts={known.contexts}_contexts" if known.contexts else ""
    )
    if known.origin:  # a plug-in's editor has no public name
        before, function = ["from loc_edit.editing.registry import EDITORS"], f"EDITORS[{method!r}]"
        call = f"[{name}] = {function}(model, [request], {layers}{texts}, settings={made.settings!r})"
    else:
        before, function = [], f"loc_edit.{FUNCTIONS.get(method, method)}"
        call = f"{name} = {function}(model, request, {given}{texts}, settings=loc_edit.{made.settings!r})"
    return [*(_noise(setup) if noise else []), *before, posed, call]
