"""Values from outside, held to their annotations: arguments of calls, settings of methods, keys of a configuration.

An annotation says what a value may be, limits included: `Annotated[int, Ge(1)]`, `Literal["bare", "mean"]`,
`Sequence[Fact]`.  A value that does not fit is refused with one sentence, which names it and says what was expected.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from functools import wraps
from inspect import signature
from math import inf
from numbers import Integral, Real
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

Function = TypeVar("Function", bound=Callable[..., Any])

Count = Annotated[int, Ge(1)]
"""How many of something that there must be."""
Index = Annotated[int, Ge(0)]
"""A layer or a position, or how many of something that there may be."""
Samples = Annotated[int, Ge(1), Le(100_000)]
"""How many random draws a mean is taken over; more would be of no use, and would not fit into memory."""
Window = Annotated[int, Ge(1), Le(128)]
"""How many layers are taken together; no model of today has more than 128."""
Id = Annotated[int, Ge(0), Lt(2**63)]
"""A fact's id, or the start of random draws: it must fit into the 64 bits that files of rows have for it."""
Positive = Annotated[float, Gt(0), Lt(inf)]
NonNegative = Annotated[float, Ge(0), Lt(inf)]
Probability = Annotated[float, Ge(0), Le(1)]
Ridge = Annotated[float, Ge(0), Le(1e6)]
"""A share of the mean of a diagonal; a million times the mean leaves nothing of the matrix itself."""

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    NoneType: "None",
    Any: "any value",
}
_LIMITS: dict[type, tuple[Callable[[Any, Any], bool], str]] = {
    Ge: (operator.ge, "of at least"),
    Gt: (operator.gt, "above"),
    Le: (operator.le, "at most"),
    Lt: (operator.lt, "below"),
}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def checked(function: Function) -> Function:
    """A function that refuses arguments that do not fit their annotations.

    Raises:
        ValueError: names the function and the argument, and says what was expected and what was given.
    """
    called = signature(function)

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            given = called.bind(*args, **options).arguments
        except TypeError:  # an argument that is missing or unknown, which Python itself describes well
            return function(*args, **options)
        for name, value in given.items():
            parameter = called.parameters[name]
            if parameter.annotation is parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
                continue
            try:
                fitted(value, parameter.annotation, name)
            except ValueError as error:
                raise ValueError(f"{function.__name__}: {error}") from None
        return function(*args, **options)

    return call  # type: ignore[return-value]


class CheckedFields:
    """What a frozen dataclass inherits to refuse values that do not fit its fields; whole numbers do for floats."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self), include_extras=True)
        for entry in fields(self):  # type: ignore[arg-type]
            try:
                value = fitted(getattr(self, entry.name), kinds[entry.name], entry.name)
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}: {error}") from None
            object.__setattr__(self, entry.name, value)


def fitted(value: Any, kind: Any, name: str = "") -> Any:
    """The value, if it fits its annotation; whole numbers become floats where the annotation asks for floats.

    Args:
        value: from outside.
        kind: the annotation.
        name: the value's name, for the message.

    Raises:
        ValueError: says what was expected and what was given.
    """
    if not fits(value, kind):
        raise ValueError(f"expected {f'{name} to be ' if name else ''}{words(kind)}, got {_shown(value)}")
    return {int: int, float: float}.get(plain(kind), lambda same: same)(value)


def plain(kind: Any) -> Any:
    """The annotation without its limits."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is what its annotation says.  `True` is no number, and a text is no list of texts."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = [limit for limit in args[1:] if type(limit) in _LIMITS]
        return fits(value, args[0]) and all(_LIMITS[type(limit)][0](value, _bound(limit)) for limit in limits)
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and value == value
    if getattr(kind, "__module__", "") == "jaxtyping":
        from jaxtyping import jaxtyped

        with jaxtyped("context"):  # dimensions that the caller has named do not count here
            return isinstance(value, kind)
    if kind is Any or not isinstance(origin or kind, type):  # a type variable, the name of a class
        return True
    if not isinstance(value, origin or kind) or (origin and isinstance(value, str)):
        return False
    if isinstance(value, Mapping):
        return len(args) != 2 or all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if isinstance(value, Collection) and len([arg for arg in args if arg is not ...]) == 1:
        return all(fits(entry, args[0]) for entry in value)
    return True


def words(kind: Any) -> str:
    """What an annotation expects, in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = [f"{_LIMITS[type(limit)][1]} {_bound(limit)}" for limit in args[1:] if type(limit) in _LIMITS]
        return f"{words(args[0])} {' and '.join(limits)}".rstrip()
    if origin in (Union, UnionType):
        return " or ".join(words(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(origin, type) and issubclass(origin, Mapping) and args:
        return f"a mapping whose values are each {words(args[1])}"
    if isinstance(origin, type) and issubclass(origin, Collection) and args:
        return f"a list whose entries are each {words(args[0])}"
    name = getattr(origin or kind, "__name__", str(kind))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _bound(limit: Any) -> Any:
    """The number in a limit: `Ge(1)` has it in `ge`."""
    return getattr(limit, type(limit).__name__.lower())


def _shown(value: Any) -> str:
    """A value in few words: a tensor by its shape, a long text or list by its beginning and end."""
    if hasattr(value, "shape") and getattr(value, "ndim", False):
        kind = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        return f"a {type(value).__name__}{kind} with shape {list(value.shape)}"
    return " ".join(_SHORT.repr(value).split())
