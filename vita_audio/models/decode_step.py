"""Results of decoding with an interleave plan: single steps, and counts of who made the tokens of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vita_audio.interleave import BACKBONE


@dataclass(frozen=True)
class DecodeStep:
    """One decoded token for each row of a batch.

    Attributes:
        tokens: Token ids, (batch,); padding in rows that have ended.
        is_new: False in rows that had ended before this step, (batch,), bool.
        depths: Depth that predicted the token of each row; without meaning in rows that have ended.
        drafts: Depth whose prediction the backbone verified here, in each row; 0 for none. Where it is not 0 and the
            depth is, the backbone has rejected the prediction and replaced it.
        scores: Logits after the processors, (batch, vocabulary), zeros in rows that have ended; the backbone's where it
            has verified a token. None unless the generation config has `output_scores`.
        logits: The same before the processors. None unless the generation config has `output_logits`.
    """

    tokens: Tensor
    is_new: Tensor
    depths: tuple[int, ...]
    drafts: tuple[int, ...]
    scores: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class DecodeCounts:
    """Who made the tokens of one answer.

    Attributes:
        num_tokens: Tokens of the answer.
        num_backbone_passes: Backbone passes until its last token was final.
        num_verified: num_verified[d]: predictions of depth d that the backbone verified. Those after a rejected one are
            dropped unseen and do not count.
        num_accepted: num_accepted[d]: how many of them it accepted.
    """

    num_tokens: int
    num_backbone_passes: int
    num_verified: tuple[int, ...] = ()
    num_accepted: tuple[int, ...] = ()

    @classmethod
    def count(cls, depths: Sequence[int], drafts: Sequence[int]) -> DecodeCounts:
        """Count the tokens of one answer, of which `DecodeStep` gives depths and drafts."""
        num_passes = list(depths).count(BACKBONE)
        if depths and depths[-1] != BACKBONE and drafts[-1] != BACKBONE:
            num_passes += 1  # the pass that accepted the last token; its own token came too late
        num_depths = 1 + max(drafts, default=0)
        verified, accepted = [0] * num_depths, [0] * num_depths
        for depth, draft in zip(depths, drafts, strict=True):
            if draft != BACKBONE:
                verified[draft] += 1
                accepted[draft] += depth == draft
        return cls(len(depths), num_passes, tuple(verified), tuple(accepted))

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens per backbone pass; None for an empty answer."""
        return self.num_tokens / self.num_backbone_passes if self.num_backbone_passes else None

    @property
    def acceptance_by_depth(self) -> tuple[float | None, ...]:
        """Accepted share of the verified predictions of depth 1, 2 and so on; None for a depth without any."""
        pairs = zip(self.num_accepted[1:], self.num_verified[1:], strict=True)
        return tuple(accepted / verified if verified else None for accepted, verified in pairs)


def count_rows(
    is_new: Tensor, depths: Sequence[tuple[int, ...]], drafts: Sequence[tuple[int, ...]]
) -> tuple[DecodeCounts, ...]:
    """Count each row of a batch.

    Args:
        is_new: Fields of all `DecodeStep`, (batch, steps).
        depths, drafts: The same for each step.
    """
    lengths = is_new.sum(dim=1).tolist()
    rows = zip(lengths, zip(*depths, strict=True), zip(*drafts, strict=True), strict=True)
    return tuple(DecodeCounts.count(made_by[:length], drafted[:length]) for length, made_by, drafted in rows)
