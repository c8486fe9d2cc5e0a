"""The plan of the quick start: variants of the model, sizes, and the steps that follow from them."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tools.demo.steps import ROOT, Step, flags_of
from vita_audio.interleave import MODES

STAGE_SCRIPTS = ROOT / "scripts" / "deepspeed" / "sts_qwen25"
ASSETS = Path("vita_audio/assets")
TEXT_MODEL = ASSETS / "tiny_text_lm"
EMBEDDED = "embedded"  # as a path: the speech tokenizer or decoder in ASSETS
NUM_CORES = len(os.sched_getaffinity(0))  # available to this process
MOST_EVALUATORS = 4  # processes, each with a model and a judge
LOG_ENTRIES = 75  # per stage, for its curves
ENCODER_FLAGS = "--batch-seconds 20 --lr 2e-3 --warmup 200 --no-bf16"


@dataclass(frozen=True)
class Stage:
    """One training stage: a script in `STAGE_SCRIPTS`, and the flags in which the tiny model differs from the 7B one.

    Attributes:
        num_modules: MTP modules.
        data: Mixture of the demo corpus.
    """

    name: str
    script: str
    num_modules: int
    data: str
    flags: str


def four_stages(audio_tokenizer_type: str, first_flags: str) -> tuple[Stage, ...]:
    """Return the stages whose scripts are named after an audio tokenizer type.

    Args:
        first_flags: Flags of the first stage, which learns to hear and to speak.
    """
    scripts = f"finetune_{audio_tokenizer_type}"
    return (
        Stage("stage1", f"{scripts}_stage1.sh", 0, "stage1.yaml", first_flags),
        Stage("stage2", f"{scripts}_mtp1_stage1.sh", 1, "mtp.yaml", "--learning_rate 2e-3 --audio_code_noise 0.1"),
        Stage("stage3", f"{scripts}_mtp10_stage1.sh", 10, "mtp.yaml", "--learning_rate 2e-3 --audio_code_noise 0.1"),
        Stage("stage4", f"{scripts}_mtp10_stage2.sh", 10, "stage4.yaml", "--learning_rate 2e-4 --audio_code_noise 0.1"),
    )


WITHOUT_EFFECT = ("minutes", "note", "attention")  # fields of a form that do not affect results


@dataclass(frozen=True)
class Form:
    """Size of a run.

    Attributes:
        corpus_size: `--size` of tools/demo/make_corpus.py.
        steps: Training steps of the four stages.
        batch_size: Packs of `seq_length` tokens per step.
        num_heldout: Items to evaluate for each task and mode, and clips for the codec's round trip.
        minutes: Usual minutes of each step on two cores, for the outlook only.
        attention: Attention implementation in training.
        note: First paragraph of the report.
        encoder_steps: Training steps of the speech encoder; None for a model without one, which hears codes.
    """

    folder: str
    corpus_size: str
    steps: tuple[int, int, int, int]
    batch_size: int
    seq_length: int
    num_heldout: Mapping[str, int]
    minutes: Mapping[str, float]
    attention: str = "auto"
    note: str = ""
    encoder_steps: int | None = None


FORMS = {
    "quick": Form(
        folder="outputs/quickstart",
        corpus_size="quick",
        steps=(4500, 2400, 520, 360),
        batch_size=12,
        seq_length=128,
        attention="eager",  # the fastest for packs this short on a CPU
        num_heldout={"asr": 60, "tts": 30, "qa": 60, "roundtrip": 40},
        minutes=dict(corpus=3, codes=0.5, stage1=7, stage2=2.5, stage3=3, stage4=3, evaluation=2.5, codec=0.5),
    ),
    "long": Form(
        folder="outputs/quickstart_long",
        corpus_size="long",
        steps=(10000, 3000, 2000, 1500),
        batch_size=4,
        seq_length=512,
        num_heldout={"asr": 180, "tts": 120, "qa": 126, "roundtrip": 120},
        minutes=dict(corpus=17, codes=2, stage1=28, stage2=5, stage3=18, stage4=17, evaluation=11, codec=1),
    ),
    "ci": Form(
        folder="outputs/quickstart_ci",
        corpus_size="ci",
        steps=(4, 2, 2, 2),
        batch_size=1,
        seq_length=512,
        num_heldout={"asr": 2, "tts": 2, "qa": 2, "roundtrip": 2},
        minutes=dict(corpus=0.3, codes=0.3, stage1=1.2, stage2=0.2, stage3=0.3, stage4=0.3, evaluation=0.3, codec=0.2),
        note="Only a few training steps: this shows that every step runs and says nothing about quality.",
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
    """A kind of model: how it hears, its stages and the sizes of its runs.

    Attributes:
        model_config: Name of the model config without the number of modules.
    """

    audio_tokenizer_type: str
    model_config: str
    stages: tuple[Stage, ...]
    forms: Mapping[str, Form]


CODES, FEATURES = "glm4voice", "sensevoice_glm4voice"  # audio tokenizer types: what the model hears
VARIANTS = {
    # A model this small learns to understand codes much faster if it also predicts the user's speech.
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
    def codes(self) -> Path:
        return self.folder / "codes"

    @property
    def model(self) -> Path:
        return self.folder / self.variant.stages[-1].name

    @property
    def speech_encoder(self) -> Path:
        """Folder in the layout of SenseVoiceSmall, for a variant that hears through a speech encoder."""
        return self.folder / "speech_encoder" / "encoder"

    def audio_flags(self, *, decoder: bool = True) -> list[str]:
        """Return the flags that select another speech tokenizer and decoder."""
        flags = ["--audio-tokenizer-path", self.tokenizer_path] if self.tokenizer_path else []
        return flags + (["--audio-decoder-path", self.decoder_path] if decoder and self.decoder_path else [])


def plan_steps(run: Run) -> list[Step]:
    """List the steps in order."""
    encoder = [_encoder_step(run)] if run.form.encoder_steps else []
    training = _training_steps(run)
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
    return Step("codes", "encode its speech to audio codes", run.codes, command)


def _encoder_step(run: Run) -> Step:
    """Train the speech encoder only on the speech that the model will learn to recognise."""
    flags = {
        "data": run.corpus / "asr.jsonl",
        "config": _config(run.variant, num_modules=0),
        "tokenizer": TEXT_MODEL,
        "output": run.speech_encoder.parent,
        "steps": run.form.encoder_steps,
        "held-out": run.form.num_heldout["asr"],
    }
    command = ["python", "-m", "tools.codec.train_encoder", *shlex.split(ENCODER_FLAGS), *flags_of(flags)]
    return Step("encoder", "train a small speech encoder", run.speech_encoder / "am.mvn", command)


def _config(variant: Variant, num_modules: int) -> str:
    return f"configs/models/{variant.model_config}{num_modules}.json"


def _training_steps(run: Run) -> list[Step]:
    steps, start = [], TEXT_MODEL
    for number, stage in enumerate(run.variant.stages):
        is_first, output = number == 0, run.folder / stage.name
        needs_encoder = is_first and run.form.encoder_steps
        step = stage_step(
            run,
            stage,
            num_steps=run.form.steps[number],
            start=start,
            output=output,
            config=_config(run.variant, stage.num_modules),
            flags={"save_steps": 0.1},
            environment={"AUDIO_MODEL_NAME_OR_PATH": str(run.speech_encoder)} if needs_encoder else {},
        )
        note = ", after building DeepSpeed's extension" if is_first else ""
        steps.append(replace(step, title=f"train {stage.name}{note}"))
        start = output
    return steps


def stage_step(
    run: Run,
    stage: Stage,
    *,
    num_steps: int,
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
        "DATA": str(run.corpus / stage.data),
        "OUTPUT_ROOT": str(run.folder),
        "AUDIO_CODE_DIR": str(run.codes),
        "AUDIO_TOKENIZER_PATH": run.tokenizer_path or EMBEDDED,
    }
    name, product = output.name, output / "train_results.json"
    return Step(
        name, f"train {name}", product, [*command, *flags_of({**common, **flags})], {**variables, **environment}
    )


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
