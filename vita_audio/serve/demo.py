"""What the page says about a model: the file `demo.json` in its folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

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
    """What a model can talk about.

    Attributes:
        domain: A sentence; empty if there is nothing to say.
        questions: Questions to click.
    """

    domain: str = ""
    questions: list[str] = QUESTIONS


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
        raise ValueError(f"{path}: {where}: {first['msg']}; it needs domain (text) and questions (list)") from error
