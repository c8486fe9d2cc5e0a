"""Train a small speech encoder of SenseVoice's design on speech and its text, by its own CTC head on pieces of text.

    python -m tools.codec.train_encoder --corpus DIR --output RUN
    python -m tools.codec.train_encoder --data asr.jsonl --output RUN   # recognition samples, as the stages have them

Its sizes are the `audio_config` of a model config, its targets the tokens of a text tokenizer. Saves and resumes; ends
with a folder like SenseVoiceSmall (`model.safetensors`, `am.mvn`), which the first Plus stage starts from:
AUDIO_MODEL_NAME_OR_PATH=RUN/encoder.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tools.codec.corpus import FULL_SCALE, Utterance, hold_out, load_corpus, load_recognition
from tools.codec.heads import ctc_loss, greedy_symbols
from tools.codec.train_tokenizer import edit_distance
from tools.common.training_loop import TrainingLoop, add_loop_arguments
from vita_audio.errors import one_line_errors
from vita_audio.files.checkpoint import read_json
from vita_audio.models.sensevoice import FEATURE_SIZE, QUERIES, SenseVoiceConfig, SenseVoiceFrontEnd, SenseVoiceSmall
from vita_audio.resample import resample
from vita_audio.text import TextTokenizer

STATISTICS_UTTERANCES = 500  # whose features give the normalisation
MAX_BLANKED_ROWS = 5  # in a span that augmentation hides


class BatchMaker:
    """Utterances to features and targets."""

    def __init__(self, front_end: SenseVoiceFrontEnd, tokenizer: TextTokenizer, device: str):
        self.front_end, self.tokenizer, self.device = front_end, tokenizer, device

    def __call__(self, utterances: list[Utterance], rng: random.Random | None) -> dict:
        """`rng` None: no augmentation."""
        features = [features_of(utterance, self.front_end, rng).to(self.device) for utterance in utterances]
        symbols = [[token_id + 1 for token_id in self.tokenizer.encode(u.text)] for u in utterances]  # 0 is the blank
        return {"features": features, "symbols": symbols}


def features_of(utterance: Utterance, front_end: SenseVoiceFrontEnd, rng: random.Random | None) -> Tensor:
    """Return the features of an utterance, (rows, 560), with `rng` at another speed, with noise and blanked spans."""
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
    """Encoder with its CTC head; `forward` gives the loss of one batch."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.model = SenseVoiceSmall(config)

    def logits(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (batch, rows, vocabulary) without the rows of the queries, and the rows of each, (batch,)."""
        rows = [encoded[len(QUERIES) :] for encoded in self.model(features)]
        return self.model.ctc.ctc_lo(pad_sequence(rows, batch_first=True)), torch.tensor([len(row) for row in rows])

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return {"total": ctc_loss(*self.logits(batch["features"]), batch["symbols"])}


@torch.no_grad()
def validate(training: EncoderTraining, maker: BatchMaker, utterances: list[Utterance]) -> dict[str, float]:
    """Return the token error rate on utterances that were not trained on."""
    errors = count = 0
    for start in range(0, len(utterances), 12):
        batch = maker(utterances[start : start + 12], None)
        for path, truth in zip(greedy_symbols(*training.logits(batch["features"])), batch["symbols"], strict=True):
            errors, count = errors + edit_distance(path, truth), count + len(truth)
    return {"token_error": errors / max(count, 1)}


def draw_batch(utterances: list[Utterance], seconds: float, rng: random.Random) -> list[Utterance]:
    """Draw utterances of about `seconds` in all."""
    batch, total = [], 0.0
    while total < seconds:
        batch.append(rng.choice(utterances))
        total += len(batch[-1].wave) / batch[-1].rate
    return batch


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Read what training needs; return what trains and writes the encoder.

    Raises: FileNotFoundError, ValueError for speech or settings that cannot be used.
    """
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
    maker = BatchMaker(front_end, tokenizer, args.device)
    loop = TrainingLoop(EncoderTraining(config), args)
    rng = random.Random(args.seed + loop.step)

    def train() -> None:
        loop.run(
            next_batch=lambda: maker(draw_batch(train_set, args.batch_seconds, rng), rng),
            validate=lambda: validate(loop.averaged.module, maker, validation_set),
        )
        folder = args.output / "encoder"
        folder.mkdir(exist_ok=True)
        save_file(loop.averaged.module.model.half().state_dict(), folder / "model.safetensors")
        front_end.save_pretrained(folder)
        print(f"speech encoder written to {folder}")

    return train


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path, help="folder with manifest.jsonl")
    source.add_argument("--data", type=Path, help="recognition samples in the format of the training data")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/models/tiny_sensevoice_mtp0.json"), help="default: %(default)s"
    )
    parser.add_argument("--tokenizer", default="vita_audio/assets/tiny_text_lm", help="default: %(default)s")
    add_loop_arguments(parser, steps=6000, lr=1e-3)
    parser.add_argument("--batch-seconds", type=float, default=40.0, help="seconds of speech per step")
    parser.add_argument("--held-out", type=int, default=100, help="utterances kept for validation")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("train_speech_encoder.py"):
        train = prepare(args)
    train()


if __name__ == "__main__":
    main()
