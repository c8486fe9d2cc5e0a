"""The flags of transformers' TrainingArguments, read from its source file because importing it takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import field, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_TYPES = {"int": int, "float": float, "str": str}


def trainer_flags(*, without: frozenset[str] = frozenset()) -> type:
    """Return a dataclass with the fields of TrainingArguments, for HfArgumentParser.

    Names, help and the types of booleans and numbers are those of the original. Values of other types stay strings, or
    lists of strings; defaults that are not literals become None.

    Args:
        without: Names of fields to leave out.
    """
    path = Path(find_spec("transformers").submodule_search_locations[0], "training_args.py")
    fields = [item for item in _read_fields(path) if item[0] not in without]
    return make_dataclass("TrainerFlags", fields)


def _read_fields(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, type and dataclass field of every flag in a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"]
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value and not node.target.id.startswith("_"):
            options = {"default": node.value}
            if isinstance(node.value, ast.Call):
                options = {keyword.arg: keyword.value for keyword in node.value.keywords}
            default = _literal(options.get("default"))
            metadata = options.get("metadata", ast.Dict([], []))
            known = {key.value: _literal(value) for key, value in zip(metadata.keys, metadata.values, strict=True)}
            known = {"help": ""} | {key: value for key, value in known.items() if value is not None}
            kind = _simplify(ast.unparse(node.annotation), default)
            yield node.target.id, kind, field(default=default, metadata=known)


def _simplify(annotation: str, default: Any) -> Any:
    """Return a type of booleans, numbers, strings or lists of strings that HfArgumentParser parses alike."""
    if "bool" in annotation and "dict" not in annotation:
        return bool | None if default is None else bool
    if "list" in annotation:
        return list[str]
    return _TYPES.get(annotation.removesuffix(" | None"), str)


def _literal(node: ast.expr | None) -> Any:
    """Evaluate an expression of constants; None for other expressions and without one."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
