"""Chats of the demo domain, and the training of the tiny text model on them."""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from tools.common.training_loop import TrainingLoop
from tools.demo.domain import DOMAINS, ENGLISH, Domain
from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.chat import encode_conversation
from vita_audio.files.permissions import restore_permissions
from vita_audio.inference.pipeline import resolve_device
from vita_audio.interleave import InterleavePlan
from vita_audio.text import ASR_PROMPT, TTS_PROMPT, TextTokenizer

Chat = tuple[str, str]  # user message, answer
GROUP_BATCHES = 8  # batches drawn together and sorted by length
SIZE_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "initializer_range"),
)


class ChatSource:
    """Draws training chats of a domain; the same random state gives the same chats."""

    def __init__(self, domain: Domain = ENGLISH):
        words = {word for text in domain.training_texts("long") for word in text.split()}
        self._domain, self._words = domain, sorted(words - set(domain.digits))
        self._asked = [(phrasing, item.answer) for item in domain.questions("long") for phrasing in item.phrasings]
        self._kinds: dict[Callable[[random.Random], Chat], float] = {
            partial(self._repeat, domain.digit_string): 0.25,
            partial(self._repeat, domain.date): 0.1,
            partial(self._repeat, domain.sentence): 0.2,
            self._repeat_words: 0.2,
            self._answer: 0.15,
            self._transcribe: 0.1,
        }

    def draw(self, rng: random.Random) -> Chat:
        (kind,) = rng.choices(list(self._kinds), weights=list(self._kinds.values()))
        return kind(rng)

    def _repeat(self, make: Callable[[random.Random], str], rng: random.Random) -> Chat:
        return repeat(self._training_text(make, rng))

    def _repeat_words(self, rng: random.Random) -> Chat:
        """Repeat words in random order, so that copying does not rely on common sequences."""
        return repeat(" ".join(rng.choices(self._words, k=rng.randint(1, 8))))

    def _answer(self, rng: random.Random) -> Chat:
        return rng.choice(self._asked)

    def _transcribe(self, rng: random.Random) -> Chat:
        """Transcribe without speech, to learn the form of transcripts."""
        make = rng.choice((self._domain.digit_string, self._domain.date, self._domain.sentence, None))
        text = self._training_text(make, rng) if make else rng.choice(rng.choice(self._asked))
        return f"{ASR_PROMPT}\n", text

    def _training_text(self, make: Callable[[random.Random], str], rng: random.Random) -> str:
        return self._domain.draw(make, 1, rng, held_out=False)[0]


def repeat(text: str) -> Chat:
    """Return the chat of speech synthesis with text in place of speech."""
    return TTS_PROMPT + text, text


def evaluation_chats(domain: Domain = ENGLISH) -> dict[str, list[Chat]]:
    """Return chats that are not in the training data, except the questions under "answers"."""
    kinds = ("repeat_digits", "repeat_dates", "repeat_sentences")
    texts = domain.heldout_sentences("long")
    chats = {name: [repeat(text) for text in texts[index :: len(kinds)]] for index, name in enumerate(kinds)}
    asked = domain.questions("long")
    chats["answers"] = [(phrasing, item.answer) for item in asked for phrasing in item.phrasings]
    chats["answers_to_new_phrasings"] = [(item.held_out_phrasing, item.answer) for item in asked]
    return chats


def _no_audio(audio: object, role: str) -> list[int]:
    raise AssertionError("these chats have no audio")


def encode_chats(chats: Sequence[Chat], tokenizer: TextTokenizer) -> tuple[Tensor, Tensor]:
    """Return right-padded ids and labels, (chats, time), int64; labels cover the answer and the end of its turn."""
    roles = ("user", "assistant")
    samples = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, chat, strict=True)]}
        for chat in chats
    ]
    encoded = [encode_conversation(sample, tokenizer, _no_audio, InterleavePlan.parse("boost")) for sample in samples]
    ids, labels = ([torch.tensor(getattr(chat, name)) for chat in encoded] for name in ("input_ids", "labels"))
    return pad_sequence(ids, True, tokenizer.pad_id), pad_sequence(labels, True, IGNORE_INDEX)


