"""Training of a small GLM-4-Voice style speech tokenizer: sampling, augmentation, losses, validation."""

import argparse
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor, WhisperModel

from tools.codec.corpus import FULL_SCALE, Utterance, hold_out, load_corpus
from tools.codec.heads import FEATURE_RATE, CodeReader, count_errors, ctc_loss
from tools.codec.vector_quantizer import VectorQuantizer
from tools.common.training_loop import TrainingLoop
from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer, piece_features
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from vita_audio.constants import INPUT_RATE
from vita_audio.files.checkpoint import CONFIG_FILE, read_json
from vita_audio.files.tensors import load_model
from vita_audio.inference.pipeline import resolve_device
from vita_audio.speech_decoder.mel import HOP_LENGTH, mel_spectrogram
from vita_audio.speech_decoder.mel import SAMPLE_RATE as MEL_RATE

SAMPLES_PER_CODE = 1280
MAX_PIECE_SECONDS = 29.0
CODEBOOK_START_BATCHES = 40  # number of batches that the codebook is initialised from


class PieceSampler:
    """Draws pieces of one voice: single utterances and, because positions are absolute, joined ones of up to 29 s."""

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
        """Return a batch for `TokenizerTraining`, augmented if `rng` is given."""
        waves, symbols, mels = [], [], []
        for piece in pieces:
            wave = np.concatenate([u.wave for u in piece]).astype(np.float32) / FULL_SCALE
            rate = piece[0].rate
            is_main = piece[0].voice == self.voice
            mels.append(mel_spectrogram(torch.from_numpy(wave)[None])[0].T if is_main and rate == MEL_RATE else None)
            speed = rng.uniform(0.9, 1.1) if rng and not is_main else 1.0
            waves.append(soxr.resample(wave, rate * speed, INPUT_RATE, quality="LQ").astype(np.float32))
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
    def start_codebook(self, batches: list[dict]) -> None:
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


def split_corpus(utterances: list[Utterance], voice: str, count: int) -> tuple[list[Utterance], list[Utterance]]:
    """Hold out `count` utterances of the main voice and, if there are other voices, as many of the others."""
    train_set, held_out = hold_out([u for u in utterances if u.voice == voice], count)
    if others := [u for u in utterances if u.voice != voice]:
        more, more_held_out = hold_out(others, count)
        return train_set + more, held_out + more_held_out
    return train_set, held_out


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains a tokenizer and writes its folder. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    train_set, validation_set = split_corpus(load_corpus(args.corpus), args.voice, args.held_out)
    symbols = sorted({symbol for utterance in train_set for symbol in utterance.symbols})
    extractor = WhisperFeatureExtractor(feature_size=args.mel_bins)
    symbol_ids = {symbol: index for index, symbol in enumerate(symbols, start=1)}
    maker = BatchMaker(extractor, symbol_ids, args.voice, args.device)
    training = TokenizerTraining(encoder_config(args), len(symbols) + 1, args.mel_weight)
    if args.start_from:
        load_encoder(training.encoder, args.start_from)
    loop = TrainingLoop(training, args, ema_decay=None)  # an averaged encoder would not fit the codebook
    if not training.quantizer.initialized and max(loop.step, args.quantize_from) >= args.steps:
        raise ValueError(
            f"--quantize-from {args.quantize_from} must leave steps to train the codebook, got --steps {args.steps} "
            f"and a run at step {loop.step}"
        )
    rng = random.Random(args.seed + loop.step)
    sampler = PieceSampler(train_set, args.batch_seconds, rng)

    def start_codebook(step: int) -> None:
        if step >= args.quantize_from and not training.quantizer.initialized:
            training.start_codebook([maker(sampler.batch(), rng) for _ in range(CODEBOOK_START_BATCHES)])

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

    Raises: What `load_model` raises; ValueError for weights of other sizes.
    """
    load = load_tokenizer if "quantize_position" in read_json(folder / CONFIG_FILE) else load_whisper
    try:
        load(encoder, folder)
    except RuntimeError as error:
        raise ValueError(f"--start-from {folder} must have the sizes in the options: {error}") from error


def load_tokenizer(encoder: WhisperVQEncoder, folder: Path) -> None:
    """Load the weights of a tokenizer. New layers come last before pooling and start by adding nothing to their input.

    Raises: What `load_model` raises; ValueError for fewer layers; RuntimeError for other sizes.
    """
    start, _ = load_model(WhisperVQEncoder, folder, dtype=torch.float32)
    num_slow = start.config.quantize_position - start.config.pooling_position
    if num_slow != encoder.config.quantize_position - encoder.config.pooling_position:
        raise ValueError(f"--code-layers must be {num_slow}, as in {folder}")
    num_fast, num_new = start.config.pooling_position, len(encoder.layers) - len(start.layers)
    weights = {}
    for name, value in start.named_parameters():
        if match := re.match(r"layers\.(\d+)\.", name):
            number = int(match[1])
            name = f"layers.{number + num_new * (number >= num_fast)}.{name[match.end() :]}"
        if not name.startswith("codebook"):
            weights[name] = value
    _, unknown = encoder.load_state_dict(weights, strict=False)
    if unknown:
        raise ValueError(f"--layers must be at least {num_fast}, as in {folder}")
    for layer in encoder.layers[num_fast : num_fast + num_new]:
        for linear in (layer.self_attn.out_proj, layer.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


def load_whisper(encoder: WhisperVQEncoder, folder: Path) -> None:
    """Load convolutions, positions and the first layers of a Whisper encoder.

    A narrower feed-forward layer keeps the units whose weights into and out of it are largest.

    Raises: What `load_model` raises; ValueError for more layers or heads of another size; RuntimeError for other sizes.
    """
    whisper, _ = load_model(WhisperModel, folder, dtype=torch.float32)
    start, config = whisper.encoder, encoder.config
    expected = {"--heads": (config.encoder_attention_heads, start.config.encoder_attention_heads)}
    expected["--mel-bins"] = (config.num_mel_bins, start.config.num_mel_bins)
    for option, (value, right) in expected.items():
        if value != right:
            raise ValueError(f"{option} must be {right}, as in {folder}, got {value}")
    if len(encoder.layers) > len(start.layers):
        raise ValueError(f"--layers and --code-layers must be {len(start.layers)} at most together, as in {folder}")
    weights = start.state_dict()
    for number in range(len(encoder.layers)):
        first, bias, second = (f"layers.{number}.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
        sizes = weights[first].norm(dim=1) * weights[second].norm(dim=0)
        kept = sizes.topk(min(config.encoder_ffn_dim, len(sizes))).indices.sort().values
        weights |= {first: weights[first][kept], bias: weights[bias][kept], second: weights[second][:, kept]}
    known = encoder.state_dict().keys()
    encoder.load_state_dict({name: value for name, value in weights.items() if name in known}, strict=False)


def encoder_config(args: argparse.Namespace) -> WhisperVQConfig:
    """Return a config with the sizes in the options; Whisper's decoder, which is not used, stays minimal."""
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
