"""Training of a reader of phones on the codes of a speech tokenizer, which stays as it is."""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from tools.codec.code_mel_pairs import neighbours
from tools.codec.corpus import Utterance, load_corpus, split_corpus
from tools.codec.heads import UPSAMPLING, CodeReader, count_errors, ctc_loss
from tools.codec.run_settings import keep_options
from tools.common.training_loop import TrainingLoop
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers.base import AudioTokenizer
from vita_audio.files.atomic import write_json
from vita_audio.inference.pipeline import resolve_device

WIDTH = 192
HIDDEN_CODES = 0.1  # share of the codes of a batch that the reader does not see; otherwise it learns texts by heart

Row = tuple[Tensor, list[int], str]  # codes, (codes,) int64; ids of its phones; whose voice: "main" or "other"


class CodeReading(nn.Module):
    """A reader of codes, with the loss of its training."""

    def __init__(self, num_codes: int, num_symbols: int):
        super().__init__()
        self.embedding = nn.Embedding(num_codes, WIDTH)
        self.reader = CodeReader(WIDTH, num_symbols)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Return the logits of phones at 50 Hz, (batch, 4 * codes, symbols)."""
        mask = batch["mask"]
        seen = mask & (torch.rand(mask.shape, device=mask.device) >= HIDDEN_CODES) if self.training else mask
        features = self.reader(self.embedding(batch["codes"]) * seen[..., None], mask)
        return self.reader.code_ctc(features)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the CTC loss per phone of a batch of `collate`, a scalar named `total`."""
        return {"total": ctc_loss(self.logits(batch), batch["mask"].sum(1) * UPSAMPLING, batch["symbols"])}


def encode(utterances: Sequence[Utterance], tokenizer: AudioTokenizer, ids: dict[str, int], voice: str) -> list[Row]:
    """Return the codes of utterances with the ids of their phones, the shortest first."""
    rows = []
    for utterance in tqdm(utterances, desc=f"encoding with {tokenizer.fingerprint}", unit="clip"):
        codes = tokenizer.encode(torch.from_numpy(utterance.float_wave(utterance.rate)), utterance.rate)
        symbols = [ids[symbol] for symbol in utterance.symbols if symbol in ids]
        rows.append((torch.tensor(codes), symbols, "main" if utterance.voice == voice else "other"))
    return sorted(rows, key=lambda row: len(row[0]))


def collate(rows: Sequence[Row], device: str) -> dict[str, Any]:
    """Pad rows to `codes` (batch, codes) with `mask`, true where valid; and the `symbols` of each."""
    codes, symbols, _ = zip(*rows, strict=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in codes], batch_first=True)
    return {"codes": pad_sequence(codes, batch_first=True).to(device), "mask": mask.to(device), "symbols": symbols}


def error_rates(model: CodeReading, rows: Sequence[Row], device: str) -> dict[str, float]:
    """Return the share of phones read wrong for each kind of voice."""
    errors, counts = Counter(), Counter()
    for row in rows:  # one by one, since padding changes the end of what a reader reads
        batch, kind = collate([row], device), row[2]
        (num_wrong,) = count_errors(model.logits(batch), batch["mask"].sum(1) * UPSAMPLING, batch["symbols"])
        errors[kind] += num_wrong
        counts[kind] += len(row[1])
    return {f"phone_error_{kind}": errors[kind] / max(counts[kind], 1) for kind in sorted(counts)}


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that compares tokenizers and writes `phones.json`. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    train_set, held_out = split_corpus(load_corpus(args.corpus), args.voice, args.held_out)
    train_set = random.Random(args.seed).sample(train_set, min(args.max_clips, len(train_set)))
    symbols = sorted({symbol for utterance in train_set for symbol in utterance.symbols})
    ids = {symbol: index for index, symbol in enumerate(symbols, start=1)}
    tokenizers = {
        name: get_audio_tokenizer("glm4voice", folder, device=args.device) for name, folder in args.tokenizers.items()
    }

    def start(name: str, tokenizer: AudioTokenizer) -> TrainingLoop:
        torch.manual_seed(args.seed)
        own = argparse.Namespace(**vars(args) | {"output": args.output / name})
        loop = TrainingLoop(CodeReading(tokenizer.vocab_size, 1 + len(symbols)), own)
        keep_options(own, tokenizer=tokenizer.fingerprint)
        return loop

    loops = {name: start(name, tokenizer) for name, tokenizer in tokenizers.items()}

    def train(loop: TrainingLoop, tokenizer: AudioTokenizer) -> dict[str, float]:
        torch.manual_seed(args.seed + loop.step)  # whatever the others have drawn
        rng, num_codes = random.Random(args.seed + loop.step), round(args.batch_seconds * tokenizer.frame_rate)
        if loop.step < args.steps:
            rows, test = (encode(part, tokenizer, ids, args.voice) for part in (train_set, held_out))
            loop.run(
                lambda: collate(neighbours(rows, lambda row: len(row[0]), num_codes, rng), args.device),
                lambda: error_rates(loop.averaged.module, test, args.device),
            )
        lines = (loop.args.output / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return {key: value for key, value in json.loads(lines[-1]).items() if key.startswith("phone_error")}

    def compare() -> None:
        results = {name: train(loop, tokenizers[name]) for name, loop in loops.items()}
        write_json(args.output / "phones.json", results)
        for name, rates in results.items():
            print(f"{name}: {', '.join(f'{key} {100 * rate:.1f} %' for key, rate in rates.items())}")

    return compare
