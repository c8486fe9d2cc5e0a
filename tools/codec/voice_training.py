"""Fine-tune a speech decoder to a new voice from a few minutes of recordings.

Codes and their encoder stay as they are, so everything that speaks the tokenizer's codes speaks in the new voice, also
in sounds that the recordings lack: only what follows, from the encoder's output to the wave, learns the voice. The flow
learns from three kinds of codes for each recording: its own, those of the same words in the old voice at the same
timing, which the old decoder itself makes, and those of the recording in disguise. Every batch also has old speech as
the old decoder speaks it, under a speaker embedding of its own, so that the old voice is not forgotten.
"""

import argparse
import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from evaluation.run_folder import keep_settings
from tools.codec.code_mel_pairs import collate, draw_batch
from tools.codec.decoder_training import FlowTraining, SegmentSampler, VocoderTraining, held_out_losses, to_device
from tools.codec.voice_data import VoiceData, read_voice
from tools.codec.voice_judging import VoiceJudge, speak
from tools.common.training_loop import TrainingLoop
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.files.atomic import atomic_folder, write_json
from vita_audio.inference.pipeline import resolve_device
from vita_audio.optional import require
from vita_audio.speech_decoder.config import FlowConfig
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.mel import SAMPLE_RATE

CONTENT = ("input_embedding", "encoder", "encoder_proj")  # parts of the flow that know sounds rather than voices
OLD_VOICE = 0  # the place of the 1 in the old voice's speaker embedding; the new voice is the one without embedding
DECODER, RESULT, ATTEMPTS = "decoder", "voice.json", "attempts.json"
WITHOUT_EFFECT = ("output", "device", "threads")  # on the result


