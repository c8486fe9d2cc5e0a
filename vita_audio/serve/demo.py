"""What the server knows about a model: the file `demo.json` in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from vita_audio.serve.events import Strict

QUESTIONS = [
    "what is the capital of france",
    "what day comes after monday",
    "what is the color of the sky",
    "which month comes after february",
    "what is the opposite of big",
    "which people grow food",
    "what is four plus three",
    "what is the capital of china",
    "what color is chocolate",
    "who teaches children",
]  # in the domain of the quick start's models


class Demo(Strict):
    """What a model can talk about, and what texts it knows.

    Attributes:
        domain: A sentence; empty if there is nothing to say.
        questions: Questions to click, as people write them.
        bare_words: The model knows only words in lower case, without punctuation or digits: what clients write reaches
            it so.
        system_prompt: The page offers one; False for a model trained without any.
        max_turns: Messages that the model reads, besides those of the system; 1 for one trained on single questions,
            None for as many as a conversation keeps.
    """

    domain: str = ""
    questions: list[str] = QUESTIONS
    bare_words: bool = False
    system_prompt: bool = True
    max_turns: int | None = Field(None, ge=1)


def load_demo(model: Path) -> Demo:
    """Read `demo.json` in a model's folder; without it, the questions are those of the quick start.

    Raises: ValueError.
    """
    path = model / "demo.json"
    if not path.is_file():
        return Demo()
    try:
        return Demo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(
            f"{path}: {where}: {first['msg']}; it may have domain (text), questions (list), bare_words and "
            "system_prompt (true or false), and max_turns (number)"
        ) from error


def load_demos(model: Path, adapters: Mapping[str, str | None]) -> dict[str, Demo]:
    """Return what is known about each model, by name; an adapter has a `demo.json` of its own.

    Args:
        model: Folder of the base.
        adapters: From `chosen_models`.
    Raises: ValueError.
    """
    return {name: load_demo(model if adapter is None else Path(adapter)) for name, adapter in adapters.items()}
