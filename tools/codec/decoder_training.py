"""Training and export of a small speech decoder in one voice: vocoder (HiFT) and flow (flow matching)."""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import vita_audio
from tools.codec.code_mel_pairs import CodeMelPairs, collate
from tools.codec.corpus import Utterance, hold_out, load_corpus, split_voices
from tools.codec.phone_reader import PhoneReader, load_reader, phone_losses
from tools.codec.run_settings import is_new, keep_options
from tools.common.training_loop import CHECKPOINT, TrainingLoop, averaged_weights
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers.base import AudioTokenizer
from vita_audio.inference.pipeline import resolve_device
from vita_audio.speech_decoder.config import DecoderConfig, FlowConfig, HiFTConfig
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.mel import HOP_LENGTH, SAMPLE_RATE, mel_spectrogram
from vita_audio.speech_decoder.released_files import read_config

# The sizes of the embedded decoder. Without noise, its flow gives the most likely mel, the clearest for a small flow.
# Eight smoothing convolutions cover a whole code (7 frames) and its neighbours; four do not. Noise and prior, 80 bands
# each, pass through every layer: width helps more than attention or depth.
_SMALL = read_config(Path(vita_audio.__file__).parent / "assets" / "speech_decoder" / "config.yaml")
SMALL_FLOW, SMALL_HIFT = _SMALL.flow, _SMALL.hift
STFT_SIZES = (256, 512, 1024, 2048)
PROMPT_PROBABILITY = 0.2  # a single voice needs few examples of continuing a prompt
PHONE_FACTORS = {"phone_features": 2.0, "phone_ctc": 0.5}
NUM_COMPARED = 3000  # recordings that tell which codes of two tokenizers stand for the same sounds
F0_SCALE = 100.0  # Hz; brings the loss of the fundamental to the size of the spectral losses


def fundamental(wave: np.ndarray, num_frames: int) -> np.ndarray:
    """Return the fundamental frequency of each mel frame by Praat's autocorrelation, (num_frames,); Hz, 0: unvoiced."""
    import parselmouth

    pitch = parselmouth.Sound(wave, SAMPLE_RATE).to_pitch(time_step=0.005, pitch_floor=60, pitch_ceiling=400)
    centres = (np.arange(num_frames) + 0.5) * HOP_LENGTH / SAMPLE_RATE
    values = np.array([pitch.get_value_at_time(centre) for centre in centres], dtype=np.float32)
    return np.nan_to_num(values)


