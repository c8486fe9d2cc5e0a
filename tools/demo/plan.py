"""The plan of the quick start: variants of the model, sizes of a run, and the steps of a run."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from tools.demo.steps import ROOT, Step, flags_of

STAGE_SCRIPTS = ROOT / "scripts" / "deepspeed" / "sts_qwen25"
ASSETS = Path("vita_audio/assets")
TEXT_MODEL = ASSETS / "tiny_text_lm"
EMBEDDED = "embedded"  # as a path: the speech tokenizer or decoder in ASSETS
NUM_CORES = len(os.sched_getaffinity(0))  # available to this process
MOST_EVALUATORS = 4  # processes, each with a model and a judge
LOG_ENTRIES = 75  # per stage, for its curves
WITHOUT_EFFECT = ("minutes", "note", "attention", "more_steps")  # fields of a form that do not affect results
_STEPS = yaml.safe_load(Path(__file__).with_name("steps.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Stage:
    """One training stage: a script in `STAGE_SCRIPTS`, a mixture of the demo corpus, and flags for the tiny model."""

    name: str
    script: str
    num_modules: int
    data: str
    flags: str


@dataclass(frozen=True)
class Form:
    """Size of a run.

    Attributes:
        corpus_size: `--size` of tools/demo/make_corpus.py.
        steps: Training steps of the four stages.
        batch_size: Packs of `seq_length` tokens per step.
        num_heldout: Items to evaluate for each task and mode, and clips for the codec's round trip.
        minutes: Usual minutes of each step on two cores, for messages only.
        attention: Attention implementation in training.
        note: First paragraph of the report.
        text_steps: Training steps of the text model in a second language.
        text_vocabulary: Size of its vocabulary.
        encoder_steps: Training steps of the speech encoder; None for a model whose input is audio codes.
        max_modules: Most MTP modules of the model, where its stages have more.
        more_steps: Names of further steps at the end.
    """

    folder: str
    corpus_size: str
    steps: Sequence[int]
    batch_size: int
    seq_length: int
    num_heldout: Mapping[str, int]
    minutes: Mapping[str, float]
    attention: str = "auto"
    note: str = ""
    text_steps: int | None = None
    text_vocabulary: int | None = None
    encoder_steps: int | None = None
    max_modules: int | None = None
    more_steps: Sequence[str] = ()


@dataclass(frozen=True)
class Variant:
    """A kind of model, its stages and the sizes of its runs; the number of modules completes `model_config`.

    Attributes:
        language: A second language that the model learns besides English.
    """

    audio_tokenizer_type: str
    model_config: str
    stages: tuple[Stage, ...]
    forms: Mapping[str, Form]
    language: str | None = None


def read_variants() -> dict[str, Variant]:
    """Return the variants in variants.yaml."""
    variants = yaml.safe_load(Path(__file__).with_name("variants.yaml").read_text(encoding="utf-8"))
    for values in variants.values():
        values["stages"] = tuple(Stage(name, **stage) for name, stage in values["stages"].items())
        values["forms"] = {size: Form(**form) for size, form in values["forms"].items()}
    return {name: Variant(**values) for name, values in variants.items()}


VARIANTS = read_variants()


@dataclass(frozen=True)
class Run:
    """A run of the quick start and its folder; paths of None mean the embedded speech tokenizer and decoder."""

    variant: Variant
    form: Form
    folder: Path
    tokenizer_path: str | None = None
    decoder_path: str | None = None

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def data(self) -> Path:
        """The corpus whose mixtures are trained on: that of the second language, if any, which include English."""
        return self.corpus / self.variant.language if self.variant.language else self.corpus

    @property
    def text_model(self) -> Path:
        return self.folder / "text_model" if self.variant.language else TEXT_MODEL

    @property
    def codes(self) -> Path:
        return self.folder / "codes"

    @property
    def model(self) -> Path:
        return self.folder / self.variant.stages[-1].name

    @property
    def speech_encoder(self) -> Path:
        """Folder in the layout of SenseVoiceSmall, for a variant with a speech encoder."""
        return self.folder / "speech_encoder" / "encoder"

    def audio_flags(self, *, decoder: bool = True) -> list[str]:
        """Return the flags that select another speech tokenizer and decoder."""
        paths = {"audio-tokenizer-path": self.tokenizer_path}
        paths |= {"audio-decoder-path": self.decoder_path} if decoder else {}
        return flags_of({name: path for name, path in paths.items() if path})


def plan_steps(run: Run) -> list[Step]:
    """List the steps in order."""
    language = ["corpus_language", "check_language", "text_tokenizer", "text_model"] if run.variant.language else []
    first = ["corpus", *language, "codes", *(["encoder"] if run.form.encoder_steps else [])]
    last = ["evaluation", "codec", "report", *run.form.more_steps]
    if run.variant.language:
        last = ["evaluation_language", "codec_language"]
    before, after = ([listed_step(name, run) for name in names] for names in (first, last))
    return [*before, *_training_steps(run), *after]


def listed_step(name: str, run: Run, **values: object) -> Step:
    """Return a step of steps.yaml, filled in with values of the run and with `values`."""
    num_evaluators = min(NUM_CORES, MOST_EVALUATORS)
    known = {
        "run": run,
        "text_model": run.text_model,
        "english_text_model": TEXT_MODEL,
        "tokenizer_flags": run.audio_flags(decoder=False),
        "audio_flags": ["--audio-tokenizer-type", run.variant.audio_tokenizer_type, *run.audio_flags()],
        "stages": [run.folder / stage.name for stage in run.variant.stages],
        "note_flags": ["--note", run.form.note] if run.form.note else [],
        "num_cores": NUM_CORES,
        "num_evaluators": num_evaluators,
        "num_threads": os.environ.get("OMP_NUM_THREADS", NUM_CORES // num_evaluators),
        **values,
    }
    listed = _STEPS[name]
    command: list[str] = []
    for word in shlex.split(listed["command"]):
        value = known.get(word.strip("{}"))
        command += map(str, value) if isinstance(value, list) else [word.format(**known)]
    environment = {key: value.format(**known) for key, value in listed.get("environment", {}).items()}
    title, product = (listed[key].format(**known) for key in ("title", "product"))
    return Step(name, title, Path(product), command, environment)


def _config(variant: Variant, num_modules: int) -> str:
    return f"configs/models/{variant.model_config}{num_modules}.json"


def _training_steps(run: Run) -> list[Step]:
    steps, start = [], run.text_model
    for stage in run.variant.stages:
        needs_encoder = not steps and run.form.encoder_steps
        num_modules = min(stage.num_modules, run.form.max_modules or stage.num_modules)
        step = stage_step(
            run,
            stage,
            start=start,
            output=run.folder / stage.name,
            config=_config(run.variant, num_modules),
            flags={"save_steps": 0.1},
            environment={"AUDIO_MODEL_NAME_OR_PATH": str(run.speech_encoder)} if needs_encoder else {},
        )
        note = "" if steps else ", after building DeepSpeed's extension"
        steps.append(replace(step, title=f"train {stage.name}{note}"))
        start = run.folder / stage.name
    return steps


def stage_step(
    run: Run,
    stage: Stage,
    *,
    start: Path,
    output: Path,
    config: str | Path,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
) -> Step:
    """Return the step that trains one stage on the corpus and codes of `run`; it is named after the output folder.

    Args:
        start: Checkpoint to start from.
        config: Model config.
        flags: More flags of the training program, without dashes; they override the stage's own.
        environment: More variables; they override those set here.
    """
    script = (STAGE_SCRIPTS / stage.script).relative_to(ROOT)
    num_steps = run.form.steps[run.variant.stages.index(stage)]
    common = {
        "output_dir": output,
        "max_steps": num_steps,
        "per_device_train_batch_size": run.form.batch_size,
        "gradient_accumulation_steps": 1,
        "attn_implementation": run.form.attention,
        "logging_steps": max(num_steps // LOG_ENTRIES, 1),
    }
    command = ["bash", str(script), str(run.form.seq_length), "run", *shlex.split(stage.flags)]
    variables = {
        "MODEL_NAME_OR_PATH": str(start),
        "CONFIG_NAME": str(config),
        "DATA": str(run.data / stage.data),
        "OUTPUT_ROOT": str(run.folder),
        "AUDIO_CODE_DIR": str(run.codes),
        "AUDIO_TOKENIZER_PATH": run.tokenizer_path or EMBEDDED,
    }
    command += flags_of({**common, **flags})
    return Step(
        output.name, f"train {output.name}", output / "train_results.json", command, {**variables, **environment}
    )
