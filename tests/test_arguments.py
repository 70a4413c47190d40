"""Values from outside: every field of every record has limits, and every public call says what it expected."""

import math
from dataclasses import asdict, fields, is_dataclass, replace
from random import Random
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError

import loc_edit
from loc_edit.arguments import checked, fits, fitted, words
from loc_edit.editing.settings import SETTINGS, presets, resolve_settings
from loc_edit.experiment.config import BadConfig, ExperimentConfig, first_error
from loc_edit.names import PROBLEMS, parse_method

RECORDS = [*SETTINGS.values(), loc_edit.PlantSettings]
NUMBERS = (int, float)


def kinds_in(annotation):
    """An annotation and all that it is made of, down to plain types."""
    yield annotation
    if get_origin(annotation) is not Annotated:
        for part in get_args(annotation):
            yield from kinds_in(part)


def numbers_in(annotation):
    """The numbers in an annotation: with limits, as `Annotated`, or bare."""
    for kind in kinds_in(annotation):
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if plain in NUMBERS:
            yield kind


FIELDS = [
    (record, name, kind)
    for record in (*RECORDS, ExperimentConfig)
    for name, kind in get_type_hints(record, include_extras=True).items()
    if name in (ExperimentConfig.model_fields if record is ExperimentConfig else {f.name for f in fields(record)})
]


def test_there_are_fields_to_check():
    assert len(FIELDS) > 70
    assert sum(bool([*numbers_in(kind)]) for *_, kind in FIELDS) > 50


@pytest.mark.parametrize(("record", "name", "kind"), FIELDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_number_has_a_lower_and_an_upper_limit_or_counts(record, name, kind):
    for number in numbers_in(kind):
        limits = {type(limit) for limit in getattr(number, "__metadata__", ())}
        assert limits & {Ge, Gt}, f"{record.__name__}.{name} has no lower limit"
        assert get_args(number)[0] is int or limits & {Le, Lt}, f"{record.__name__}.{name} may be infinite or not"


def made_with(record, name, value):
    """A record with one value; where types are checked, wrong ones are refused before the record itself can."""
    if record is ExperimentConfig:
        return record(**{name: value})
    made = record()
    object.__setattr__(made, name, value)
    made.__post_init__()
    return made


def outside(kind, draws):
    """Values that an annotation must not take, worked out without the code that refuses them."""
    own, wrong = [*numbers_in(kind)], [object(), b"3", 3j]
    if not own:
        return [*wrong, draws.randrange(-5, 5) if bool not in kinds_in(kind) else draws.choice([0, 1, "true"])]
    wrong += [math.nan, -math.inf, True, "1e3"]
    (number,) = own
    for limit in number.__metadata__:
        if isinstance(limit, Ge | Gt):
            low = limit.ge if isinstance(limit, Ge) else limit.gt
            wrong += [math.ceil(low) - 1, math.ceil(low) - draws.randrange(1, 10**9), low - draws.random() - 1e-9]
        high = getattr(limit, "le", getattr(limit, "lt", None))
        if high is not None:
            wrong += [int(high) + draws.randrange(1, 10**9), 1e308] if math.isfinite(high) else []
            wrong += [math.inf] if isinstance(limit, Lt) else []
    wrong += [2.5] if get_args(number)[0] is int else []
    listed = any(get_origin(part) is tuple for part in kinds_in(kind))
    return [[value] for value in wrong] if listed else wrong


@pytest.mark.parametrize(("record", "name", "kind"), FIELDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_bad_value_of_any_field_is_refused_by_name(record, name, kind):
    number_as_text = (record, name) == (ExperimentConfig, "noise")
    values = [True, None, [1.0], b"s3"] if number_as_text else outside(kind, Random(f"{record.__name__}.{name}"))
    for value in values:
        with pytest.raises(ValueError, match="expected") as caught:
            made_with(record, name, value)
        said = first_error(caught.value) if isinstance(caught.value, ValidationError) else str(caught.value)
        assert name in said
        assert "\n" not in said


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("method", ["rome", "memit", "finetune-1", "finetune-5", "alphaedit", "finetune_free-1"])
def test_presets_and_defaults_are_within_the_limits_and_as_they_were(name, method):
    for problem in PROBLEMS:
        resolved = resolve_settings(method, problem, presets()[name])
        assert replace(resolved) == resolved
        kinds = get_type_hints(SETTINGS[parse_method(method)[0]])
        assert all(type(value) in (kinds[key], str) for key, value in asdict(resolved).items())


def test_whole_numbers_become_floats_so_that_a_cell_s_name_stays_the_same():
    assert asdict(made_with(loc_edit.RomeSettings, "clamp", 20)) == asdict(loc_edit.RomeSettings(clamp=20.0))
    assert type(made_with(loc_edit.RomeSettings, "clamp", 20).clamp) is float


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"methods": ["memit-1000"]}, "memit-1000"),
        ({"methods": ["memit-"]}, "memit-"),
        ({"windows": [1000]}, "windows"),
        ({"settings": {"memit": {"moment_weight": math.nan}}}, "moment_weight"),
        ({"settings": {"rome": {"fact_forcing": {"clamp": 0}}}}, "clamp"),
    ],
)
def test_other_ways_to_give_a_bad_value_are_refused_too(values, named):
    with pytest.raises(BadConfig, match=named):
        ExperimentConfig.from_values(values)


