"""What fine-tuning a voice would take: memory and time, from a few steps on random data. Nothing is kept."""

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tools.codec.decoder_training import VocoderTraining
from tools.codec.voice_training import VoiceFlowTraining, as_old
from tools.common.training_loop import autocast
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import resolve_device
from vita_audio.speech_decoder.mel import HOP_LENGTH, NUM_BANDS

NUM_STEPS = 3  # the first is not timed
CLIP_FRAMES = 300  # of a clip of 3.5 s
JUDGED_SECONDS = 60  # of speech that is judged each time
JUDGING_SECONDS = 0.4  # for each second of speech, to decode and to judge it on one CPU core
PREPARING_SECONDS = 300  # to prepare five minutes of recordings


def random_batch(model: VoiceFlowTraining, num_frames: int, device: str) -> dict[str, Tensor]:
    """Return a batch of random codes and mels, of `num_frames` in clips of CLIP_FRAMES or more."""
    config, num_clips = model.flow.config, max(1, num_frames // CLIP_FRAMES)
    codes = torch.randint(config.vocab_size, (num_clips, round(CLIP_FRAMES / model.flow.num_frames(1000) * 1000)))
    size = model.flow.num_frames(codes.shape[1])
    lengths = {"code_lengths": torch.full((num_clips,), codes.shape[1]), "mel_lengths": torch.full((num_clips,), size)}
    batch = {"codes": codes, "mel": torch.randn(num_clips, size, NUM_BANDS), **lengths}
    return {name: value.to(device) for name, value in batch.items()}


def seconds_per_step(model: nn.Module, batch: dict[str, Tensor], *, bf16: bool | None) -> float:
    """Return the time of one training step, s; `bf16` as in `autocast`."""
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    device = next(iter(batch.values())).device.type
    for step in range(NUM_STEPS):
        if step == 1:
            started = time.monotonic()
        with autocast(device, bf16):
            loss = model(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
    return (time.monotonic() - started) / (NUM_STEPS - 1)


def peak_memory(device: str) -> Callable[[], float]:
    """Return a function that gives the peak memory in GiB: of the GPU, or of this process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**30
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def print_outlook(args: argparse.Namespace) -> None:
    """Print memory and minutes of a run with these options of `finetune_voice`. Raises: as loading the decoder does."""
    device = resolve_device(args.device)
    old = get_audio_tokenizer("glm4voice", args.tokenizer, args.decoder, device=device).decoder
    memory = peak_memory(device)
    vocoder = VocoderTraining(old.config.hift).to(device)
    samples = args.frames * HOP_LENGTH
    shapes = {"mel": (NUM_BANDS, args.frames), "wave": (samples,), "f0": (args.frames,)}
    segments = {name: torch.randn(args.batch_size, *shape, device=device).abs() for name, shape in shapes.items()}
    flow = VoiceFlowTraining(old.config.flow, old.flow.state_dict(), args.seed).to(device)
    batch = random_batch(flow, args.frames_per_batch, device)
    batch |= as_old(random_batch(flow, round(args.old_share * args.frames_per_batch), device))
    trainings = {
        "vocoder": (vocoder, args.vocoder_steps, seconds_per_step(vocoder, segments, bf16=False)),
        "flow": (flow, args.steps, seconds_per_step(flow, batch, bf16=args.bf16)),
    }
    judging = (args.steps // args.save_every + 1) * JUDGED_SECONDS * JUDGING_SECONDS
    print(f"{device}, peak memory {memory():.1f} GiB; for five minutes of recordings:")
    for name, (model, steps, seconds) in trainings.items():
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        size = f"{trained / 1e6:.1f} M parameters"
        print(f"{name:>10}: {steps} steps of {seconds:.2f} s, {steps * seconds / 60:.1f} minutes; {size} are trained")
    training = sum(steps * seconds for _, steps, seconds in trainings.values())
    print(f"{'judges':>10}: about {judging / 60:.1f} minutes")
    print(f"{'total':>10}: about {(training + judging + PREPARING_SECONDS) / 60:.0f} minutes, less if it stops early")
    print("The language model is not trained: it keeps speaking the same codes.")
