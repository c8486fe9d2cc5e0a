"""Training of a small GLM-4-Voice style speech tokenizer: sampling, augmentation, losses, validation."""

import argparse
import math
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from tools.codec.code_mel_pairs import joined_wave, mel_of
from tools.codec.corpus import Utterance, load_corpus, split_corpus
from tools.codec.heads import FEATURE_RATE, CodeReader, count_errors, ctc_loss
from tools.codec.run_settings import is_new, keep_options
from tools.codec.vector_quantizer import VectorQuantizer
from tools.common.training_loop import TrainingLoop
from vita_audio.audio_tokenizers.glm4voice import ENCODER_SETTINGS, GLM4VoiceTokenizer, piece_features
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from vita_audio.constants import INPUT_RATE
from vita_audio.files.checkpoint import CONFIG_FILE, read_json
from vita_audio.files.tensors import load_model
from vita_audio.inference.pipeline import resolve_device
from vita_audio.speech_decoder.mel import HOP_LENGTH
from vita_audio.speech_decoder.mel import SAMPLE_RATE as MEL_RATE

SAMPLES_PER_CODE = 1280
MAX_PIECE_SECONDS = 27.0  # at 0.9 times the speed 30 s, the longest that features hold
CODEBOOK_START_BATCHES = 40  # least number of batches that the codebook is initialised from
CODEBOOK_START_VECTORS = 10  # and least number of vectors per code
SIZES = {  # and the options that set them
    "d_model": "--width",
    "encoder_ffn_dim": "--ffn",
    "encoder_attention_heads": "--heads",
    "num_mel_bins": "--mel-bins",
}
RULES = {operator.eq: "", operator.ge: "at least ", operator.le: "at most "}


class PieceSampler:
    """Draws pieces of one voice: single utterances and, because positions are absolute, joined ones of up to 27 s."""

    def __init__(self, utterances: list[Utterance], seconds_per_batch: float, rng: random.Random):
        self.voices = sorted({u.voice for u in utterances})
        self.by_voice = {voice: [u for u in utterances if u.voice == voice] for voice in self.voices}
        self.weights = [len(self.by_voice[voice]) for voice in self.voices]
        self.seconds_per_batch = seconds_per_batch
        self.rng = rng

    def batch(self) -> list[list[Utterance]]:
        """Return pieces with a total length of at least `seconds_per_batch`."""
        rng = self.rng
        goal = rng.choices((0.0, 6.0, 12.0, MAX_PIECE_SECONDS), (0.55, 0.2, 0.15, 0.1))[0]
        pieces, total = [], 0.0
        while total < self.seconds_per_batch:
            pool = self.by_voice[rng.choices(self.voices, self.weights)[0]]
            piece = [rng.choice(pool)]
            seconds = piece[0].seconds
            while seconds < goal:
                following = rng.choice(pool)
                if seconds + following.seconds > MAX_PIECE_SECONDS:
                    break
                piece.append(following)
                seconds += following.seconds
            pieces.append(piece)
            total += seconds
        return pieces


class BatchMaker:
    """Turns pieces into encoder features, phone targets and mels of the main voice."""

    def __init__(self, extractor: WhisperFeatureExtractor, symbol_ids: dict[str, int], voice: str, device: str):
        self.extractor, self.symbol_ids, self.voice, self.device = extractor, symbol_ids, voice, device

    def __call__(self, pieces: list[list[Utterance]], rng: random.Random | None) -> dict:
        """Return a batch for `TokenizerTraining`, augmented if `rng` is given.

        Returns: `features`, (batch, mel bins, frames) float32, and their `mask`, (batch, frames) bool, at 100 Hz, on
            the device; `symbols`, the target ids of each piece; `mels`, the log-mel of each piece, (mel frames, bands)
            float32 on the CPU, or None for other voices.
        """
        waves, symbols, mels = [], [], []
        for piece in pieces:
            wave = joined_wave(piece)  # at MEL_RATE
            is_main = piece[0].voice == self.voice
            mels.append(torch.from_numpy(mel_of(wave).T) if is_main else None)
            speed = rng.uniform(0.9, 1.1) if rng and not is_main else 1.0
            waves.append(soxr.resample(wave, MEL_RATE * speed, INPUT_RATE, quality="LQ").astype(np.float32))
            symbols.append([self.symbol_ids[s] for u in piece for s in u.symbols if s in self.symbol_ids])
        if rng:
            noise = np.random.default_rng(rng.getrandbits(32))
            waves = [w + noise.standard_normal(len(w), dtype=np.float32) * 10 ** rng.uniform(-5, -2.2) for w in waves]
        features, mask = piece_features([torch.from_numpy(wave) for wave in waves], self.extractor, SAMPLES_PER_CODE)
        if rng:
            features = spec_augment(features, rng)
        features, mask = features.to(self.device), mask.to(self.device)
        return {"features": features, "mask": mask, "symbols": symbols, "mels": mels}


