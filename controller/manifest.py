# SPDX-License-Identifier: Apache-2.0
"""`ffctl apply -f`: YAML documents to objects. Each problem names file, line, column and field.

A document is one object: its `kind`, and the fields that the model gives that kind. Scalars are read by the core schema
of YAML 1.2, in which a MAC address of digits is a text and `on` is no truth value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

from controller.checks import Problem, check
from controller.codec import Field, FieldError, field_text, from_json, nearest, show
from controller.model import CLASSES, Key, Kind, Object, key_of
from controller.view import ClusterView

_MOST_NESTED = 20
_INTEGER = re.compile(r"[-+]?[0-9]{1,20}")
_CORE = {"true": True, "false": False, "null": None, "~": None, "": None}
_STANDARD_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_STANDARD_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")}
# What agents report, nobody applies.
_REPORTED = {Kind.HOST: ("capabilities", "state", "since", "epoch"), Kind.ENDPOINT: ("generation",)}


class ManifestError(ValueError):
    """A manifest cannot be applied: `problems` holds one line for each reason, and the text is the first of them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems[0])


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


_Places = dict[Field, _Place]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The objects of one or more files, and where each field of each stands."""

    objects: tuple[Object, ...]
    places: Mapping[Key, _Places]

    def locate(self, problem: Problem) -> str:
        """One line for a problem: its place, if the object stands in the manifest."""
        kind, name = problem.key
        words = f"{field_text(problem.field)}: {problem.problem}"
        places = self.places.get(problem.key)
        return f"{_place(places, problem.field)}: {words}" if places else f"{kind} {name}, which exists: {words}"


def parse(files: Mapping[str, str]) -> Manifest:
    """The objects that `files` (name → text) describe, in their order.

    Raises ManifestError, with the first problem of each document.
    """
    problems: list[str] = []
    objects: list[Object] = []
    places: dict[Key, _Places] = {}
    for file, text in files.items():
        for node in _compose(file, text, problems):
            reader = _Reader(file)
            try:
                item = _object(reader.value(node, ()))
                key = key_of(item)
                if key in places:
                    raise FieldError(("name",), f"a second {key[0]} {key[1]}, the first is at {places[key][()]}")
            except FieldError as error:
                problems.append(f"{_place(reader.places, error.field)}: {error}")
            else:
                objects.append(item)
                places[key] = reader.places
    if problems:
        raise ManifestError(problems)
    return Manifest(tuple(objects), places)


def verify(manifest: Manifest, after: ClusterView, touched: Iterable[Key]) -> None:
    """Raise ManifestError when what `after` would hold does not fit together because of the objects `touched`."""
    problems = check(after.objects, touched)
    if problems:
        raise ManifestError(manifest.locate(problem) for problem in problems)


def _compose(file: str, text: str, problems: list[str]) -> list[yaml.Node]:
    """The documents that are not empty; a file that is no YAML counts as one problem."""
    try:
        _check_depth(text)
        return [node for node in yaml.compose_all(text, Loader=yaml.CSafeLoader) if not _is_empty(node)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        problems.append(f"{place}: this is no YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.append(f"{file}:{line}: this is no YAML: {error.reason}")
    return []


def _check_depth(text: str) -> None:
    """Raise MarkedYAMLError when `text` is nested deeper than any object: libyaml's composer would use up the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_NESTED:
                words = f"lists and objects are nested more than {_MOST_NESTED} deep"
                raise yaml.MarkedYAMLError(problem=words, problem_mark=cast(yaml.error.Mark, event.start_mark))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _is_empty(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and not node.style and node.value == "")


class _Reader:
    """Plain values of one document's nodes, and where they stand: a field at its name, an item where it begins."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._seen: set[int] = set()
        self.places: _Places = {}

    def value(self, node: yaml.Node, at: Field) -> Any:
        self.places.setdefault(at, self._place(node))
        # An alias is composed to the node it stands for; expanding aliases of aliases has no end.
        if id(node) in self._seen:
            raise FieldError(at, "aliases are not supported: write it out")
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*at, number)) for number, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
            raise FieldError(at, f"the tag {show(node.tag)} is not supported: leave it out")
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, at: Field) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.places[at] = self._place(key_node)
                raise FieldError(at, "a field's name is a text")
            key = str(key_node.value)
            if key in found:
                self.places[(*at, key)] = self._place(key_node)
                raise FieldError((*at, key), "it stands there twice")
            self.places[(*at, key)] = self._place(key_node)
            found[key] = self.value(value_node, (*at, key))
        return found

    def _place(self, node: yaml.Node) -> _Place:
        return _Place(self._file, node.start_mark.line + 1, node.start_mark.column + 1)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    # A plain scalar has no style, and libyaml's resolver (YAML 1.1) has tagged it by what it looks like.
    if node.style or node.tag == _STANDARD_TAG + "str":
        return text
    if text.lower() in _CORE:
        return _CORE[text.lower()]
    return int(text) if _INTEGER.fullmatch(text) else text


def _place(places: _Places, field: Field) -> _Place:
    """Where `field` stands, or the nearest thing around it that does."""
    while field not in places:
        field = field[:-1]
    return places[field]


def _object(value: object) -> Object:
    if not isinstance(value, dict):
        raise FieldError((), f"{show(value)} is not an object with fields, such as kind and name")
    if "kind" not in value:
        raise FieldError(("kind",), f"it is missing: one of {', '.join(sorted(Kind))}")
    word = value.pop("kind")
    if not isinstance(word, str) or word not in list(Kind):
        raise FieldError(("kind",), f"{show(word)} is no kind: {nearest(str(word), Kind)}")
    kind = Kind(word)
    # A host without an agent is all in its manifest.
    given = ("capabilities",) if kind is Kind.HOST and value.get("agentless") is True else ()
    for field in _REPORTED.get(kind, ()):
        if field in value and field not in given:
            raise FieldError((field,), "hosts report it: leave it out")
    return from_json(CLASSES[kind], value)
