"""What the quick start does, and how much of it: variants of the model, sizes, and the steps that follow from them."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vita_audio.interleave import MODES

ROOT = Path(__file__).resolve().parents[2]
STAGE_SCRIPTS = ROOT / "scripts" / "deepspeed" / "sts_qwen25"
ASSETS = Path("vita_audio/assets")
TEXT_MODEL = ASSETS / "tiny_text_lm"
EMBEDDED = "embedded"  # as a path: the speech tokenizer or decoder in ASSETS
NUM_CORES = len(os.sched_getaffinity(0))  # that this process may use
MOST_EVALUATORS = 4  # processes, a model and a judge in each
LOG_ENTRIES = 75  # of a stage, for its curves
ENCODER_FLAGS = "--batch-seconds 20 --lr 2e-3 --warmup 200 --no-bf16"


@dataclass(frozen=True)
class Stage:
    """One training stage: a script of `STAGE_SCRIPTS` and what the tiny model needs different from the 7B model."""

    name: str
    script: str
    num_modules: int
    data: str  # mixture of the demo corpus
    flags: str


def four_stages(audio_tokenizer_type: str, first_flags: str) -> tuple[Stage, ...]:
    """Return the stages whose scripts bear the name of an audio tokenizer type.

    Args:
        first_flags: Of the first stage, which learns to hear and to speak.
    """
    scripts = f"finetune_{audio_tokenizer_type}"
    return (
        Stage("stage1", f"{scripts}_stage1.sh", 0, "stage1.yaml", first_flags),
        Stage("stage2", f"{scripts}_mtp1_stage1.sh", 1, "mtp.yaml", "--learning_rate 2e-3 --audio_code_noise 0.1"),
        Stage("stage3", f"{scripts}_mtp10_stage1.sh", 10, "mtp.yaml", "--learning_rate 2e-3 --audio_code_noise 0.1"),
        Stage("stage4", f"{scripts}_mtp10_stage2.sh", 10, "stage4.yaml", "--learning_rate 2e-4 --audio_code_noise 0.1"),
    )


UNDECISIVE = ("minutes", "note", "attention")  # fields of a form that change no result


@dataclass(frozen=True)
class Form:
    """How much of everything; `minutes` per step are those of two cores, for the outlook only."""

    folder: str
    corpus_size: str  # of tools/demo/make_corpus.py
    steps: tuple[int, int, int, int]  # of the four stages
    batch_size: int  # packs of `seq_length` tokens
    seq_length: int
    num_heldout: Mapping[str, int]  # items of each task, in each of four modes; clips for the codec's round trip
    minutes: Mapping[str, float]
    attention: str = "auto"  # how it is computed in training
    note: str = ""  # for the report
    encoder_steps: int | None = None  # of a speech encoder; None: the model hears codes, without one


FORMS = {
    "quick": Form(
        folder="outputs/quickstart",
        corpus_size="quick",
        steps=(4500, 2400, 520, 360),
        batch_size=12,
        seq_length=128,
        attention="eager",  # on a CPU, and in packs this short, faster than what is fastest elsewhere
        num_heldout={"asr": 60, "tts": 30, "qa": 60, "roundtrip": 40},
        minutes={
            "corpus": 3,
            "codes": 0.5,
            "stage1": 7,
            "stage2": 2.5,
            "stage3": 3,
            "stage4": 3,
            "evaluation": 2.5,
            "codec": 0.5,
        },
    ),
    "long": Form(
        folder="outputs/quickstart_long",
        corpus_size="long",
        steps=(10000, 3000, 2000, 1500),
        batch_size=4,
        seq_length=512,
        num_heldout={"asr": 180, "tts": 120, "qa": 126, "roundtrip": 120},
        minutes={
            "corpus": 17,
            "codes": 2,
            "stage1": 28,
            "stage2": 5,
            "stage3": 18,
            "stage4": 17,
            "evaluation": 11,
            "codec": 1,
        },
    ),
    "ci": Form(
        folder="outputs/quickstart_ci",
        corpus_size="ci",
        steps=(4, 2, 2, 2),
        batch_size=1,
        seq_length=512,
        num_heldout={"asr": 2, "tts": 2, "qa": 2, "roundtrip": 2},
        minutes={
            "corpus": 0.3,
            "codes": 0.3,
            "stage1": 1.2,
            "stage2": 0.2,
            "stage3": 0.3,
            "stage4": 0.3,
            "evaluation": 0.3,
            "codec": 0.2,
        },
        note="A few training steps only: this shows that the path works and says nothing about quality.",
    ),
}


PLUS_FORMS = {
    "quick": replace(
        FORMS["quick"],
        folder="outputs/quickstart_plus",
        steps=(3800, 1500, 400, 260),
        batch_size=3,
        seq_length=512,
        attention="auto",
        encoder_steps=1500,
        minutes=FORMS["quick"].minutes | {"encoder": 4, "stage1": 13, "stage2": 4, "stage3": 3.5, "stage4": 3},
    ),
    "long": replace(
        FORMS["long"],
        folder="outputs/quickstart_plus_long",
        encoder_steps=12000,
        minutes=FORMS["long"].minutes | {"encoder": 24, "stage1": 76, "stage2": 7, "stage3": 18, "stage4": 16},
    ),
    "ci": replace(
        FORMS["ci"],
        folder="outputs/quickstart_plus_ci",
        encoder_steps=4,
        minutes=FORMS["ci"].minutes | {"encoder": 0.2},
    ),
}


@dataclass(frozen=True)
class Variant:
    """A kind of model: how it hears, its stages and how much of everything."""

    audio_tokenizer_type: str
    model_config: str  # name of its config without the number of modules
    stages: tuple[Stage, ...]
    forms: Mapping[str, Form]


CODES, FEATURES = "glm4voice", "sensevoice_glm4voice"  # audio tokenizer types: what the model hears
VARIANTS = {
    # So small a model learns to understand codes much faster when it has to predict the user's speech too.
    "glm4voice": Variant(
        audio_tokenizer_type=CODES,
        model_config="tiny_mtp",
        stages=four_stages(CODES, "--learning_rate 1.2e-3 --user_audio_loss_weight 0.3 --audio_code_noise 0.2"),
        forms=FORMS,
    ),
    "plus": Variant(
        audio_tokenizer_type=FEATURES,
        model_config="tiny_sensevoice_mtp",
        stages=four_stages(FEATURES, "--learning_rate 1.2e-3 --audio_code_noise 0.1"),
        forms=PLUS_FORMS,
    ),
}


@dataclass(frozen=True)
class Step:
    """One command; it leaves `product` behind, and `environment` is added to the environment."""

    name: str
    title: str
    product: Path
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What is to be done where; paths of None mean the embedded speech tokenizer and decoder."""

    variant: Variant
    form: Form
    folder: Path
    tokenizer_path: str | None = None
    decoder_path: str | None = None

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def codes(self) -> Path:
        return self.folder / "codes"

    @property
    def model(self) -> Path:
        return self.folder / self.variant.stages[-1].name

    @property
    def speech_encoder(self) -> Path:
        """Folder like SenseVoiceSmall, for a variant that hears through it."""
        return self.folder / "speech_encoder" / "encoder"

    def audio_flags(self, *, decoder: bool = True) -> list[str]:
        """Return the flags that choose another speech tokenizer and decoder."""
        flags = ["--audio-tokenizer-path", self.tokenizer_path] if self.tokenizer_path else []
        return flags + (["--audio-decoder-path", self.decoder_path] if decoder and self.decoder_path else [])