class VoiceFlowTraining(FlowTraining):
    """The flow in a new voice, and in the old one with the speaker embedding `old_voice_embedding`."""

    def __init__(self, config: FlowConfig, weights: dict[str, Tensor], seed: int):
        super().__init__(config, seed)
        self.flow.load_state_dict(weights)
        for name in CONTENT:
            getattr(self.flow, name).requires_grad_(False)
        self.flow.spk_embed_affine_layer.weight.data[:, OLD_VOICE] = 0  # both voices start as the old one

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch; those of old speech, whose names begin with `old_`, train no prior."""
        losses = super().forward(batch)
        old = [batch[f"old_{name}"] for name in ("codes", "code_lengths", "mel", "mel_lengths")]
        embedding = old_voice_embedding(self.flow.config).to(old[2]).expand(len(old[0]), -1)
        losses["old_loss"] = self.flow.loss(*old, generator=self.generator, embedding=embedding)["flow_loss"]
        return losses | {"total": losses["total"] + losses["old_loss"]}


def old_voice_embedding(config: FlowConfig) -> Tensor:
    """Return the speaker embedding that gives a fine-tuned decoder its old voice, (spk_embed_dim,), for `FlowVoice`."""
    return one_hot(torch.tensor(OLD_VOICE), config.spk_embed_dim).float()


class Attempts:
    """Verdicts on the old decoder and on steps of a training so far, and the decoder of the best of these steps.

    All are in a folder, so that they survive a kill.

    Attributes:
        rows: Verdicts in order; the first, of step 0, is on the old decoder.
    """

    def __init__(self, folder: Path, patience: int):
        """Read earlier attempts; `patience` is the number of attempts without a better one that ends the training."""
        self._folder, self._patience = folder, patience
        file = folder / ATTEMPTS
        self.rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    @property
    def best(self) -> dict[str, Any]:
        return max(self.rows[1:], key=lambda row: row["score"])

    @property
    def is_done(self) -> bool:
        return len(self.rows) > 1 and len(self.rows) - 1 - self.rows.index(self.best) >= self._patience

    def has(self, step: int) -> bool:
        return any(row["step"] == step for row in self.rows)

    def add(self, step: int, verdict: dict[str, Any], decoder: SpeechDecoder) -> None:
        """Note a verdict, and keep the decoder if it is the best one."""
        is_best = step > 0 and (len(self.rows) < 2 or verdict["score"] > self.best["score"])
        if is_best:
            decoder.save_pretrained(self.folder_of(step))
        self.rows.append({"step": step, **verdict})
        write_json(self._folder / ATTEMPTS, self.rows)
        for folder in self._folder.glob("step-*") if is_best else ():
            if folder != self.folder_of(step):
                shutil.rmtree(folder)

    def folder_of(self, step: int) -> Path:
        return self._folder / f"step-{step}"


def prepare_voice(args: argparse.Namespace) -> Callable[[], None]:
    """Read the recordings and load all models; return a function that trains.

    Raises: FileNotFoundError, ValueError, MissingPackageError.
    """
    args.device = resolve_device(args.device)
    require("parselmouth", purpose="the pitch of recordings", install="praat-parselmouth")
    utterances = read_voice(args.voice, args.speaker)
    tokenizer = get_audio_tokenizer("glm4voice", args.tokenizer, args.decoder, device=args.device)
    if tokenizer.decoder is None:
        raise ValueError(f"--tokenizer {args.tokenizer} needs --decoder, the folder of the decoder to fine-tune")
    settings = {name: str(value) for name, value in vars(args).items() if name not in WITHOUT_EFFECT}
    args.output.mkdir(parents=True, exist_ok=True)
    seconds = sum(utterance.seconds for utterance in utterances)
    recordings = {"recordings": f"{len(utterances)} clips, {seconds:.2f} s", "fingerprint": tokenizer.fingerprint}
    keep_settings(args.output, settings | recordings)
    judge = VoiceJudge.load(args.judge, args.language, args.threads)
    data = VoiceData(utterances, tokenizer, args.held_out, args.seed)
    return lambda: finetune(data, judge, args)


def finetune(data: VoiceData, judge: VoiceJudge, args: argparse.Namespace) -> None:
    """Train vocoder and flow, and write the best decoder and RESULT to the run folder."""
    hift = train_vocoder(data, args)
    attempts = train_flow(data, hift, judge, args)
    with atomic_folder(args.output / DECODER) as folder:
        shutil.copytree(attempts.folder_of(attempts.best["step"]), folder, dirs_exist_ok=True)
    recordings = {"seconds": sum(utterance.seconds for utterance in data.train), "clips": len(data.train)}
    recordings |= {"judged_clips": len(data.held_out)}
    result = {"recordings": recordings, "before": attempts.rows[0], "best": attempts.best, "attempts": attempts.rows}
    write_json(args.output / RESULT, result)
    best = attempts.best
    print(
        f"{args.output / DECODER}: step {best['step']}, judged by {args.judge} on {best['sounds']} sounds that are not "
        f"trained on: likeness {best['likeness']:.2f}, word error rate {100 * best['wer']:.1f} %; before: "
        f"{attempts.rows[0]['likeness']:.2f}, {100 * attempts.rows[0]['wer']:.1f} %"
    )


def train_vocoder(data: VoiceData, args: argparse.Namespace) -> nn.Module:
    """Fine-tune the vocoder on the recordings and, for a third of the segments, on the old voice; return it."""
    args = argparse.Namespace(**vars(args) | {"output": args.output / "vocoder", "steps": args.vocoder_steps})
    args.lr, args.bf16 = args.vocoder_lr, False  # float32 for the phase of the harmonics
    model, rng = VocoderTraining(data.decoder.config.hift), random.Random(args.seed)
    model.hift.load_state_dict(data.decoder.hift.state_dict())
    loop = TrainingLoop(model, args)
    if loop.step < args.steps:
        spoken = data.train + data.repeated[: len(data.train) // 2]
        held_out = SegmentSampler(data.held_out, args.frames, len(data.held_out), rng).batch()
        sampler = SegmentSampler(spoken, args.frames, args.batch_size, rng)
        loop.run(
            lambda: to_device(sampler.batch(), args.device),
            lambda: held_out_losses(loop.averaged, held_out, args.device),
            lambda step: seed_step(loop, rng, step),
        )
    return loop.averaged.module.hift


def train_flow(data: VoiceData, hift: nn.Module, judge: VoiceJudge, args: argparse.Namespace) -> Attempts:
    """Fine-tune the flow until the judge finds it no better; return the attempts."""
    args = argparse.Namespace(**vars(args) | {"output": args.output / "flow"})
    loop = TrainingLoop(VoiceFlowTraining(data.decoder.config.flow, data.decoder.flow.state_dict(), args.seed), args)
    attempts, rng = Attempts(args.output.parent, args.patience), random.Random(args.seed)
    codes, texts = data.judged()
    speaker = judge.speaker((data.reference(), SAMPLE_RATE))

    def attempt(flow: nn.Module, vocoder: nn.Module) -> dict[str, float]:
        decoder = SpeechDecoder(data.decoder.config, copy.deepcopy(flow), copy.deepcopy(vocoder))
        verdict = judge.judge(speak(decoder, codes), texts, speaker).summary()
        attempts.add(loop.step, verdict, decoder)
        return {name: verdict[name] for name in ("wer", "likeness", "score")}

    if not attempts.rows:
        attempt(data.decoder.flow, data.decoder.hift)
    if not attempts.has(loop.step):  # stopped between checkpoint and verdict
        attempt(loop.averaged.module.flow, hift)
    new = data.new_pairs(args.disguises, rng)
    old = data.old_pairs([pair.codes for pair in new[::2]], args.seed)
    held_out = collate(data.held_out_pairs()) | as_old(collate(old[:: max(1, len(old) // len(codes))]))

    def next_batch() -> dict[str, Any]:
        rows = draw_batch(new, args.frames_per_batch, rng)
        rows |= as_old(draw_batch(old, round(args.old_share * args.frames_per_batch), rng))
        return to_device(rows, args.device)

    def validate() -> dict[str, float]:
        loop.averaged.module.generator.manual_seed(args.seed)
        return held_out_losses(loop.averaged, held_out, args.device) | attempt(loop.averaged.module.flow, hift)

    loop.run(next_batch, validate, lambda step: seed_step(loop, rng, step), lambda: attempts.is_done)
    return attempts


def as_old(batch: dict[str, Any]) -> dict[str, Any]:
    return {f"old_{name}": value for name, value in batch.items()}


def seed_step(loop: TrainingLoop, rng: random.Random, step: int) -> None:
    """Make the random numbers of a step depend on the step alone, so that a resumed run equals a straight one."""
    seed = loop.args.seed + step
    rng.seed(seed)
    torch.manual_seed(seed)  # dropout
    loop.model.generator.manual_seed(seed)
