"""Talk or write to a model and get text and speech back.

    python tools/inference_sts.py --task sts --audio question.wav --stream
    python tools/inference_sts.py --task tts --text "four two seven" --mode turbo --output spoken.wav
    python tools/inference_sts.py --model DIR --task asr --audio question.wav --no-do-sample
    python tools/inference_sts.py --model DIR --adapter one=DIR two=DIR --task tts --text "four two seven"

Prints the text of the answer and, for speech, the output file, the time to the first audio and the real-time factor.
Without --stream, all audio arrives at once. With several adapters, the base and each adapter answer in turn: a line
with the name precedes each answer, and the name is part of the output file's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import soundfile

from vita_audio.command_line import (
    OneLineParser,
    add_decoding_options,
    add_model_options,
    check_files,
    check_model_folder,
    chosen_models,
    decoding_options,
    in_range,
    load_audio_tokenizer,
    load_speech_lms,
    plan_name,
    quieten_transformers,
)
from vita_audio.errors import one_line_errors
from vita_audio.inference.tasks import SYSTEMS, TASKS, Sample, make_conversation
from vita_audio.interleave import MODES

if TYPE_CHECKING:
    from vita_audio.audio_tokenizers import AudioTokenizer
    from vita_audio.inference.pipeline import SpeechLM
    from vita_audio.inference.response import Chunk, Response

DEFAULT_OUTPUT = Path("outputs/answer.wav")
GENERATION_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("inference_sts", __doc__)
    add = parser.add_argument
    add("--task", required=True, choices=TASKS, help="text chat, recognition, synthesis, spoken answer")
    add("--audio", type=Path, help="speech input (asr, sts)")
    add("--text", help="text input (text, tts; before the audio in sts)")
    add("--voice-prompt", type=Path, help="speech in the voice wanted for the answer (tts, sts)")
    add("--voice", type=Path, help="speech in the voice to decode with, if the codec has voices")
    add("--system", help=f"system message, or one of {', '.join(SYSTEMS)} (default: none)")
    modes = f"{', '.join(MODES)} or a ratio such as 1,10,4,10"
    add("--mode", type=plan_name, help=f"interleave plan: {modes} (default: the model's)")
    add("--stream", action="store_true", help="print text and write audio as they are generated")
    add("--output", type=Path, help=f"sound file of the answer (default for speech: {DEFAULT_OUTPUT})")
    add_model_options(parser, several_adapters=True)
    group = parser.add_argument_group("generation", "defaults: the model's generation_config.json")
    group.add_argument("--do-sample", action=argparse.BooleanOptionalAction, help="sample, or decode greedily")
    group.add_argument("--temperature", type=in_range(float, above=0))
    group.add_argument("--top-k", type=in_range(int, minimum=0))
    group.add_argument("--top-p", type=in_range(float, above=0, maximum=1))
    group.add_argument("--repetition-penalty", type=in_range(float, above=0))
    group.add_argument("--max-new-tokens", type=in_range(int, minimum=1))
    add_decoding_options(group)
    group.add_argument("--seed", type=int, default=42, help="seed for sampling")
    options = parser.parse_args(arguments)
    options.decoding = decoding_options(parser, options, [options.mode])
    return options


def run(options: argparse.Namespace) -> None:
    """Check the input before anything large is imported or loaded, then answer."""
    if options.output is None and TASKS[options.task].speaks:
        options.output = DEFAULT_OUTPUT
    outputs = output_files(options)
    for output in filter(None, outputs.values()):
        check_output(output)
    conversation = make_conversation(
        options.task, text=options.text, audio=options.audio, voice_prompt=options.voice_prompt, system=options.system
    )
    check_files(options.audio, options.voice_prompt, options.voice)
    check_model_folder(options.model)
    import torch

    from vita_audio.data.audio import load_audio

    quieten_transformers()
    audio_tokenizer = load_audio_tokenizer(options)
    for path in conversation["audios"]:
        load_audio(path, audio_tokenizer.sample_rate)  # reports unreadable files before the model is loaded
    voice = None
    if options.output is not None:
        voice = load_voice(audio_tokenizer, options.voice)
        audio_tokenizer.stream(voice)  # without a speech decoder, raises now rather than after the answer
    speech_lms = load_speech_lms(options, audio_tokenizer)
    generation = {name: value for name in GENERATION_OPTIONS if (value := getattr(options, name)) is not None}
    generation |= {"plan": options.mode, "voice": voice, "decode_audio": options.output is not None}
    generation |= options.decoding
    for name, speech_lm in speech_lms.items():
        if len(speech_lms) > 1:
            print(f"[{name}]")
        torch.manual_seed(options.seed)
        answer = pieces(speech_lm, conversation, stream=options.stream, **generation)
        write_answer(answer, outputs[name], audio_tokenizer.output_rate)


def output_files(options: argparse.Namespace) -> dict[str, Path | None]:
    """Return the output file of each model by its name, which is part of the file's name if there are several."""
    names, output = list(chosen_models(options)), options.output
    if output is None or len(names) == 1:
        return dict.fromkeys(names, output)
    return {name: output.with_name(f"{output.stem}-{name}{output.suffix}") for name in names}


