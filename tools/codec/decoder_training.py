"""Train the speech decoder in one voice: `vocoder` (mel to wave, HiFT) and `flow` (codes to mel, flow matching).

The vocoder needs only recordings and can train while the tokenizer does; the flow needs the finished tokenizer. Both
save and resume. `export` joins them to a decoder folder.

    python -m tools.codec.train_decoder vocoder --corpus DIR --voice joe --output RUN/vocoder
    python -m tools.codec.train_decoder flow --corpus DIR --voice joe --tokenizer RUN/tokenizer --output RUN/flow
    python -m tools.codec.train_decoder export --vocoder RUN/vocoder --flow RUN/flow --output RUN/decoder
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tools.codec.code_mel_pairs import CodeMelPairs, collate
from tools.codec.corpus import Utterance, hold_out, load_corpus
from tools.common.training_loop import TrainingLoop, add_loop_arguments
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.errors import one_line_errors
from vita_audio.speech_decoder.config import (
    DecoderConfig,
    EncoderConfig,
    EstimatorConfig,
    FlowConfig,
    FlowMatchingConfig,
    HiFTConfig,
)
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.mel import HOP_LENGTH, SAMPLE_RATE, mel_spectrogram

SMALL_FLOW = FlowConfig(
    input_size=192,
    vocab_size=512,
    # From no noise at all comes the most likely mel: of so small a flow the clearest.
    cfm=FlowMatchingConfig(inference_cfg_rate=1.5, inference_temperature=0.0),
    # Eight smoothing convolutions see a whole code (7 frames) and its neighbours; four do not.
    sampling_ratios=(1,) * 8,
    encoder=EncoderConfig(input_size=192, output_size=192, attention_heads=4, linear_units=384, num_blocks=2),
    # Noise and prior, 80 bands each, must pass through every layer: width helps more than attention or depth.
    estimator=EstimatorConfig(channels=(168, 168), n_blocks=0, num_mid_blocks=2),
)
SMALL_HIFT = HiFTConfig(
    base_channels=128,
    f0_channels=128,
    resblock_kernel_sizes=(3, 7),
    resblock_dilation_sizes=((1, 3, 5), (1, 3, 5)),
    source_resblock_kernel_sizes=(7, 7),
)
STFT_SIZES = (256, 512, 1024, 2048)
PROMPT_PROBABILITY = 0.2  # one voice needs few examples of going on from a prompt
F0_SCALE = 100.0  # Hz; brings the error of the fundamental to the size of the spectral losses


def fundamental(wave: np.ndarray, num_frames: int) -> np.ndarray:
    """Hz at the centre of every mel frame, 0 where unvoiced, by Praat's autocorrelation; (num_frames,) float32."""
    import parselmouth

    pitch = parselmouth.Sound(wave, SAMPLE_RATE).to_pitch(time_step=0.005, pitch_floor=60, pitch_ceiling=400)
    centres = (np.arange(num_frames) + 0.5) * HOP_LENGTH / SAMPLE_RATE
    values = np.array([pitch.get_value_at_time(centre) for centre in centres], dtype=np.float32)
    return np.nan_to_num(values)


class VocoderTraining(nn.Module):
    """HiFT with spectral and fundamental losses."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.hift = HiFTGenerator(config)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        wave, f0 = self.hift(batch["mel"], source_f0=batch["f0"])
        losses = {"stft": stft_loss(wave.float(), batch["wave"])}
        losses["mel"] = (mel_spectrogram(wave) - mel_spectrogram(batch["wave"])).abs().mean()
        losses["f0"] = (f0 - batch["f0"]).abs().mean() / F0_SCALE
        losses["total"] = losses["stft"] + 2 * losses["mel"] + losses["f0"]
        return losses


def stft_loss(wave: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence plus log-magnitude L1 (Parallel WaveGAN), mean over resolutions; (batch, samples) each."""
    total = wave.new_zeros(())
    for size in STFT_SIZES:
        window = torch.hann_window(size, device=wave.device)
        made, true = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-5)
            for x in (wave, target)
        )
        total = total + (made - true).norm() / true.norm() + (made.log() - true.log()).abs().mean()
    return total / len(STFT_SIZES)


class SegmentSampler:
    """Random segments of recordings with their mel and fundamental, for the vocoder."""

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
        rows = []
        for wave, mel, f0 in self.rng.choices(self.items, k=self.batch_size):
            start = self.rng.randrange(mel.shape[1] - self.frames)
            stop = start + self.frames
            rows.append((wave[start * HOP_LENGTH : stop * HOP_LENGTH], mel[:, start:stop], f0[start:stop]))
        waves, mels, f0s = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return {"wave": waves, "mel": mels, "f0": f0s}


def prepare_vocoder(args: argparse.Namespace) -> Callable[[], None]:
    """Read the data and set up the model; what is returned trains it."""
    utterances = load_corpus(args.corpus, args.voice)
    random.Random(args.seed).shuffle(utterances)
    rng = random.Random(args.seed)
    train_set, validation_set = hold_out(utterances, args.held_out)
    held_out = SegmentSampler(validation_set, args.frames, len(validation_set), rng).batch()
    sampler = SegmentSampler(train_set[: args.max_clips], args.frames, args.batch_size, rng)
    loop = TrainingLoop(VocoderTraining(SMALL_HIFT), args)

    def validate() -> dict[str, float]:
        losses = loop.averaged(to_device(held_out, args.device))
        return {f"held_out_{name}": value for name, value in losses.items()}

    return lambda: loop.run(lambda: to_device(sampler.batch(), args.device), validate)