class VocoderTraining(nn.Module):
    """HiFT with losses on the spectrum and the fundamental frequency.

    Attributes:
        generator: Draws the noise of the source.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.hift = HiFTGenerator(config)
        self.generator = torch.Generator()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        wave, f0 = self.hift(batch["mel"], generator=self.generator, source_f0=batch["f0"])
        losses = {"stft": stft_loss(wave.float(), batch["wave"])}
        losses["mel"] = (mel_spectrogram(wave) - mel_spectrogram(batch["wave"])).abs().mean()
        losses["f0"] = (f0 - batch["f0"]).abs().mean() / F0_SCALE
        losses["total"] = losses["stft"] + 2 * losses["mel"] + losses["f0"]
        return losses


def stft_loss(wave: Tensor, target: Tensor) -> Tensor:
    """Return spectral convergence plus log-magnitude L1 of waves (batch, samples), averaged over resolutions.

    Source: Parallel WaveGAN (arXiv 1910.11480).
    """
    total = wave.new_zeros(())
    for size in STFT_SIZES:
        window = torch.hann_window(size, device=wave.device)
        spectra = [torch.stft(x, size, size // 4, window=window, return_complex=True) for x in (wave, target)]
        made, true = (spectrum.abs().clamp(min=1e-5) for spectrum in spectra)
        total = total + (made - true).norm() / true.norm() + (made.log() - true.log()).abs().mean()
    return total / len(STFT_SIZES)


class SegmentSampler:
    """Draws random segments of recordings, with their mel and fundamental frequency, for the vocoder."""

    def __init__(self, utterances: list[Utterance], frames: int, batch_size: int, rng: random.Random):
        self.frames, self.batch_size, self.rng = frames, batch_size, rng
        self.items = []
        for utterance in tqdm(utterances, desc="fundamentals", unit="clip"):
            wave = utterance.float_wave(SAMPLE_RATE)
            num_frames = len(wave) // HOP_LENGTH
            if num_frames > frames:
                mel = mel_spectrogram(torch.from_numpy(wave)[None])[0]
                self.items.append((torch.from_numpy(wave), mel, torch.from_numpy(fundamental(wave, num_frames))))
        if not self.items:
            seconds = frames * HOP_LENGTH / SAMPLE_RATE
            raise ValueError(f"--frames {frames} needs recordings longer than {seconds:.2f} s, got none; lower it")

    def batch(self) -> dict[str, Tensor]:
        """Return `wave` (batch, samples), `mel` (batch, bands, frames) and `f0` (batch, frames), all float32."""
        rows = []
        for wave, mel, f0 in self.rng.choices(self.items, k=self.batch_size):
            start = self.rng.randrange(mel.shape[1] - self.frames)
            stop = start + self.frames
            rows.append((wave[start * HOP_LENGTH : stop * HOP_LENGTH], mel[:, start:stop], f0[start:stop]))
        return dict(zip(("wave", "mel", "f0"), map(torch.stack, zip(*rows, strict=True)), strict=True))


def prepare_vocoder(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains a vocoder. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    utterances = load_corpus(args.corpus, args.voice)
    random.Random(args.seed).shuffle(utterances)
    rng = random.Random(args.seed)
    train_set, validation_set = hold_out(utterances, args.held_out)
    held_out = SegmentSampler(validation_set, args.frames, len(validation_set), rng).batch()
    sampler = SegmentSampler(train_set[: args.max_clips], args.frames, args.batch_size, rng)
    training = VocoderTraining(SMALL_HIFT)
    if args.start_from and is_new(args):
        training.hift.load_state_dict(vocoder_of(args.start_from, "--start-from"))
    loop = TrainingLoop(training, args)
    keep_options(args)

    return lambda: loop.run(
        lambda: to_device(sampler.batch(), args.device), lambda: held_out_losses(loop.averaged, held_out, args.device)
    )


class FlowTraining(nn.Module):
    """The flow with its own loss and an L1 loss between prior and mel.

    Attributes:
        only_prior: Train the prior without the UNet, which is ten times faster.
    """

    def __init__(self, config: FlowConfig, seed: int, reader: PhoneReader | None = None):
        """Make the flow; the `phone_losses` of a reader are added for the prior."""
        super().__init__()
        self.flow, self.reader = MaskedDiffWithXvec(config), reader
        self.generator = torch.Generator().manual_seed(seed)
        self.only_prior = False

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        data = (batch["codes"], batch["code_lengths"], batch["mel"], batch["mel_lengths"])
        prior = self.flow.encode(*data[:2], data[3])
        if self.only_prior:
            losses = {"prior_loss": self.flow.prior_loss(*data, prior=prior)}
        else:
            options = {"generator": self.generator, "prompt_probability": PROMPT_PROBABILITY}
            losses = self.flow.loss(*data, prior=prior, **options)
        total = sum(losses.values())
        if self.reader is not None:
            mask = torch.arange(prior.shape[2], device=prior.device) < batch["mel_lengths"][:, None]
            mel = batch["mel"].transpose(1, 2)
            losses |= phone_losses(self.reader, prior.float(), mel, mask[:, None], batch["symbols"])
            total = total + sum(factor * losses[name] for name, factor in PHONE_FACTORS.items())
        return {**losses, "total": total}


def prepare_flow(args: argparse.Namespace) -> Callable[[], None]:
    """Encode the data and return a function that trains a flow. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    utterances, others = split_voices(load_corpus(args.corpus), args.voice)
    random.Random(args.seed).shuffle(utterances)
    tokenizer = get_audio_tokenizer("glm4voice", args.tokenizer, device=args.device)
    tokenizer.speech_level = None  # codes must stay aligned with the mels, so nothing may be cut off
    config = replace(SMALL_FLOW, vocab_size=tokenizer.vocab_size)
    training = FlowTraining(config, args.seed, load_reader(args.reader) if args.reader else None)
    train_set, validation_set = hold_out(utterances, args.held_out)
    if args.start_from and is_new(args):
        training.flow.load_state_dict(start_weights(args, config, tokenizer, train_set[:NUM_COMPARED]))
    loop = TrainingLoop(training, args)
    keep_options(args, tokenizer=tokenizer.fingerprint)
    num_frames = loop.model.flow.num_frames
    rng = random.Random(args.seed + loop.step)
    held_out = CodeMelPairs(validation_set, tokenizer, num_frames, rng)
    counts = {"joined": args.joined, "disguised": args.disguised, "shifted": args.shifted}
    pairs = CodeMelPairs(train_set, tokenizer, num_frames, rng, others, **counts)

    def validate() -> dict[str, float]:
        loop.averaged.module.generator.manual_seed(args.seed)
        return held_out_losses(loop.averaged, collate(held_out.items), args.device)

    def choose_part(step: int) -> None:
        loop.model.only_prior = step < args.prior_steps

    return lambda: loop.run(
        lambda: to_device(pairs.batch(args.frames_per_batch, rng), args.device), validate, choose_part
    )


