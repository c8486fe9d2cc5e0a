"""A small phone recogniser on mel spectrograms, whose losses teach the flow to keep phones apart.

The prior with the smallest error per band blurs the sounds that its codes leave open, which hardly shows in the error
but costs words. The features of a recogniser weigh the differences that words depend on. It is used in training only.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tools.codec.code_mel_pairs import SILENCE, mel_of, neighbours
from tools.codec.corpus import Utterance, hold_out, load_corpus
from tools.codec.heads import ConvBlock, count_errors, ctc_loss
from tools.codec.run_settings import keep_options
from tools.common.training_loop import TrainingLoop, averaged_weights
from vita_audio.files.atomic import write_json
from vita_audio.inference.pipeline import resolve_device
from vita_audio.speech_decoder.layers import masked_mean
from vita_audio.speech_decoder.mel import NUM_BANDS, SAMPLE_RATE

STRIDE = 2  # mel frames per feature
MEL_CENTRE, MEL_SCALE = -5.0, 3.0
PHONES = "phones.json"


class PhoneReader(nn.Module):
    """Convolutions over a mel, with a CTC head for phones, whose ids follow that of the blank, 0, in their order."""

    def __init__(self, phones: Sequence[str], width: int = 192, num_blocks: int = 5):
        super().__init__()
        self.phones = list(phones)
        self._ids = {phone: index for index, phone in enumerate(phones, start=1)}
        self.front = nn.Conv1d(NUM_BANDS, width, 5, stride=STRIDE, padding=2)
        self.blocks = nn.ModuleList(ConvBlock(width, 9) for _ in range(num_blocks))
        self.ctc = nn.Linear(width, 1 + len(phones))

    def forward(self, mel: Tensor) -> tuple[list[Tensor], Tensor]:
        """Read a log-mel, (batch, bands, frames).

        Returns: The output of each block, (batch, frames / 2 rounded up, width), and logits, (..., 1 + phones).
        """
        x, features = F.gelu(self.front((mel - MEL_CENTRE) / MEL_SCALE)).transpose(1, 2), []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features, self.ctc(x)

    def ids(self, symbols: Iterable[str]) -> list[int]:
        """Return the ids of symbols, without those that are none of its phones."""
        return [self._ids[symbol] for symbol in symbols if symbol in self._ids]


def phone_losses(
    reader: PhoneReader, made: Tensor, mel: Tensor, mask: Tensor, symbols: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """Compare a mel with the true one as a recogniser hears both.

    Args:
        made: (batch, bands, frames).
        mel: The true one, like `made`.
        mask: (batch, 1, frames) bool, true where valid.
        symbols: Symbols of each row.
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
        "phone_ctc": ctc_loss(logits, valid.sum((1, 2)), [reader.ids(row) for row in symbols]),
    }


class ReaderTraining(nn.Module):
    """A reader with the loss of its training."""

    def __init__(self, phones: Sequence[str]):
        super().__init__()
        self.reader = PhoneReader(phones)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        _, logits = self.reader(batch["mel"])
        return {"total": ctc_loss(logits, batch["lengths"], batch["symbols"])}


class MelSampler:
    """Draws mels of recordings with the ids of their phones."""

    def __init__(self, utterances: list[Utterance], reader: PhoneReader, device: str):
        rows = [(mel_of(utterance.float_wave(SAMPLE_RATE)), utterance.symbols) for utterance in utterances]
        rows = [(torch.from_numpy(mel.T).half(), reader.ids(symbols)) for mel, symbols in rows]
        self.rows, self.device = sorted(rows, key=lambda row: len(row[0])), device

    def batch(self, frames: int, rng: random.Random) -> dict:
        """Return mels of similar length with about `frames` frames in total, changed by `roughen`."""
        batch = self._collate(neighbours(self.rows, lambda row: len(row[0]), frames, rng))
        return batch | {"mel": roughen(batch["mel"], rng)}

    def all(self) -> dict:
        """Return all mels as they are."""
        return self._collate(self.rows)

    def _collate(self, rows: list[tuple[Tensor, list[int]]]) -> dict:
        mels, symbols = zip(*rows, strict=True)
        mel = pad_sequence([mel.float() for mel in mels], batch_first=True, padding_value=SILENCE).transpose(1, 2)
        lengths = torch.tensor([-(-len(mel) // STRIDE) for mel in mels])
        return {"mel": mel.to(self.device), "lengths": lengths, "symbols": symbols}


def roughen(mel: Tensor, rng: random.Random) -> Tensor:
    """Change the level of a log-mel, (batch, bands, frames), add noise, and often blank a range of bands.

    So the features are also meaningful for mels that no recording has.
    """
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    noise = torch.randn(mel.shape, generator=generator).to(mel.device)
    mel = mel + rng.uniform(-1.5, 0.5) + noise * rng.uniform(0, 0.3)
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
    phones = sorted({symbol for utterance in train_set for symbol in utterance.symbols})
    training = ReaderTraining(phones)
    loop = TrainingLoop(training, args)
    keep_options(args)
    rng = random.Random(args.seed + loop.step)
    write_json(args.output / PHONES, phones)
    sampler = MelSampler(train_set, training.reader, args.device)
    held_out = MelSampler(validation_set, training.reader, args.device).all()

    def validate() -> dict[str, float]:
        _, logits = loop.averaged.module.reader(held_out["mel"])
        errors = count_errors(logits, held_out["lengths"], held_out["symbols"])
        return {"phone_error": sum(errors) / max(sum(map(len, held_out["symbols"])), 1)}

    return lambda: loop.run(lambda: sampler.batch(args.frames_per_batch, rng), validate)


def load_reader(run: Path) -> PhoneReader:
    """Load the averaged weights of a run, frozen. Raises: FileNotFoundError."""
    reader = PhoneReader(json.loads((run / PHONES).read_text(encoding="utf-8")))
    reader.load_state_dict(averaged_weights(run, "reader"))
    return reader.requires_grad_(False)