def plan_steps(run: Run) -> list[Step]:
    """List what is to be done, in order."""
    stages = run.variant.stages
    starts = [TEXT_MODEL, *(run.folder / stage.name for stage in stages)]
    training = [
        _stage_step(run, stage, num_steps, start)
        for stage, num_steps, start in zip(stages, run.form.steps, starts, strict=False)
    ]
    encoder = [_encoder_step(run)] if run.form.encoder_steps else []
    evaluation = [_evaluation_step(run), _codec_step(run), _report_step(run)]
    return [_corpus_step(run), _codes_step(run), *encoder, *training, *evaluation]


def _corpus_step(run: Run) -> Step:
    command = ["python", "-m", "tools.demo.make_corpus", "--out", str(run.corpus), "--size", run.form.corpus_size]
    return Step("corpus", "make the demo corpus", run.corpus / run.variant.stages[-1].data, command)


def _codes_step(run: Run) -> Step:
    mixtures = [str(run.corpus / data) for data in dict.fromkeys(stage.data for stage in run.variant.stages)]
    command = ["python", "tools/extract_audio_codes.py", "--data", *mixtures, "--codes", str(run.codes)]
    command += ["--audio-tokenizer-type", run.variant.audio_tokenizer_type]
    command += ["--processes", str(NUM_CORES), *run.audio_flags(decoder=False)]
    return Step("codes", "turn its speech into audio codes", run.codes, command)