def start_weights(
    args: argparse.Namespace, config: FlowConfig, tokenizer: AudioTokenizer, utterances: Sequence[Utterance]
) -> dict[str, Tensor]:
    """Return the weights of the flow in --start-from, whose codes are those of --start-tokenizer.

    Args:
        config: The flow to train.
        tokenizer: Its tokenizer.
        utterances: Speech that tells which codes of both tokenizers stand for the same sounds.
    Raises: ValueError for a flow of other sizes, or of other codes than --start-tokenizer.
    """
    start = SpeechDecoder.from_pretrained(args.start_from)
    num_codes, weights = start.config.flow.vocab_size, start.flow.state_dict()
    if replace(start.config.flow, vocab_size=config.vocab_size) != config:
        raise ValueError(f"--start-from {args.start_from} must have the sizes of the embedded flow")
    former = get_audio_tokenizer("glm4voice", args.start_tokenizer, device=args.device)
    former.speech_level = None
    if former.vocab_size != num_codes:
        counts = f"{num_codes} codes, {args.start_tokenizer} {former.vocab_size}"
        raise ValueError(f"--start-from {args.start_from} has {counts}; give its tokenizer as --start-tokenizer")
    if former.fingerprint != tokenizer.fingerprint:
        progress = tqdm(utterances, desc="comparing codes", unit="clip")
        waves = (torch.from_numpy(utterance.float_wave(SAMPLE_RATE)) for utterance in progress)
        pairs = [(former.encode(wave, SAMPLE_RATE), tokenizer.encode(wave, SAMPLE_RATE)) for wave in waves]
        former_codes, codes = zip(*pairs, strict=True)
        embedding = weights["input_embedding.weight"]
        weights["input_embedding.weight"] = translate_embedding(embedding, former_codes, codes, config.vocab_size)
    return weights


def translate_embedding(
    embedding: Tensor, former: Sequence[Sequence[int]], codes: Sequence[Sequence[int]], num_codes: int
) -> Tensor:
    """Return an embedding of other codes: the mean over the former codes that stand at the same places.

    Args:
        embedding: Embedding of the former codes, (former codes, width).
        former: Former codes of some recordings.
        codes: Codes of the same recordings, as many for each.
        num_codes: Number of codes. Those that do not occur get the mean of all.
    Returns: (num_codes, width), of the type of `embedding`.
    """
    vectors = embedding[torch.tensor(list(chain.from_iterable(former)))].float()
    ids = torch.tensor(list(chain.from_iterable(codes)))
    counts = torch.bincount(ids, minlength=num_codes)[:, None]
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, ids, vectors)
    return torch.where(counts > 0, sums / counts.clamp(min=1), vectors.mean(0)).to(embedding.dtype)


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def held_out_losses(model: nn.Module, batch: dict[str, Any], device: str) -> dict[str, Tensor]:
    return {f"held_out_{name}": value for name, value in model(to_device(batch, device)).items()}


def vocoder_of(decoder: Path, option: str) -> dict[str, Tensor]:
    """Return the weights of a decoder folder's vocoder. Raises: FileNotFoundError; ValueError for other sizes."""
    start = SpeechDecoder.from_pretrained(decoder)
    if start.config.hift != SMALL_HIFT:
        raise ValueError(f"{option} {decoder} must have the sizes of the embedded vocoder")
    return start.hift.state_dict()


def export(vocoder: Path, flow_run: Path, output: Path) -> None:
    """Write vocoder and flow as config.yaml, flow.safetensors and hift.safetensors, in float16.

    Args:
        vocoder: A run, or a decoder folder, whose vocoder is kept; of runs, the averaged weights are written.
    """
    is_run = (vocoder / CHECKPOINT).is_file()
    hift_weights = averaged_weights(vocoder, "hift") if is_run else vocoder_of(vocoder, "--vocoder")
    flow_weights = averaged_weights(flow_run, "flow")
    config = replace(SMALL_FLOW, vocab_size=len(flow_weights["input_embedding.weight"]))
    flow, hift = MaskedDiffWithXvec(config), HiFTGenerator(SMALL_HIFT)
    flow.load_state_dict(flow_weights)
    hift.load_state_dict(hift_weights)
    decoder = SpeechDecoder(DecoderConfig(flow=config, hift=SMALL_HIFT), flow.eval(), hift.eval())
    decoder.save_pretrained(output, torch.float16)
    print(f"decoder written to {output}")
