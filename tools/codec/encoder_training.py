"""Training of a small speech encoder of SenseVoice's design: features, augmentation, loss and validation."""

import argparse
import random
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tools.codec.corpus import FULL_SCALE, Utterance, hold_out, load_corpus, load_recognition
from tools.codec.heads import count_errors, ctc_loss
from tools.common.training_loop import TrainingLoop
from vita_audio.files.checkpoint import read_json
from vita_audio.files.permissions import restore_permissions
from vita_audio.inference.pipeline import resolve_device
from vita_audio.models.sensevoice import SenseVoiceConfig, SenseVoiceSmall
from vita_audio.resample import resample
from vita_audio.speech_features import FEATURE_SIZE, QUERIES, SenseVoiceFrontEnd
from vita_audio.text import TextTokenizer

STATISTICS_UTTERANCES = 500  # number of utterances that the normalisation is measured on
MAX_BLANKED_ROWS = 5  # per span that augmentation blanks


def features_of(utterance: Utterance, front_end: SenseVoiceFrontEnd, rng: random.Random | None) -> Tensor:
    """Return the features of an utterance, (rows, 560), with random speed, noise and blanks if `rng` is given."""
    wave = torch.from_numpy(utterance.wave.astype(np.float32) / FULL_SCALE)
    speed = rng.uniform(0.9, 1.1) if rng else 1.0
    wave = resample(wave, round(utterance.rate * speed / 100) * 100, front_end.sample_rate)
    if rng is None:
        return front_end(wave)
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(rng.getrandbits(32)))
    features = front_end(wave + noise * 10 ** rng.uniform(-5, -2.2))
    for _ in range(len(features) // 30 + 1):
        start = rng.randrange(len(features))
        features[start : start + rng.randint(0, MAX_BLANKED_ROWS)] = 0
    return features


def measure_normalisation(utterances: list[Utterance]) -> SenseVoiceFrontEnd:
    """Return a front end whose features have mean 0 and standard deviation 1 on these utterances."""
    plain = SenseVoiceFrontEnd(torch.zeros(FEATURE_SIZE), torch.ones(FEATURE_SIZE))
    rows = torch.cat([features_of(utterance, plain, None) for utterance in utterances])
    return SenseVoiceFrontEnd(-rows.mean(dim=0), 1 / rows.std(dim=0).clamp(min=1e-3))


class EncoderTraining(nn.Module):
    """Encoder with its CTC head and its loss."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.model = SenseVoiceSmall(config)

    def logits(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits without the rows of the queries, (batch, rows, vocabulary), and numbers of rows, (batch,)."""
        rows = [encoded[len(QUERIES) :] for encoded in self.model(features)]
        return self.model.ctc.ctc_lo(pad_sequence(rows, batch_first=True)), torch.tensor([len(row) for row in rows])

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return {"total": ctc_loss(*self.logits(batch["features"]), batch["symbols"])}


@torch.no_grad()
def validate(
    training: EncoderTraining, make_batch: Callable[[list[Utterance]], dict], utterances: list[Utterance]
) -> dict[str, float]:
    """Return the token error rate on held-out utterances."""
    errors = count = 0
    for start in range(0, len(utterances), 12):
        batch = make_batch(utterances[start : start + 12])
        errors += sum(count_errors(*training.logits(batch["features"]), batch["symbols"]))
        count += sum(map(len, batch["symbols"]))
    return {"token_error": errors / max(count, 1)}


def draw_batch(utterances: list[Utterance], seconds: float, rng: random.Random) -> list[Utterance]:
    """Draw utterances with a total length of at least `seconds`."""
    batch, total = [], 0.0
    while total < seconds:
        batch.append(rng.choice(utterances))
        total += batch[-1].seconds
    return batch


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains an encoder and writes its folder. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    sizes = read_json(args.config).get("audio_config")
    if not isinstance(sizes, dict):
        raise ValueError(f"{args.config} must have the speech encoder's sizes under audio_config, got {sizes}")
    if unknown := sorted(set(sizes) - set(SenseVoiceConfig.__dataclass_fields__)):
        raise ValueError(f"{args.config}: audio_config has unknown sizes {', '.join(unknown)}; take them out")
    config = SenseVoiceConfig(**sizes)
    tokenizer = TextTokenizer.from_pretrained(args.tokenizer, 0)
    if config.vocab_size <= len(tokenizer):
        raise ValueError(f"vocab_size in {args.config} must exceed the {len(tokenizer)} tokens of {args.tokenizer}")
    utterances = load_corpus(args.corpus) if args.corpus else load_recognition(args.data)
    train_set, validation_set = hold_out(utterances, args.held_out)
    front_end = measure_normalisation(train_set[:: max(1, len(train_set) // STATISTICS_UTTERANCES)])
    loop = TrainingLoop(EncoderTraining(config), args)
    rng = random.Random(args.seed + loop.step)

    def make_batch(utterances: list[Utterance], rng: random.Random | None = None) -> dict:
        features = [features_of(utterance, front_end, rng).to(args.device) for utterance in utterances]
        symbols = [[token_id + 1 for token_id in tokenizer.encode(u.text)] for u in utterances]  # 0 is the blank
        return {"features": features, "symbols": symbols}

    def train() -> None:
        loop.run(
            next_batch=lambda: make_batch(draw_batch(train_set, args.batch_seconds, rng), rng),
            validate=lambda: validate(loop.averaged.module, make_batch, validation_set),
        )
        folder = args.output / "encoder"
        folder.mkdir(exist_ok=True)
        save_file(loop.averaged.module.model.half().state_dict(), folder / "model.safetensors")
        front_end.save_pretrained(folder)
        restore_permissions(folder)
        print(f"speech encoder written to {folder}")

    return train