def load_voice(audio_tokenizer: AudioTokenizer, path: Path | None) -> Any:
    """Make the decoder's voice from a recording; without one, None selects the voice in the weights.

    Raises: AudioError, FileNotFoundError; ValueError if the codec has no voices, or needs a recording.
    """
    from vita_audio.data.audio import load_audio

    if path is not None:
        rate = audio_tokenizer.sample_rate
        return audio_tokenizer.make_voice(load_audio(path, rate), rate)
    if audio_tokenizer.needs_voice:
        raise ValueError(f"{audio_tokenizer.name} codes do not contain a voice; give a recording as --voice")
    return None


def check_output(path: Path) -> None:
    """Check that a sound file can be written, and create its folder.

    Raises: ValueError for an unknown format; OSError if the file cannot be written.
    """
    if not soundfile.check_format(path.suffix[1:].upper()):  # also false for RAW, which has no header
        raise ValueError(f"--output must end in the name of a sound format, such as .wav or .flac, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"--output must be a file, got the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output {path} cannot be written: {error}") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"--output {path} cannot be written; choose another file")


def pieces(speech_lm: SpeechLM, conversation: Sample, *, stream: bool, **generation: Any) -> Iterator[Chunk | Response]:
    """Yield the answer piece by piece as the model generates it, or in one piece."""
    if stream:
        yield from speech_lm.stream(conversation, **generation)
    else:
        yield speech_lm.respond(conversation, **generation)


def write_answer(answer: Iterable[Chunk | Response], output: Path | None, sample_rate: int) -> None:
    """Print the text and write the audio of each piece as it arrives, then report the length and latency."""
    start, first_audio_seconds, num_samples, file = perf_counter(), None, 0, None
    with ExitStack() as stack:
        for piece in answer:
            seconds = perf_counter() - start
            print(piece.text, end="", flush=True)
            if output is None or not len(piece.wave):
                continue
            if file is None:
                first_audio_seconds = seconds
                file = stack.enter_context(soundfile.SoundFile(output, "w", sample_rate, channels=1))
            file.write(piece.wave.numpy())
            file.flush()
            num_samples += len(piece.wave)
    print()
    if num_samples:
        print(
            f"{output}: {num_samples / sample_rate:.2f} s of speech, first audio after "
            f"{1000 * first_audio_seconds:.0f} ms, real-time factor {seconds * sample_rate / num_samples:.3f}"
        )
    elif output is not None:
        print(f"the answer has no audio, {output} was not written")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("inference_sts"):
        run(options)


if __name__ == "__main__":
    main()
