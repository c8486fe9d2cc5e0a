"""Report on a decoder with a new voice: likeness and word errors before and after, with players.

    python -m tools.voice.report --folder outputs/your_voice

Reads the prepared recordings and the fine-tuned decoder in the folder of scripts/your_voice.sh; writes report.json,
report.html and the sounds. Two kinds of codes are decoded: those of recordings that training has not heard, and those
that the model speaks for given texts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.suites import read_rows
from tools.demo.domain import ENGLISH
from vita_audio.command_line import OneLineParser, add_device_option
from vita_audio.errors import one_line_errors
from vita_audio.files.checkpoint import read_json

if TYPE_CHECKING:
    from evaluation.judges import Sound
    from tools.codec.voice_judging import Verdict
    from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer

NUM_ANSWERS = 40  # texts that the model speaks
NUM_PLAYERS = 8  # of each kind
PROMPT_SECONDS = 6
RESULT = "voice.json"  # of tools.codec.finetune_voice
TEMPLATE = Path(__file__).with_name("report.html")
RECORDED, BEFORE, AFTER, PROMPT = "as recorded", "before", "after", "before, with a voice prompt"
RECORDINGS, SPOKEN = "recordings", "the model"  # whose codes are decoded


@dataclass(frozen=True)
class Part:
    """Sounds of one kind: texts, and by row of the table their sounds and verdict."""

    texts: Sequence[str]
    sounds: dict[str, list[Sound]]
    verdicts: dict[str, Verdict]


def held_out(folder: Path, test: Path | None) -> list[tuple[Path, str]]:
    """Return audio files and texts that training has not heard: those of a corpus folder, or else those held out."""
    if test is not None:
        return [(test / row["audio"], row["text"]) for _, row in read_rows(test / "manifest.jsonl")]
    rows = [row for _, row in read_rows(folder / "data" / "heldout_tts.jsonl")]
    if not rows:
        raise ValueError(f"{folder / 'data'} has no held-out recordings; record more, or give --test")
    return [(Path(row["audio"]), row["reference"]) for row in rows]


def spoken_codes(model: str, texts: Sequence[str], tokenizer: GLM4VoiceTokenizer, device: str) -> list[list[int]]:
    """Return the codes that a model speaks for each text."""
    from vita_audio.inference.pipeline import SpeechLM
    from vita_audio.inference.tasks import TTS, make_conversation

    speech_lm = SpeechLM.from_pretrained(model, tokenizer, device)
    conversations = [make_conversation(TTS, text=text) for text in texts]
    return [speech_lm.respond(one, decode_audio=False, do_sample=False).codes for one in conversations]


def texts_to_speak(model: Path, transcripts: Sequence[str]) -> list[str]:
    """Return texts for a model: held-out ones of its domain for the demo model, the held-out transcripts for others."""
    texts = ENGLISH.heldout_sentences("quick") if (model / "demo.json").is_file() else transcripts
    return list(texts[:NUM_ANSWERS])


def measure(args: argparse.Namespace) -> dict[str, Part]:
    """Decode everything before and after, and let the judges listen."""
    import torch

    from tools.codec.voice_data import REFERENCE_SECONDS, read_voice
    from tools.codec.voice_judging import VoiceJudge, speak
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.data.audio import load_audio
    from vita_audio.inference.pipeline import resolve_device
    from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
    from vita_audio.speech_decoder.mel import SAMPLE_RATE

    device = resolve_device(args.device)
    tokenizer = get_audio_tokenizer("glm4voice", args.tokenizer, args.decoder, device=device)
    after = SpeechDecoder.from_pretrained(args.folder / "voice" / "decoder", device)
    judge = VoiceJudge.load(args.judge, args.language)
    waves = [utterance.float_wave(SAMPLE_RATE) for utterance in read_voice(args.folder / "data", args.speaker)]
    reference = torch.cat([torch.from_numpy(wave) for wave in waves])[: REFERENCE_SECONDS * SAMPLE_RATE]
    speaker = judge.speaker((reference, SAMPLE_RATE))
    voice = tokenizer.make_voice(reference[: PROMPT_SECONDS * SAMPLE_RATE], SAMPLE_RATE)
    files, transcripts = zip(*held_out(args.folder, args.test), strict=True)
    recordings = [(load_audio(file, SAMPLE_RATE), SAMPLE_RATE) for file in files]
    texts = texts_to_speak(Path(args.model), transcripts)
    codes = {
        RECORDINGS: [tokenizer.encode(*recording) for recording in recordings],
        SPOKEN: spoken_codes(args.model, texts, tokenizer, device),
    }
    parts = {}
    for name, said in ((RECORDINGS, transcripts), (SPOKEN, texts)):
        sounds = {RECORDED: recordings} if name == RECORDINGS else {}
        sounds |= {BEFORE: speak(tokenizer.decoder, codes[name]), AFTER: speak(after, codes[name])}
        sounds[PROMPT] = speak(tokenizer.decoder, codes[name], voice)
        verdicts = {row: judge.judge(one, said, speaker) for row, one in sounds.items()}
        parts[name] = Part(said, sounds, verdicts)
    return parts


def as_json(parts: dict[str, Part], folder: Path, minutes: float) -> dict[str, Any]:
    """Return the content of report.json: verdicts by row of the table, differences, minutes, and voice.json.

    Args:
        minutes: Those of the report itself, whose step has not ended.
    """
    from evaluation.metrics.significance import compare

    verdicts = {f"{name}: {row}": verdict for name, part in parts.items() for row, verdict in part.verdicts.items()}
    done = {path.stem: read_json(path)["minutes"] for path in sorted((folder / "done").glob("*.json"))}
    return {
        "rows": {name: verdict.summary() for name, verdict in verdicts.items()},
        "wer_after_less_before": {
            name: vars(compare(part.verdicts[AFTER].wer, part.verdicts[BEFORE].wer)) for name, part in parts.items()
        },
        "minutes": done | {"report": minutes},
        **read_json(folder / "voice" / RESULT),
    }


def write_players(parts: dict[str, Part], folder: Path) -> list[tuple[str, str, dict[str, tuple[Path, str]]]]:
    """Write sounds; return kind, text, and by row of the table the file and its transcript."""
    import soundfile

    folder.mkdir(exist_ok=True)
    players = []
    for name, part in parts.items():
        for index, text in enumerate(part.texts[:NUM_PLAYERS]):
            sounds = {}
            for row, waves in part.sounds.items():
                path = folder / f"{name} {row} {index}.wav".replace(",", "").replace(" ", "_")
                soundfile.write(path, waves[index][0].numpy(), waves[index][1])
                sounds[row] = (path, part.verdicts[row].transcripts[index])
            players.append((name, text, sounds))
    return players


def write_report(args: argparse.Namespace) -> None:
    """Measure, and write report.json, and report.html with its sounds."""
    from evaluation.reporting.page import Clips, diff, render
    from vita_audio.files.atomic import write_json, write_text

    started, folder = time.monotonic(), args.output or args.folder
    parts = measure(args)
    result = as_json(parts, args.folder, (time.monotonic() - started) / 60)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(
        TEMPLATE,
        result=result,
        players=write_players(parts, folder / "sounds"),
        columns=[RECORDED, BEFORE, AFTER, PROMPT],
        settings={name: value for name, value in vars(args).items() if value is not None},
        player=Clips(folder).player,
        diff=lambda text, said: diff(text, said, args.language),
    )
    write_json(folder / "report.json", result)
    write_text(folder / "report.html", page)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("tools.voice.report", __doc__)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="folder of scripts/your_voice.sh")
    add("--model", required=True, help="folder or hub name of the model that speaks")
    add("--tokenizer", help="folder of its speech tokenizer (default: the embedded one)")
    add("--decoder", help="folder of the decoder before fine-tuning (default: the embedded one)")
    add("--judge", default="whisper_tiny_en", help="recogniser, as in evaluation.run")
    add("--language", default="en", help="language of the recordings")
    add("--speaker", help="speaker that was learnt, if the recordings have several")
    add("--test", type=Path, metavar="DIR", help="corpus folder to report on in place of the held-out recordings")
    add("--output", type=Path, help="folder to write (default: --folder)")
    add_device_option(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("tools.voice.report"):
        write_report(args)
    print(f"wrote {(args.output or args.folder) / 'report.html'}")


if __name__ == "__main__":
    main()
