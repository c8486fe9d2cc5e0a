"""Check the arguments of `generate` for meaningless values, some of which transformers silently accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

POSITIVE = ("temperature", "repetition_penalty", "encoder_repetition_penalty", "max_time")
RULES = (  # arguments, type, rule for the error message, test
    (("do_sample",), bool, "true or false", lambda value: True),
    (POSITIVE, Real, "a finite number above 0", lambda value: 0 < value < math.inf),
    (("top_p", "typical_p", "top_h"), Real, "a number above 0 and at most 1", lambda value: 0 < value <= 1),
    (("min_p",), Real, "a number from 0 to 1", lambda value: 0 <= value <= 1),
    (("epsilon_cutoff", "eta_cutoff"), Real, "a number from 0 to below 1", lambda value: 0 <= value < 1),
    (("top_k",), Integral, "an integer of at least 0, where 0 is off", lambda value: value >= 0),
    (("no_repeat_ngram_size",), Integral, "an integer of at least 0", lambda value: value >= 0),
    (("min_length", "min_new_tokens"), Integral, "an integer of at least 0", lambda value: value >= 0),
    (("max_length", "max_new_tokens"), Integral, "an integer of at least 1", lambda value: value >= 1),
    (("num_return_sequences",), Integral, "1; give a conversation several times", lambda value: value == 1),
)


def check_generation(options: Mapping[str, Any]) -> None:
    """Check arguments of `generate`; None always passes, and arguments without a rule are left to transformers.

    Raises: ValueError for a meaningless value.
    """
    for names, kind, rule, holds in RULES:
        for name in names:
            value = options.get(name)
            is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if value is not None and not (is_kind and holds(value)):
                raise ValueError(f"{name} must be {rule}, got {value!r}")