def spec_augment(features: Tensor, rng: random.Random) -> Tensor:
    """Blank one frequency band and a few short spans of time in half of the rows, in place; (batch, bands, frames)."""
    for row in features:
        if rng.random() < 0.5:
            band = rng.randrange(row.shape[0] - 12)
            row[band : band + rng.randint(1, 12)] = row.mean()
            for _ in range(row.shape[1] // 200 + 1):
                start = rng.randrange(row.shape[1])
                row[:, start : start + rng.randint(1, 12)] = row.mean()
    return features


class TokenizerTraining(nn.Module):
    """Encoder with the quantiser, heads and losses of its training; `mel_weight` is the factor of the mel loss."""

    def __init__(self, config: WhisperVQConfig, num_symbols: int, mel_weight: float = 1.0):
        super().__init__()
        self.mel_weight = mel_weight
        self.encoder = WhisperVQEncoder(config)
        self.quantizer = VectorQuantizer(self.encoder.codebook, config)
        self.reader = CodeReader(config.d_model, num_symbols)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Return the losses of a batch of `BatchMaker`, scalars by name; `total` is their weighted sum."""
        output = self.encoder(batch["features"], batch["mask"])
        token_mask = output.token_mask
        quantized = self.quantizer(output.pre_vq_hidden, token_mask)
        losses = {"commitment": quantized.commitment_loss}
        features = self.reader(quantized.quantized, token_mask)
        frame_lengths = output.frame_mask.sum(1)
        losses["frame_ctc"] = ctc_loss(self.reader.frame_ctc(output.frame_hidden), frame_lengths, batch["symbols"])
        losses["code_ctc"] = ctc_loss(self.reader.code_ctc(features), frame_lengths, batch["symbols"])
        losses["mel"] = self.mel_loss(features, batch["mels"])
        total = 0.5 * losses["frame_ctc"] + losses["code_ctc"] + self.mel_weight * losses["mel"] + losses["commitment"]
        return {**losses, "total": total}

    def mel_loss(self, features: Tensor, mels: list[Tensor | None]) -> Tensor:
        """Mean absolute error over the valid mel frames of the rows that have a mel."""
        rows = [index for index, mel in enumerate(mels) if mel is not None]
        if not rows:
            return features.sum() * 0.0
        num_frames = int(features.shape[1] / FEATURE_RATE * MEL_RATE / HOP_LENGTH)
        target = pad_sequence([mels[row] for row in rows], batch_first=True)[:, :num_frames]
        target = nn.functional.pad(target, (0, 0, 0, num_frames - target.shape[1])).to(features.device)
        lengths = torch.tensor([min(len(mels[row]), num_frames) for row in rows])
        valid = (torch.arange(num_frames) < lengths[:, None]).unsqueeze(-1).to(features.device)
        error = (self.reader.read_mel(features[rows], num_frames).float() - target).abs() * valid
        return error.sum() / (valid.sum() * target.shape[-1])

    @torch.no_grad()
    def start_codebook(self, batches: Iterable[dict]) -> None:
        """Initialise the codebook from the encoder's outputs for `batches`."""
        vectors = []
        for batch in batches:
            output = self.encoder(batch["features"], batch["mask"])
            vectors.append(output.pre_vq_hidden[output.token_mask])
        self.quantizer.initialize(torch.cat(vectors))


def validate(training: TokenizerTraining, maker: BatchMaker, utterances: list[Utterance]) -> dict[str, float]:
    """Return the codebook perplexity and the phone error rates of the code CTC for the main voice and the others."""
    errors, counts = Counter(), Counter()
    for start in range(0, len(utterances), 12):
        group = utterances[start : start + 12]
        batch = maker([[u] for u in group], None)
        output = training.encoder(batch["features"], batch["mask"])
        hidden = training.quantizer(output.pre_vq_hidden, output.token_mask).quantized
        logits = training.reader.code_ctc(training.reader(hidden, output.token_mask))
        wrong = count_errors(logits, output.frame_mask.sum(1), batch["symbols"])
        for u, num_errors, truth in zip(group, wrong, batch["symbols"], strict=True):
            key = "main" if u.voice == maker.voice else "other"
            errors[key] += num_errors
            counts[key] += len(truth)
    rates = {f"phone_error_{key}": errors[key] / max(counts[key], 1) for key in errors}
    return {"perplexity": training.quantizer.perplexity(), **rates}


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains a tokenizer and writes its folder. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    utterances = load_corpus(args.corpus, max_seconds=MAX_PIECE_SECONDS)
    train_set, validation_set = split_corpus(utterances, args.voice, args.held_out)
    symbols = sorted({symbol for utterance in train_set for symbol in utterance.symbols})
    level = {"speech_level": args.speech_level} if args.speech_level else {}
    extractor = WhisperFeatureExtractor(feature_size=args.mel_bins, **level)
    symbol_ids = {symbol: index for index, symbol in enumerate(symbols, start=1)}
    maker = BatchMaker(extractor, symbol_ids, args.voice, args.device)
    training = TokenizerTraining(encoder_config(args), len(symbols) + 1, args.mel_weight)
    if args.start_from and is_new(args):
        load_encoder(training.encoder, args.start_from)
    loop = TrainingLoop(training, args, ema_decay=None)  # an averaged encoder would not fit the codebook
    if not training.quantizer.initialized and max(loop.step, args.quantize_from) >= args.steps:
        raise ValueError(
            f"--quantize-from {args.quantize_from} must leave steps to train the codebook, got --steps {args.steps} "
            f"and a run at step {loop.step}"
        )
    keep_options(args)
    rng = random.Random(args.seed + loop.step)
    sampler = PieceSampler(train_set, args.batch_seconds, rng)

    def start_codebook(step: int) -> None:
        if step >= args.quantize_from and not training.quantizer.initialized:
            num_needed = CODEBOOK_START_VECTORS * args.codes * SAMPLES_PER_CODE / INPUT_RATE / args.batch_seconds
            num_batches = max(CODEBOOK_START_BATCHES, math.ceil(num_needed))
            training.start_codebook(maker(sampler.batch(), rng) for _ in range(num_batches))

    def train() -> None:
        loop.run(
            next_batch=lambda: maker(sampler.batch(), rng),
            validate=lambda: validate(training, maker, validation_set),
            before_step=start_codebook,
        )
        training.quantizer.export_statistics(training.encoder)
        folder = args.output / "tokenizer"
        GLM4VoiceTokenizer(training.encoder, extractor).save_pretrained(folder, torch.float16)
        print(f"tokenizer written to {folder}")

    return train


def load_encoder(encoder: WhisperVQEncoder, folder: Path) -> None:
    """Load all weights of a tokenizer folder, or of a Whisper model's encoder, but the codebook, which is chosen anew.

    Raises: What `load_model` raises; ValueError for other sizes or settings.
    """
    load = load_tokenizer if "quantize_position" in read_json(folder / CONFIG_FILE) else load_whisper
    load(encoder, folder)


def check_start(folder: Path, rules: Iterable[tuple[str, Callable[[Any, Any], bool], Any, Any]]) -> None:
    """Raise ValueError with all rules, (name, one of `RULES`, value, value in the folder), that do not hold."""
    wrong = [
        f"{name} must be {RULES[holds]}{start}, got {value}"
        for name, holds, value, start in rules
        if not holds(value, start)
    ]
    if wrong:
        raise ValueError(f"--start-from {folder}: {'; '.join(wrong)}")


def equal_settings(config: WhisperVQConfig, start: WhisperConfig, names: Iterable[str]) -> list[tuple]:
    """Return the rules that these settings must be equal, under the names of their options if they have any."""
    return [(SIZES.get(name, name), operator.eq, getattr(config, name), getattr(start, name)) for name in sorted(names)]


def load_tokenizer(encoder: WhisperVQEncoder, folder: Path) -> None:
    """Load the weights of a tokenizer. New layers come last before pooling and start by adding nothing to their input.

    Raises: What `load_model` raises; ValueError for fewer layers, or other sizes or settings.
    """
    loaded, _ = load_model(WhisperVQEncoder, folder, dtype=torch.float32)
    config, start = encoder.config, loaded.config
    num_fast, num_slow = start.pooling_position, start.quantize_position - start.pooling_position
    rules = equal_settings(config, start, {*SIZES, *ENCODER_SETTINGS} - {"pooling_position", "quantize_position"})
    rules.append(("--layers", operator.ge, config.pooling_position, num_fast))
    rules.append(("--code-layers", operator.eq, config.quantize_position - config.pooling_position, num_slow))
    check_start(folder, rules)
    num_new, weights = config.pooling_position - num_fast, {}
    for name, value in loaded.named_parameters():
        if match := re.match(r"layers\.(\d+)\.", name):
            number = int(match[1])
            name = f"layers.{number + num_new * (number >= num_fast)}.{name[match.end() :]}"
        if not name.startswith("codebook"):
            weights[name] = value
    encoder.load_state_dict(weights, strict=False)
    for layer in encoder.layers[num_fast : num_fast + num_new]:
        for linear in (layer.self_attn.out_proj, layer.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


def load_whisper(encoder: WhisperVQEncoder, folder: Path) -> None:
    """Load convolutions, positions and the first layers of a Whisper encoder.

    A narrower feed-forward layer keeps the units whose weights into and out of it are largest.

    Raises: What `load_model` raises; ValueError for more layers, wider feed-forward layers, or other sizes or settings.
    """
    whisper, _ = load_model(WhisperModel, folder, ignored=("unexpected",), dtype=torch.float32)  # proj_out
    loaded, config, start = whisper.encoder, encoder.config, whisper.config
    same = {*SIZES, "activation_function", "max_source_positions"} - {"encoder_ffn_dim"}
    rules = equal_settings(config, start, same)
    rules.append(("--ffn", operator.le, config.encoder_ffn_dim, start.encoder_ffn_dim))
    rules.append(("--layers plus --code-layers", operator.le, len(encoder.layers), len(loaded.layers)))
    check_start(folder, rules)
    if config.encoder_ffn_dim < start.encoder_ffn_dim:
        print(f"--ffn keeps {config.encoder_ffn_dim} of the {start.encoder_ffn_dim} units in each layer of {folder}")
    weights = loaded.state_dict()
    for number in range(len(encoder.layers)):
        first, bias, second = (f"layers.{number}.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
        sizes = weights[first].norm(dim=1) * weights[second].norm(dim=0)
        kept = sizes.topk(config.encoder_ffn_dim).indices.sort().values
        weights |= {first: weights[first][kept], bias: weights[bias][kept], second: weights[second][:, kept]}
    known = encoder.state_dict().keys()
    encoder.load_state_dict({name: value for name, value in weights.items() if name in known}, strict=False)


def encoder_config(args: argparse.Namespace) -> WhisperVQConfig:
    """Return a config with the sizes in the options; Whisper's decoder, which is not used, stays minimal.

    Raises: ValueError for impossible numbers of layers.
    """
    special_tokens = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    return WhisperVQConfig(
        d_model=args.width,
        encoder_layers=args.layers + args.code_layers,
        encoder_attention_heads=args.heads,
        encoder_ffn_dim=args.ffn,
        num_mel_bins=args.mel_bins,
        pooling_position=args.layers,
        quantize_position=args.layers + args.code_layers,
        quantize_vocab_size=args.codes,
        dropout=0.0,
        decoder_layers=0,
        vocab_size=8,
        **dict.fromkeys(special_tokens, 0),
    )
