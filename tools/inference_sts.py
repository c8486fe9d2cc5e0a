"""Talk or write to a model and get text and speech back.

    python tools/inference_sts.py --task sts --audio question.wav --stream
    python tools/inference_sts.py --task tts --text "four two seven" --mode turbo --output spoken.wav
    python tools/inference_sts.py --model DIR --task asr --audio question.wav --no-do-sample

Prints the text of the answer and, for speech, the file written, the time to the first audio and the real-time factor.
Without --stream, all audio arrives at once.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import soundfile

from vita_audio.command_line import (
    OneLineParser,
    add_model_options,
    check_files,
    check_model_folder,
    in_range,
    load_audio_tokenizer,
    load_speech_lm,
    plan_name,
    quieten_transformers,
)
from vita_audio.errors import one_line_errors
from vita_audio.inference.tasks import SYSTEMS, TASKS, Sample, make_conversation
from vita_audio.interleave import MODES

if TYPE_CHECKING:
    from vita_audio.audio_tokenizers import AudioTokenizer
    from vita_audio.inference.pipeline import SpeechLM

DEFAULT_OUTPUT = Path("outputs/answer.wav")
GENERATION_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("inference_sts", __doc__)
    parser.add_argument("--task", required=True, choices=TASKS, help="chat, recognition, synthesis, spoken answer")
    parser.add_argument("--audio", type=Path, help="speech input (asr, sts)")
    parser.add_argument("--text", help="text input (text, tts; in front of the audio in sts)")
    parser.add_argument("--voice-prompt", type=Path, help="speech in the voice wanted for the answer (tts, sts)")
    parser.add_argument("--voice", type=Path, help="speech in the voice to decode with, if the codec has voices")
    parser.add_argument("--system", help=f"system message, or one of {', '.join(SYSTEMS)} (default: none)")
    modes = f"{', '.join(MODES)} or a ratio such as 1,10,4,10"
    parser.add_argument("--mode", type=plan_name, help=f"interleave plan: {modes} (default: the model's)")
    parser.add_argument("--stream", action="store_true", help="print text and write audio as they are generated")
    parser.add_argument("--output", type=Path, help=f"sound file of the answer (default for speech: {DEFAULT_OUTPUT})")
    add_model_options(parser)
    group = parser.add_argument_group("generation", "defaults: the model's generation_config.json")
    group.add_argument("--do-sample", action=argparse.BooleanOptionalAction, help="sample, or decode greedily")
    group.add_argument("--temperature", type=in_range(float, above=0))
    group.add_argument("--top-k", type=in_range(int, minimum=0))
    group.add_argument("--top-p", type=in_range(float, above=0, maximum=1))
    group.add_argument("--repetition-penalty", type=in_range(float, above=0))
    group.add_argument("--max-new-tokens", type=in_range(int, minimum=1))
    group.add_argument("--seed", type=int, default=42, help="seed for sampling")
    return parser.parse_args(arguments)


def answer(options: argparse.Namespace) -> None:
    """Check the input before anything large is imported or loaded, then answer."""
    if options.output is None and TASKS[options.task].speaks:
        options.output = DEFAULT_OUTPUT
    if options.output is not None:
        check_output(options.output)
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
        load_audio(path, audio_tokenizer.sample_rate)  # unreadable files are reported before the model is loaded
    voice = None
    if options.output is not None:
        voice = load_voice(audio_tokenizer, options.voice)
        audio_tokenizer.stream(voice)  # raises now, rather than after the answer, if there is no speech decoder
    speech_lm = load_speech_lm(options, audio_tokenizer)
    torch.manual_seed(options.seed)
    values = {name: getattr(options, name) for name in GENERATION_OPTIONS}
    generation = {name: value for name, value in values.items() if value is not None}
    respond = stream_answer if options.stream else whole_answer
    respond(speech_lm, conversation, options.output, plan=options.mode, voice=voice, **generation)


def load_voice(audio_tokenizer: AudioTokenizer, path: Path | None) -> Any:
    """Make the decoder's voice from a recording; None for the voice in the weights.

    Raises: AudioError, FileNotFoundError; ValueError if the codec has no voices, or needs a recording.
    """
    from vita_audio.data.audio import load_audio

    if path is not None:
        rate = audio_tokenizer.sample_rate
        return audio_tokenizer.make_voice(load_audio(path, rate), rate)
    if audio_tokenizer.needs_voice:
        raise ValueError(f"{audio_tokenizer.name} codes hold no voice; give a recording as --voice")
    return None


def check_output(path: Path) -> None:
    """Create the folder of a sound file.

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


def whole_answer(speech_lm: SpeechLM, conversation: Sample, output: Path | None, **generation: Any) -> None:
    """Answer, then print the text and write the audio."""
    response = speech_lm.respond(conversation, decode_audio=output is not None, **generation)
    print(response.text)
    if output is None:
        return
    if len(response.wave):
        soundfile.write(output, response.wave.numpy(), response.sample_rate)
    seconds = response.timings.total_seconds
    report(output, len(response.wave) / response.sample_rate, first_audio_seconds=seconds, total_seconds=seconds)


def stream_answer(speech_lm: SpeechLM, conversation: Sample, output: Path | None, **generation: Any) -> None:
    """Print text and write audio piece by piece as the model generates them."""
    start, first_audio_seconds = perf_counter(), None
    sample_rate = speech_lm.audio_tokenizer.output_rate
    num_samples = 0
    with ExitStack() as stack:
        file = None
        for chunk in speech_lm.stream(conversation, decode_audio=output is not None, **generation):
            print(chunk.text, end="", flush=True)
            if not len(chunk.wave):
                continue
            if file is None:
                first_audio_seconds = perf_counter() - start
                file = stack.enter_context(soundfile.SoundFile(output, "w", sample_rate, channels=1))
            file.write(chunk.wave.numpy())
            file.flush()
            num_samples += len(chunk.wave)
    print()
    if output is not None:
        report(output, num_samples / sample_rate, first_audio_seconds, perf_counter() - start)


def report(output: Path, audio_seconds: float, first_audio_seconds: float | None, total_seconds: float) -> None:
    """Print length and latency of the audio written."""
    if not audio_seconds:
        print(f"the answer has no audio, {output} was not written")
        return
    print(
        f"{output}: {audio_seconds:.2f} s of speech, first audio after {1000 * first_audio_seconds:.0f} ms, "
        f"real-time factor {total_seconds / audio_seconds:.3f}"
    )


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("inference_sts"):
        answer(options)


if __name__ == "__main__":
    main()