def _encoder_step(run: Run) -> Step:
    """Train the speech encoder on the speech that the model will learn to recognise, and on no other."""
    flags = {
        "data": run.corpus / "asr.jsonl",
        "config": _config(run.variant, num_modules=0),
        "tokenizer": TEXT_MODEL,
        "output": run.speech_encoder.parent,
        "steps": run.form.encoder_steps,
        "held-out": run.form.num_heldout["asr"],
    }
    command = ["python", "-m", "tools.codec.train_encoder", *shlex.split(ENCODER_FLAGS)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return Step("encoder", "train a small speech encoder", run.speech_encoder / "am.mvn", command)


def _config(variant: Variant, num_modules: int) -> str:
    return f"configs/models/{variant.model_config}{num_modules}.json"


def _stage_step(run: Run, stage: Stage, num_steps: int, start: Path) -> Step:
    output = run.folder / stage.name
    script = (STAGE_SCRIPTS / stage.script).relative_to(ROOT)
    flags = {
        "output_dir": output,
        "max_steps": num_steps,
        "per_device_train_batch_size": run.form.batch_size,
        "gradient_accumulation_steps": 1,
        "attn_implementation": run.form.attention,
        "logging_steps": max(num_steps // LOG_ENTRIES, 1),
        "save_steps": 0.1,
    }
    command = ["bash", str(script), str(run.form.seq_length), "run", *shlex.split(stage.flags)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {
        "MODEL_NAME_OR_PATH": str(start),
        "CONFIG_NAME": _config(run.variant, stage.num_modules),
        "DATA": str(run.corpus / stage.data),
        "OUTPUT_ROOT": str(run.folder),
        "AUDIO_CODE_DIR": str(run.codes),
        "AUDIO_TOKENIZER_PATH": run.tokenizer_path or EMBEDDED,
    }
    is_first = stage is run.variant.stages[0]
    if is_first and run.form.encoder_steps:
        environment["AUDIO_MODEL_NAME_OR_PATH"] = str(run.speech_encoder)
    title = f"train {stage.name}" + (", after DeepSpeed has built its extension" if is_first else "")
    return Step(stage.name, title, output / "train_results.json", command, environment)


def _evaluation_step(run: Run) -> Step:
    output = run.folder / "evaluation"
    num_processes = min(NUM_CORES, MOST_EVALUATORS)
    limits = {f"demo-{task}": run.form.num_heldout[task] for task in ("asr", "tts", "qa")}
    command = ["torchrun", "--standalone", "--nproc_per_node", str(num_processes), "-m", "evaluation.run"]
    command += ["--suite", *limits, "--model", str(run.model), "--corpus", str(run.corpus), "--output", str(output)]
    command += ["--modes", *MODES, "--limit", *(f"{name}={count}" for name, count in limits.items())]
    command += ["--batch-size", "20", "--dtype", "float32", "--time-alone", "demo-qa=8"]
    command += ["--skip-recordings"]  # the codec's round trip tells the judge's own error
    command += ["--audio-tokenizer-type", run.variant.audio_tokenizer_type, *run.audio_flags()]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(NUM_CORES // num_processes))}
    return Step("evaluation", "evaluate on held-out speech", output / "results.json", command, threads)


def _codec_step(run: Run) -> Step:
    output, heldout = run.folder / "codec", run.corpus / "heldout_asr.jsonl"
    command = ["python", "-m", "evaluation.evaluate_codec", "--corpus", f"heldout={heldout}", "--output", str(output)]
    command += ["--max-clips", str(run.form.num_heldout["roundtrip"])]
    command += ["--codes", str(run.codes), "--codes-of", str(run.corpus / run.variant.stages[0].data)]
    command += ["--audio-tokenizer-type", run.variant.audio_tokenizer_type, *run.audio_flags()]
    return Step("codec", "evaluate the codec", output / "codec.json", command)


def _report_step(run: Run) -> Step:
    stages = [str(run.folder / stage.name) for stage in run.variant.stages]
    command = ["python", "-m", "tools.demo.report", "--evaluation", str(run.folder / "evaluation")]
    command += ["--codec", str(run.folder / "codec"), "--stages", *stages, "--output", str(run.folder)]
    command += ["--note", run.form.note] if run.form.note else []
    return Step("report", "write the report", run.folder / "report.json", command)