class FlowTraining(nn.Module):
    """The flow with its own loss and an L1 loss that makes the prior a mel already.

    `only_prior` leaves the UNet, nearly all of the work, out: the prior learns ten times faster alone.
    """

    def __init__(self, config: FlowConfig, seed: int):
        super().__init__()
        self.flow = MaskedDiffWithXvec(config)
        self.generator = torch.Generator().manual_seed(seed)
        self.only_prior = False

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        data = (batch["codes"], batch["code_lengths"], batch["mel"], batch["mel_lengths"])
        if self.only_prior:
            loss = self.flow.prior_loss(*data)
            return {"prior_loss": loss, "total": loss}
        losses = self.flow.loss(*data, generator=self.generator, prompt_probability=PROMPT_PROBABILITY)
        return {**losses, "total": losses["flow_loss"] + losses["prior_loss"]}


def prepare_flow(args: argparse.Namespace) -> Callable[[], None]:
    """Read the data, encode it and set up the model; what is returned trains it."""
    everyone = load_corpus(args.corpus)
    utterances = [utterance for utterance in everyone if utterance.voice == args.voice]
    others = [utterance for utterance in everyone if utterance.voice != args.voice]
    random.Random(args.seed).shuffle(utterances)
    tokenizer = get_audio_tokenizer("glm4voice", args.tokenizer, device=args.device)
    config = replace(SMALL_FLOW, vocab_size=tokenizer.vocab_size)
    loop = TrainingLoop(FlowTraining(config, args.seed), args)
    num_frames = loop.model.flow.num_frames
    rng = random.Random(args.seed + loop.step)
    train_set, validation_set = hold_out(utterances, args.held_out)
    held_out = CodeMelPairs(validation_set, tokenizer, num_frames, rng)
    pairs = CodeMelPairs(train_set, tokenizer, num_frames, rng, others, joined=args.joined, disguised=args.disguised)

    def validate() -> dict[str, float]:
        loop.averaged.module.generator.manual_seed(args.seed)
        losses = loop.averaged(to_device(collate(held_out.items), args.device))
        return {f"held_out_{name}": value for name, value in losses.items()}

    def choose_part(step: int) -> None:
        loop.model.only_prior = step < args.prior_steps

    return lambda: loop.run(
        lambda: to_device(pairs.batch(args.frames_per_batch, rng), args.device), validate, choose_part
    )


def to_device(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def trained_weights(run: Path, module: nn.Module) -> nn.Module:
    """Fill `module` with the averaged weights of a run folder."""
    state = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")["averaged"]
    module.load_state_dict(
        {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
    )
    return module


def export(args: argparse.Namespace) -> None:
    """Write config.yaml, flow.safetensors and hift.safetensors in half precision."""
    flow_state = torch.load(args.flow / "checkpoint.pt", weights_only=True, map_location="cpu")["averaged"]
    vocab_size = len(flow_state["module.flow.input_embedding.weight"])
    config = replace(SMALL_FLOW, vocab_size=vocab_size)
    flow = trained_weights(args.flow, FlowTraining(config, 0)).flow.eval()
    hift = trained_weights(args.vocoder, VocoderTraining(SMALL_HIFT)).hift.eval()
    SpeechDecoder(DecoderConfig(flow=config, hift=SMALL_HIFT), flow, hift).save_pretrained(args.output, torch.float16)
    print(f"decoder written to {args.output}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    vocoder = commands.add_parser("vocoder", help="mel to wave")
    add_loop_arguments(vocoder, steps=3000, lr=1e-3)
    vocoder.add_argument("--frames", type=int, default=40, help="mel frames per segment")
    vocoder.add_argument("--batch-size", type=int, default=12)
    vocoder.add_argument("--max-clips", type=int, default=1500, help="recordings to read segments from")
    flow = commands.add_parser("flow", help="codes to mel")
    add_loop_arguments(flow, steps=14000, lr=1e-3)
    flow.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder")
    flow.add_argument("--prior-steps", type=int, default=6000, help="first steps, which train the prior alone")
    flow.add_argument("--frames-per-batch", type=int, default=2600)
    flow.add_argument("--joined", type=int, default=600, help="pieces of several recordings")
    flow.add_argument("--disguised", type=int, default=3000, help="pieces whose codes are of a changed voice")
    for command in (vocoder, flow):
        command.add_argument("--corpus", type=Path, required=True, help="folder with manifest.jsonl")
        command.add_argument("--voice", required=True)
        command.add_argument("--held-out", type=int, default=24, help="recordings kept for validation")
    join = commands.add_parser("export", help="write the decoder folder")
    join.add_argument("--vocoder", type=Path, required=True)
    join.add_argument("--flow", type=Path, required=True)
    join.add_argument("--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("train_speech_decoder.py"):
        if args.command == "export":
            export(args)
            return
        train = {"vocoder": prepare_vocoder, "flow": prepare_flow}[args.command](args)
    train()


if __name__ == "__main__":
    main()
