"""Run everything at small scale: demo corpus, audio codes, four training stages, evaluation, report.

    bash scripts/quickstart.sh            # installs the requirements, then runs this program
    bash scripts/quickstart.sh --long     # hours, for better metrics
    bash scripts/quickstart.sh --demo     # the model in the package, which also hears bad microphones
    bash scripts/quickstart.sh --fresh    # start over
    bash scripts/quickstart.sh --variant plus   # a model with a speech encoder, which is trained too
    bash scripts/quickstart.sh --variant spanish   # a model that knows Spanish as well; spanish_lora: with adapters

Each step is a command, printed before it runs. Finished steps are marked, so the same command resumes an interrupted
run; a finished run exits immediately. The folder is outputs/quickstart, with the names of variant and size appended,
such as _plus_long; that of --demo is outputs/demo_model.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.demo.plan import ASSETS, EMBEDDED, TEXT_MODEL, VARIANTS, WITHOUT_EFFECT, Run, plan_steps
from tools.demo.steps import ROOT, Progress, open_folder, read_path, run_steps, seen_from_root
from vita_audio.command_line import OneLineParser
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json

# For demo.json, which tells the server what the model knows.
TEXTS = {"bare_words": True, "system_prompt": False, "max_turns": 1}


def fingerprints(run: Run) -> dict[str, str]:
    """Return a hash of each set of weights that the run starts from, or its name if there is no local folder."""
    parts = {"speech_tokenizer": run.tokenizer_path, "speech_decoder": run.decoder_path}
    parts = {name: ASSETS / name if path in (None, EMBEDDED) else path for name, path in parts.items()}
    parts["text_model"] = TEXT_MODEL
    return {name: _hash_folder(ROOT / path) if (ROOT / path).is_dir() else str(path) for name, path in parts.items()}


def _hash_folder(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def print_result(run: Run, caller: Path) -> None:
    """Print the sample answer and the paths of all results, for a user whose working directory is `caller`."""
    if run.variant.language:
        print(f"\nIn {ROOT}: report: {run.folder}/evaluation/results.html; model: {run.model}")
        return
    answer = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))["answer"]
    flags = ["--model", str(run.model), "--task", "sts", "--audio", answer["question_wav"], *run.audio_flags()]
    rows = {
        "question": answer["question_wav"],
        "answer": answer["wav"],
        "its text": answer["text"],
        "as heard": answer["transcript"] or "(nothing)",
        "report": f"{run.folder / 'report.md'} and report.json",
        "plots": ", ".join(str(path) for path in sorted(run.folder.glob("*.png"))),
        "model": str(run.model),
        "ask more": shlex.join([str(seen_from_root(sys.executable)), "tools/inference_sts.py", *flags]),
    }
    print("" if caller == ROOT else f"\nIn {ROOT}:")
    for name, value in rows.items():
        print(f"{name:>9}: {value}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("scripts/quickstart.sh", __doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--long", dest="form", action="store_const", const="long", help="hours, for better metrics")
    size.add_argument("--demo", dest="form", action="store_const", const="demo", help="the model in the package")
    size.add_argument("--ci", dest="form", action="store_const", const="ci", help="minutes, to test that all steps run")
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="glm4voice",
        help="input of the model: audio codes (glm4voice) or speech encoder features (plus); or a second language",
    )
    parser.add_argument("--fresh", action="store_true", help="delete the output folder and start over")
    parser.add_argument(
        "--output", type=Path, help="folder (default: outputs/quickstart, with the names of variant and size appended)"
    )
    parser.add_argument("--paths-from", type=Path, default=Path.cwd(), help="folder that paths are relative to")
    parser.set_defaults(form="quick")
    options = parser.parse_args(arguments)
    if options.form not in VARIANTS[options.variant].forms:
        parser.error(f"--{options.form} needs another variant than {options.variant}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with one_line_errors("quickstart"):
        os.chdir(options.paths_from)
    variant = VARIANTS[options.variant]
    form = variant.forms[options.form]
    audio_paths = [read_path(os.environ.get(name)) for name in ("AUDIO_TOKENIZER_PATH", "AUDIO_DECODER_PATH")]
    run = Run(variant, form, seen_from_root(options.output) if options.output else Path(form.folder), *audio_paths)
    caller = Path.cwd()
    os.chdir(ROOT)
    settings = {name: value for name, value in asdict(form).items() if name not in WITHOUT_EFFECT}
    settings |= {"stages": [asdict(stage) for stage in variant.stages], **fingerprints(run)}
    with one_line_errors("quickstart"):
        open_folder(run.folder, json.loads(json.dumps(settings)), options.fresh)
    steps, progress = plan_steps(run), Progress(run.folder / "done")
    was_done = all(map(progress.is_done, steps))
    if code := run_steps("quickstart", steps, progress, form.minutes):
        return code
    if not variant.language:
        write_json(run.model / "demo.json", TEXTS)
    print_result(run, caller)
    minutes = progress.minutes(steps)
    if was_done:
        print(f"\nThis run is already finished (it took {minutes:.1f} minutes); --fresh starts over.")
    else:
        print(f"\nDone; the steps took {minutes:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
