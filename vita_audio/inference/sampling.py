"""Checks the arguments of generation for values without meaning, which transformers partly accepts in silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

Rule = tuple[str, Callable[[Any], bool]]


def _number(kind: type, text: str, holds: Callable[[Any], bool]) -> Rule:
    return text, lambda value: isinstance(value, kind) and not isinstance(value, bool) and holds(value)


_POSITIVE = _number(Real, "a finite number above 0", lambda value: 0 < value < math.inf)
_SHARE = _number(Real, "a number above 0 and at most 1", lambda value: 0 < value <= 1)
_CUTOFF = _number(Real, "a number from 0 to below 1", lambda value: 0 <= value < 1)
_COUNT = _number(Integral, "an integer of at least 0", lambda value: value >= 0)
_LENGTH = _number(Integral, "an integer of at least 1", lambda value: value >= 1)

RULES: dict[str, Rule] = {
    "do_sample": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": _POSITIVE,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "max_time": _POSITIVE,
    "top_p": _SHARE,
    "typical_p": _SHARE,
    "top_h": _SHARE,
    "min_p": _number(Real, "a number from 0 to 1", lambda value: 0 <= value <= 1),
    "epsilon_cutoff": _CUTOFF,
    "eta_cutoff": _CUTOFF,
    "top_k": _number(Integral, "an integer of at least 0, where 0 is off", lambda value: value >= 0),
    "no_repeat_ngram_size": _COUNT,
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "max_length": _LENGTH,
    "max_new_tokens": _LENGTH,
    "num_return_sequences": _number(Integral, "1; give a conversation several times", lambda value: value == 1),
}


def check_generation(options: Mapping[str, Any]) -> None:
    """Check arguments of `generate`; None always passes, and arguments without a rule are left to transformers.

    Raises: ValueError for a value without meaning.
    """
    for name, (rule, holds) in RULES.items():
        value = options.get(name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} must be {rule}, got {value!r}")
