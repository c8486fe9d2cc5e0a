"""The value of --lora: which low-rank adapters a stage trains. This module imports quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf

LISTS, SWITCHES = ("targets", "save"), ("dora", "rslora", "qlora")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters in place of the weights.

    Attributes:
        r: Rank of the update of a layer.
        alpha: Scale of the update, which is multiplied by alpha / r, or with `rslora` by alpha / sqrt(r).
        dropout: Share of the inputs that the update does not see while it trains.
        targets: Parts of the names of the linear layers that get an adapter; none: all of them.
        save: Parts of the names of modules to train and save whole, such as lm_head or norm.
        dora: Also learn the magnitude of every output (arXiv 2402.09353).
        rslora: Scale for high ranks (arXiv 2312.03732).
        qlora: Keep the base in 4 bits while training (arXiv 2305.14314).
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] = ()
    save: Sequence[str] = ()
    dora: bool = False
    rslora: bool = False
    qlora: bool = False

    def __post_init__(self):
        if self.r < 1:
            raise ValueError(f"--lora: r must be at least 1, got {self.r}")
        if not 0 < self.alpha < inf:
            raise ValueError(f"--lora: alpha must be positive, got {self.alpha:g}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--lora: dropout must be in [0, 1), got {self.dropout:g}")


def parse_lora(text: str) -> LoraSettings:
    """Read settings such as `r=16,alpha=32,targets=q_proj+v_proj,dora`; those left out keep their default.

    Raises: ValueError for an unknown setting or an impossible value.
    """
    known = [item.name for item in fields(LoraSettings)]
    values: dict[str, object] = {}
    for entry in filter(None, text.split(",")):
        name, has_value, value = entry.partition("=")
        if name not in known or (name in SWITCHES) == bool(has_value):
            switches = ", ".join(SWITCHES)
            raise ValueError(f"--lora: {entry!r} is not one of {', '.join(known)} with a value, or {switches} without")
        if name in SWITCHES:
            values[name] = True
        elif name in LISTS:
            values[name] = tuple(value.split("+"))
        else:
            try:
                values[name] = int(value) if name == "r" else float(value)
            except ValueError:
                raise ValueError(f"--lora: {name} must be a number, got {value!r}") from None
    return LoraSettings(**values)
