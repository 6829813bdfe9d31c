# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses to JSON and back. Reading is strict: an error names the field, and says what would do.

A field's type says how it is read: a nested dataclass, an enum, `tuple[X, ...]` (a list), `frozenset[X]` (a sorted
list), `X | None` (or null), bool, or `Annotated[T, Scalar(...)]` for anything with a text or number of its own. A
dataclass may have a method `check()`, which raises FieldError when fields that are each fine do not go together.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Field = tuple[str | int, ...]
Json = None | bool | int | float | str | list[Any] | dict[str, Any]
T = TypeVar("T")
Reader = Callable[[object, Field], Any]
Writer = Callable[[Any], Json]

_SHOWN = 60


class FieldError(ValueError):
    """One field of one object is wrong: `field` leads to it, `problem` says what it is and what would do."""

    def __init__(self, field: Field, problem: str) -> None:
        super().__init__(f"{field_text(field)}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Scalar(Generic[T]):
    """How a value is read from JSON and written to it; `read` raises ValueError with the problem as its text."""

    read: Callable[[object], T]
    write: Callable[[T], Json]


def field_text(field: Field) -> str:
    """`("subnets", 1)` as `subnets[1]`."""
    text = ""
    for step in field:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def show(value: object) -> str:
    """A value as an error quotes it: one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def nearest(given: str, known: Iterable[str]) -> str:
    """How an error about an unknown word ends: the one that was meant, or all there are."""
    words = sorted(known)
    close = difflib.get_close_matches(given, words, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(words)}" if words else "there is none"


def to_json(value: object) -> dict[str, Any]:
    """A dataclass of the model as JSON's values; every field is written, in the order of the class."""
    kind: Any = type(value)
    return typing.cast(dict[str, Any], _codec(kind).write(value))


def from_json(cls: type[T], value: object, at: Field = ()) -> T:
    """The `cls` that `value` describes; fields with a default may be missing.

    Raises FieldError, whose field starts with `at`.
    """
    kind: Any = cls
    return typing.cast(T, _codec(kind).read(value, at))


@dataclass(frozen=True, slots=True)
class _Codec:
    read: Reader
    write: Writer


@functools.cache
def _codec(cls: type[Any]) -> _Codec:
    hints = typing.get_type_hints(cls, include_extras=True)
    own = [(field.name, str(field.metadata.get("json", field.name)), field) for field in dataclasses.fields(cls)]
    readers = {key: (name, _for_type(hints[name]).read) for name, key, _ in own}
    writers = [(name, key, _for_type(hints[name]).write) for name, key, _ in own]
    needed = [
        key
        for _, key, field in own
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    check: Callable[[Any], None] | None = getattr(cls, "check", None)

    def read(value: object, at: Field) -> Any:
        if not isinstance(value, Mapping):
            raise FieldError(at, f"{show(value)} is not an object with fields")
        for key in value:
            if key not in readers:
                raise FieldError((*at, str(key)), f"no such field: {nearest(str(key), readers)}")
        for key in needed:
            if key not in value:
                raise FieldError((*at, key), "it is missing")
        made = cls(**{readers[key][0]: readers[key][1](item, (*at, key)) for key, item in value.items()})
        if check is not None:
            try:
                check(made)
            except FieldError as error:
                raise FieldError((*at, *error.field), error.problem) from None
        return made

    return _Codec(read, lambda value: {key: write(getattr(value, name)) for name, key, write in writers})


def _for_type(hint: Any) -> _Codec:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _for_scalar(arguments[1])
    if origin in (tuple, frozenset):
        return _for_list(origin, _for_type(arguments[0]))
    if origin in (typing.Union, types.UnionType):
        inner = _for_type(next(a for a in arguments if a is not types.NoneType))
        return _Codec(
            lambda value, at: None if value is None else inner.read(value, at),
            lambda value: None if value is None else inner.write(value),
        )
    if hint is bool:
        return _Codec(_read_bool, bool)
    if issubclass(hint, enum.Enum):
        return _for_enum(hint)
    # Looked up when it is needed, so that nothing is compiled twice.
    return _Codec(lambda value, at: _codec(hint).read(value, at), lambda value: _codec(hint).write(value))


def _for_scalar(scalar: Scalar[Any]) -> _Codec:
    def read(value: object, at: Field) -> Any:
        try:
            return scalar.read(value)
        except ValueError as error:
            raise FieldError(at, str(error)) from None

    return _Codec(read, scalar.write)


def _for_list(kind: type, item: _Codec) -> _Codec:
    def read(value: object, at: Field) -> Any:
        if not isinstance(value, list | tuple):
            raise FieldError(at, f"{show(value)} is not a list")
        items: list[Any] = []
        seen = set()
        for number, given in enumerate(value):
            made = item.read(given, (*at, number))
            if made in seen:
                raise FieldError((*at, number), f"{show(given)} stands there twice")
            seen.add(made)
            items.append(made)
        return kind(items)

    def write(value: Any) -> Json:
        written = [item.write(part) for part in value]
        return sorted(written) if kind is frozenset else written

    return _Codec(read, write)


def _for_enum(kind: type[enum.Enum]) -> _Codec:
    known = {str(member.value): member for member in kind}

    def read(value: object, at: Field) -> Any:
        if not isinstance(value, str) or value not in known:
            raise FieldError(at, f"{show(value)} is none of its values: {nearest(str(value), known)}")
        return known[value]

    return _Codec(read, lambda value: str(value.value))


def _read_bool(value: object, at: Field) -> bool:
    if not isinstance(value, bool):
        raise FieldError(at, f"{show(value)} is neither true nor false")
    return value