class ChatBatches:
    """Training batches by step; each group of batches is drawn together and sorted by length, to save padding."""

    def __init__(self, tokenizer: TextTokenizer, batch_size: int, seed: int, languages: Sequence[str] = ("en",)):
        self._tokenizer, self._batch_size, self._seed = tokenizer, batch_size, seed
        self._sources = [ChatSource(DOMAINS[language]) for language in languages]
        self._group, self._batches = -1, []

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        group, index = divmod(step, GROUP_BATCHES)
        if group != self._group:
            rng = random.Random(f"chats {self._seed} {group}")
            numbers = range(GROUP_BATCHES * self._batch_size)
            chats = [self._sources[number % len(self._sources)].draw(rng) for number in numbers]
            chats.sort(key=lambda chat: len(chat[0]) + len(chat[1]))
            self._batches = [chats[i : i + self._batch_size] for i in range(0, len(chats), self._batch_size)]
            rng.shuffle(self._batches)
            self._group = group
        return encode_chats(self._batches[index], self._tokenizer)


class TextLoss(nn.Module):
    """Adapts the language model to `TrainingLoop`; takes the batches of `encode_chats`."""

    def __init__(self, language_model: Qwen2ForCausalLM):
        super().__init__()
        self.language_model = language_model

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        ids, labels = (part.to(self.language_model.device) for part in batch)
        logits = self.language_model(ids, use_cache=False).logits  # (chats, time, vocabulary)
        return {"total": functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())}


@torch.no_grad()
def exact_share(language_model: Qwen2ForCausalLM, chats: Sequence[Chat], tokenizer: TextTokenizer) -> float:
    """Return the share of chats that greedy decoding answers exactly, that is, with every token the most likely one."""
    ids, labels = (part.to(language_model.device) for part in encode_chats(chats, tokenizer))
    predicted = language_model(ids, use_cache=False).logits[:, :-1].argmax(dim=-1)
    wrong = (predicted != labels[:, 1:]) & (labels[:, 1:] != IGNORE_INDEX)
    return 1.0 - wrong.any(dim=1).float().mean().item()


def continued_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Return the model in a folder with the vocabulary of another tokenizer.

    Tokens that both vocabularies have keep their rows; a new token gets the mean of the rows of its pieces.
    """
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    known = AutoTokenizer.from_pretrained(folder)
    rows, ids = model.get_input_embeddings().weight.detach().clone(), known.get_vocab()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for token, row in tokenizer.get_vocab().items():
            pieces = [ids[token]] if token in ids else known.encode(tokenizer.convert_tokens_to_string([token]))
            model.get_input_embeddings().weight[row] = rows[pieces].mean(dim=0)
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model


def build_model(config_path: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """Return a stock Qwen2 with random weights and the sizes of one of the project's model configs."""
    sizes = json.loads(config_path.read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # twice as fast as fused attention on a CPU, for texts this short
        **{key: sizes[key] for key in SIZE_KEYS},
    )
    return Qwen2ForCausalLM(config)


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains a model and exports it. Raises: FileNotFoundError, ValueError."""
    args.device = resolve_device(args.device)
    tokenizer = TextTokenizer.from_pretrained(args.tokenizer)
    plain_tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)  # `tokenizer` also has audio tokens
    if args.start:
        model = continued_model(args.start, plain_tokenizer)
    else:
        model = build_model(args.config, plain_tokenizer, args.seed)
    loop = TrainingLoop(TextLoss(model), args)
    batches = ChatBatches(tokenizer, args.batch_size, args.seed, args.languages)
    held_out = {
        name if language == "en" else f"{name}_{language}": chats
        for language in args.languages
        for name, chats in evaluation_chats(DOMAINS[language]).items()
    }

    def evaluate() -> dict[str, float]:
        averaged = loop.averaged.module.language_model
        return {name: exact_share(averaged, chats, tokenizer) for name, chats in held_out.items()}

    def train() -> None:
        loop.run(next_batch=lambda: batches[loop.step], validate=evaluate)
        loop.averaged.module.language_model.to(torch.bfloat16).save_pretrained(args.export)
        plain_tokenizer.save_pretrained(args.export)
        restore_permissions(args.export)

    return train
