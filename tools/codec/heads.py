"""Heads used only to train a speech tokenizer: they predict phones and mel from its codes."""

from itertools import groupby

import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from vita_audio.speech_decoder.mel import NUM_BANDS

UPSAMPLING = 4  # 12.5 Hz codes to 50 Hz
FEATURE_RATE = 50  # Hz, features of `CodeReader`


class ConvBlock(nn.Module):
    """Residual block over time, (batch, time, width): depthwise convolution, norm, feed-forward."""

    def __init__(self, width: int, kernel_size: int = 7):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return x + self.feed_forward(self.norm(mixed))


class CodeReader(nn.Module):
    """Predicts phones at 50 Hz and the mel of the decoder's voice from quantised codewords.

    Each of the three heads shapes the codes: CTC before pooling trains the lower layers from the first step, CTC on the
    upsampled codewords preserves the words, and mel regression preserves timing and intonation.
    """

    def __init__(self, code_width: int, num_symbols: int, width: int = 192):
        super().__init__()
        self.frame_ctc = nn.Linear(code_width, num_symbols)
        self.input = nn.Linear(code_width, width)
        self.slow = nn.Sequential(*(ConvBlock(width, 5) for _ in range(3)))
        self.upsample = nn.Linear(width, UPSAMPLING * width)
        self.fast = nn.Sequential(*(ConvBlock(width) for _ in range(2)))
        self.code_ctc = nn.Linear(width, num_symbols)
        self.mel_blocks = nn.Sequential(*(ConvBlock(width) for _ in range(2)))
        self.mel = nn.Linear(width, NUM_BANDS)

    def forward(self, codewords: Tensor, token_mask: Tensor) -> Tensor:
        """Map codewords, (batch, codes, code width), to features at 50 Hz, (batch, 4 * codes, width)."""
        hidden = self.slow(self.input(codewords) * token_mask[..., None])
        hidden = self.upsample(hidden).unflatten(-1, (UPSAMPLING, -1)).flatten(1, 2)
        return self.fast(hidden * token_mask.repeat_interleave(UPSAMPLING, 1)[..., None])

    def read_mel(self, features: Tensor, num_frames: int) -> Tensor:
        """Map features to the mel, (batch, num_frames, bands), of the same time span."""
        stretched = F.interpolate(features.transpose(1, 2), size=num_frames, mode="linear").transpose(1, 2)
        return self.mel(self.mel_blocks(stretched))


def ctc_loss(logits: Tensor, lengths: Tensor, symbols: list[list[int]]) -> Tensor:
    """Return the CTC loss per target symbol; a target too long for its frames counts as zero.

    Args:
        logits: (batch, time, symbols); symbol 0 is the blank.
        lengths: Numbers of valid frames, (batch,).
        symbols: Target ids of each row.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    targets = torch.tensor([symbol for row in symbols for symbol in row])
    target_lengths = torch.tensor([len(row) for row in symbols])
    losses = F.ctc_loss(
        log_probs, targets.to(logits.device), lengths.cpu(), target_lengths, reduction="none", zero_infinity=True
    )
    return losses.sum() / target_lengths.sum().clamp(min=1)


def greedy_symbols(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the best path of each row, without repeats and blanks, as symbol ids."""
    paths = zip(logits.argmax(-1).tolist(), lengths.tolist(), strict=True)
    return [[symbol for symbol, _ in groupby(path[:length]) if symbol] for path, length in paths]


def count_errors(logits: Tensor, lengths: Tensor, symbols: list[list[int]]) -> list[int]:
    """Return the number of wrong, missing and surplus symbols on the best path of each row."""
    return list(map(Levenshtein.distance, greedy_symbols(logits, lengths), symbols))