def test_settings_on_the_command_line_have_the_same_limits():
    for assignment in ("rome.clamp=nan", "rome.steps=0", "memit.moment_weight=-15000"):
        with pytest.raises(BadConfig, match=assignment.partition("=")[0].partition(".")[2]):
            ExperimentConfig().with_settings([assignment])


# Facts


@pytest.mark.parametrize("fact_id", [-1, -7, 2**63, True])
def test_a_fact_s_id_is_kept_or_refused(fact_id):
    with pytest.raises(loc_edit.BadFact, match="expected fact_id to be an integer of at least 0"):
        loc_edit.Fact(template="{} is", subject="a", target_true="b", fact_id=fact_id)
    assert loc_edit.Fact(template="{} is", subject="a", target_true="b").fact_id >= 0


# The checker itself


def test_words_and_checks_of_annotations():
    assert words(Annotated[int, Ge(1)] | None) == "an integer of at least 1 or None"
    assert words(list[str]) == "a list whose entries are each a text"
    assert fits([1, 2], list[int])
    assert not fits("12", list[str])
    assert not fits({"a": 1}, dict[str, str])
    assert fitted(3, float) == 3.0
    with pytest.raises(ValueError, match=r"expected steps to be an integer, got 2\.5"):
        fitted(2.5, int, "steps")


def test_a_checked_function_leaves_the_rest_to_python():
    @checked
    def double(number: int, *, times: int = 2) -> int:
        """Doc."""
        return number * times

    assert (double(2), double.__doc__) == (4, "Doc.")
    with pytest.raises(TypeError, match="missing"):
        double()
    with pytest.raises(ValueError, match="double: expected times to be an integer, got 'a'"):
        double(2, times="a")


# Public calls


@pytest.fixture(scope="module")
def given_things(tiny, facts, stats_of, contexts):
    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale=0.2, samples=2)
    request = loc_edit.pose(facts[0], "error_injection", tiny)
    return tiny, facts, prompt, noise, request, stats_of(tiny), contexts


