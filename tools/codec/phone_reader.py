"""A small phone recogniser on mel spectrograms, which tells the training of a flow what keeps phones apart.

The prior with the smallest error per band blurs the sounds that its codes leave open, which hardly shows in the error
but costs words. The features of a recogniser weigh the differences that words depend on. It is used in training only.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tools.codec.code_mel_pairs import SILENCE, mel_of
from tools.codec.corpus import Utterance, hold_out, load_corpus
from tools.codec.heads import ConvBlock, count_errors, ctc_loss
from tools.common.training_loop import TrainingLoop, averaged_weights
from vita_audio.files.atomic import write_json
from vita_audio.inference.pipeline import resolve_device
from vita_audio.speech_decoder.layers import masked_mean
from vita_audio.speech_decoder.mel import NUM_BANDS, SAMPLE_RATE

STRIDE = 2  # mel frames per feature
MEL_CENTRE, MEL_SCALE = -5.0, 3.0
SYMBOLS = "symbols.json"


class PhoneReader(nn.Module):
    """Convolutions over a mel, with a CTC head."""

    def __init__(self, num_symbols: int, width: int = 192, num_blocks: int = 5):
        super().__init__()
        self.front = nn.Conv1d(NUM_BANDS, width, 5, stride=STRIDE, padding=2)
        self.blocks = nn.ModuleList(ConvBlock(width, 9) for _ in range(num_blocks))
        self.ctc = nn.Linear(width, num_symbols)

    def forward(self, mel: Tensor) -> tuple[list[Tensor], Tensor]:
        """Read a log-mel, (batch, bands, frames).

        Returns: The output of each block, (batch, frames / 2 rounded up, width), and logits, (..., symbols).
        """
        x, features = F.gelu(self.front((mel - MEL_CENTRE) / MEL_SCALE)).transpose(1, 2), []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features, self.ctc(x)


def phone_losses(
    reader: PhoneReader, made: Tensor, mel: Tensor, mask: Tensor, symbols: list[list[int]]
) -> dict[str, Tensor]:
    """Compare a mel with the true one as a recogniser hears both.

    Args:
        made: (batch, bands, frames).
        mel: The true one, like `made`.
        mask: (batch, 1, frames) bool, true where valid.
        symbols: Phones of each row.
    Returns: `phone_features`, the mean difference of the features relative to their size, and `phone_ctc`. Scalars.
    """
    features, logits = reader(made.where(mask, SILENCE))
    with torch.no_grad():
        true_features, _ = reader(mel.where(mask, SILENCE))
    valid = mask[:, :, ::STRIDE]

    def size(feature: Tensor) -> Tensor:
        return masked_mean(feature.abs().transpose(1, 2), valid)

    differences = [size(one - true) / size(true) for one, true in zip(features, true_features, strict=True)]
    return {
        "phone_features": torch.stack(differences).mean(),
        "phone_ctc": ctc_loss(logits, valid.sum((1, 2)), symbols),
    }


class ReaderTraining(nn.Module):
    """A reader with the loss of its training."""

    def __init__(self, num_symbols: int):
        super().__init__()
        self.reader = PhoneReader(num_symbols)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        _, logits = self.reader(batch["mel"])
        return {"total": ctc_loss(logits, batch["lengths"], batch["symbols"])}


class MelSampler:
    """Draws mels of recordings with the ids of their phones."""

    def __init__(self, utterances: list[Utterance], symbol_ids: dict[str, int], device: str):
        rows = []
        for utterance in utterances:
            mel = torch.from_numpy(mel_of(utterance.float_wave(SAMPLE_RATE))).half()
            rows.append((mel, [symbol_ids[symbol] for symbol in utterance.symbols if symbol in symbol_ids]))
        self.rows, self.device = sorted(rows, key=lambda row: row[0].shape[1]), device

    def batch(self, frames: int | None = None, rng: random.Random | None = None) -> dict:
        """Return neighbours in length with about `frames` frames in total, changed by `roughen`; or else all rows."""
        rows = self.rows
        if rng is not None:
            start = stop = rng.randrange(len(rows))
            while stop < len(rows) and sum(row[0].shape[1] for row in rows[start:stop]) < frames:
                stop += 1
            rows = rows[start:stop]
        mel = pad_sequence([row[0].float().T for row in rows], batch_first=True, padding_value=SILENCE).transpose(1, 2)
        if rng is not None:
            mel = roughen(mel, rng)
        lengths = torch.tensor([-(-row[0].shape[1] // STRIDE) for row in rows])
        return {"mel": mel.to(self.device), "lengths": lengths, "symbols": [row[1] for row in rows]}


def roughen(mel: Tensor, rng: random.Random) -> Tensor:
    """Change the level of a log-mel, (batch, bands, frames), add noise, and often blank a range of bands.

    So the features are also meaningful for mels that no recording has.
    """
    mel = mel + rng.uniform(-1.5, 0.5) + torch.randn(mel.shape) * rng.uniform(0, 0.3)
    if rng.random() < 0.5:
        band = rng.randrange(NUM_BANDS - 12)
        mel[:, band : band + rng.randint(1, 12)] = MEL_CENTRE
    return mel


def prepare_reader(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains a reader. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    utterances = load_corpus(args.corpus, args.voice)
    random.Random(args.seed).shuffle(utterances)
    train_set, validation_set = hold_out(utterances, args.held_out)
    symbols = sorted({symbol for utterance in train_set for symbol in utterance.symbols})
    symbol_ids = {symbol: index for index, symbol in enumerate(symbols, start=1)}
    loop = TrainingLoop(ReaderTraining(len(symbols) + 1), args)
    write_json(args.output / SYMBOLS, symbols)
    sampler, rng = MelSampler(train_set, symbol_ids, args.device), random.Random(args.seed + loop.step)
    held_out = MelSampler(validation_set, symbol_ids, args.device).batch()

    def validate() -> dict[str, float]:
        _, logits = loop.averaged.module.reader(held_out["mel"])
        errors = count_errors(logits, held_out["lengths"], held_out["symbols"])
        return {"phone_error": sum(errors) / max(sum(map(len, held_out["symbols"])), 1)}

    return lambda: loop.run(lambda: sampler.batch(args.frames_per_batch, rng), validate)


def load_reader(run: Path) -> tuple[PhoneReader, dict[str, int]]:
    """Load the averaged weights of a run, frozen, and the ids of its symbols. Raises: FileNotFoundError."""
    symbols = json.loads((run / SYMBOLS).read_text(encoding="utf-8"))
    reader = PhoneReader(len(symbols) + 1)
    reader.load_state_dict(averaged_weights(run, "reader"))
    return reader.requires_grad_(False), {symbol: index for index, symbol in enumerate(symbols, start=1)}