BAD_CALLS = {
    "encode": lambda m, f, p, n, r, s, c: loc_edit.encode(m, "x"),
    "encode, model": lambda m, f, p, n, r, s, c: loc_edit.encode("builtin", f[0]),
    "trace, prompt": lambda m, f, p, n, r, s, c: loc_edit.trace(m, f[0], "Paris", noise=n),
    "trace, target": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, None, noise=n),
    "trace, noise": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, "Paris", noise=n[0]),
    "trace, width": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, "Paris", noise=n[..., :3]),
    "trace, samples": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, "Paris", noise=n[:0]),
    "trace, window": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, "Paris", noise=n, window=2.5),
    "trace, batch": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, "Paris", noise=n, batch_size=0),
    "trace, vocabulary": lambda m, f, p, n, r, s, c: loc_edit.trace(m, p, torch.tensor([10**6]), noise=n),
    "localize": lambda m, f, p, n, r, s, c: loc_edit.localize(m, p, "Paris", noise=n, localizer=None),
    "localize, option": lambda m, f, p, n, r, s, c: loc_edit.localize(
        m, p, "Paris", noise=n, localizer="attribution", foo=3
    ),
    "rome, request": lambda m, f, p, n, r, s, c: loc_edit.rome(m, None, layer=1, stats=s, contexts=c),
    "rome, layer": lambda m, f, p, n, r, s, c: loc_edit.rome(m, r, layer="1", stats=s, contexts=c),
    "rome, true": lambda m, f, p, n, r, s, c: loc_edit.rome(m, r, layer=True, stats=s, contexts=c),
    "rome, stats": lambda m, f, p, n, r, s, c: loc_edit.rome(m, r, layer=1, stats=None, contexts=c),
    "rome, contexts": lambda m, f, p, n, r, s, c: loc_edit.rome(m, r, layer=1, stats=s, contexts="{}"),
    "rome, settings": lambda m, f, p, n, r, s, c: loc_edit.rome(
        m, r, layer=1, stats=s, contexts=c, settings=loc_edit.MemitSettings()
    ),
    "rome, size": lambda m, f, p, n, r, s, c: loc_edit.rome(
        m, r, layer=1, stats=loc_edit.KeyStats.from_moments({1: torch.eye(7)}, n_tokens=99), contexts=c
    ),
    "memit": lambda m, f, p, n, r, s, c: loc_edit.memit(m, r, layers=1, stats=s, contexts=c),
    "memit, twice": lambda m, f, p, n, r, s, c: loc_edit.memit(m, r, layers=[1, 1], stats=s, contexts=c),
    "memit_joint": lambda m, f, p, n, r, s, c: loc_edit.memit_joint(m, r, layers=[1], stats=s, contexts=c),
    "finetune": lambda m, f, p, n, r, s, c: loc_edit.finetune(m, r, layers=None),
    "score": lambda m, f, p, n, r, s, c: loc_edit.score(m, f[0], None),
    "score, edit": lambda m, f, p, n, r, s, c: loc_edit.score(m, f[0], r, "x"),
    "score, other fact": lambda m, f, p, n, r, s, c: loc_edit.score(m, f[1], r),
    "pose": lambda m, f, p, n, r, s, c: loc_edit.pose(f[0], None, m),
    "pose, noise": lambda m, f, p, n, r, s, c: loc_edit.pose(f[0], "tracing_reversal", m, noise=n[:, :, :4]),
    "pose, scale": lambda m, f, p, n, r, s, c: loc_edit.pose(f[0], "fact_forcing", m, noise=n, noise_scale=math.nan),
    "subject_noise": lambda m, f, p, n, r, s, c: loc_edit.subject_noise(m, p, scale=0.2, samples="3"),
    "subject_noise, facts": lambda m, f, p, n, r, s, c: loc_edit.subject_noise(m, p, facts="builtin"),
    "key_stats": lambda m, f, p, n, r, s, c: loc_edit.key_stats(m, 1),
    "key_stats, tokens": lambda m, f, p, n, r, s, c: loc_edit.key_stats(m, [1], tokens=10.5),
    "KeyStats": lambda m, f, p, n, r, s, c: loc_edit.KeyStats.from_moments([torch.eye(3)], n_tokens=3),
    "load_facts": lambda m, f, p, n, r, s, c: loc_edit.load_facts(5),
    "load_facts, limit": lambda m, f, p, n, r, s, c: loc_edit.load_facts(limit="3"),
    "load_model": lambda m, f, p, n, r, s, c: loc_edit.load_model(None),
    "load_model, device": lambda m, f, p, n, r, s, c: loc_edit.load_model("builtin", device="gpu0"),
    "load_model, dtype": lambda m, f, p, n, r, s, c: loc_edit.load_model("builtin", dtype=torch.int32),
    "fit": lambda m, f, p, n, r, s, c: loc_edit.fit("x"),
    "choose_layer": lambda m, f, p, n, r, s, c: loc_edit.choose_layer(m, "builtin"),
    "choose_layer, none": lambda m, f, p, n, r, s, c: loc_edit.choose_layer(m, []),
    "choose_layer, outcome": lambda m, f, p, n, r, s, c: loc_edit.choose_layer(m, f, outcome="zz"),
    "answers": lambda m, f, p, n, r, s, c: loc_edit.answers(m, "x"),
    "restoration_hooks": lambda m, f, p, n, r, s, c: loc_edit.restoration_hooks({}, layers=[1], pos=[1]),
    "load_run": lambda m, f, p, n, r, s, c: loc_edit.load_run(5),
    "Edit.load": lambda m, f, p, n, r, s, c: loc_edit.Edit.load(3),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_argument_is_refused_in_one_sentence(given_things, name):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        BAD_CALLS[name](*given_things)
    said = str(caught.value)
    assert type(caught.value).__module__.partition(".")[0] in ("builtins", "loc_edit"), caught.type
    assert any(word in said for word in ("expected", "stands twice", "Invalid device"))
    assert "\n" not in said
    assert len(said) < 400


def test_a_settings_record_is_a_frozen_dataclass():
    assert all(is_dataclass(record) and record.__dataclass_params__.frozen for record in RECORDS)
