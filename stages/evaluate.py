"""Measures a model: loss and perplexity on held-out rows, and benchmarks from local files.

`python -m stages evaluate --input model=DIGEST --input tokens=DIGEST --eval_dataset general_qa:questions.jsonl`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.arguments import EvaluateArguments
from stages.context import Context
from stages.errors import ArgumentsError, DataError
from stages.evaluation.benchmarks import Benchmark, parse_benchmark
from stages.sources.model_folder import MODEL_FILES
from stages.stage import Input, Inputs, Metrics, Prepared, Stage

if TYPE_CHECKING:
    from stages.evaluation.harness import Score, Task
    from stages.evaluation.loss import HeldOut
    from stages.serving.engine import Engine
    from stages.training.multimodal import MediaRows
    from stages.training.rows import TokenRows

__all__ = ["STAGE", "evaluate"]

ENVIRONMENT = "evaluate"


def prepare(arguments: EvaluateArguments) -> Prepared[EvaluateArguments]:
    """Hands the files of benchmarks in as the input `eval_data`: their content is in the key, their path is not.

    Raises:
        ArgumentsError: an unknown benchmark.
        DataError: a path that does not exist.
        MissingPackage: benchmarks need the environment `evaluate`, and it is not there.
    """
    from stages.data.plugins import hand_in_plugins
    from stages.data.templates.meta import find_template

    plugins, files = hand_in_plugins(arguments.custom_register_path)
    if arguments.template is not None and not plugins:
        find_template(arguments.template)
    arguments = arguments.model_copy(update={"custom_register_path": plugins})
    handed_in: dict[str, Path | tuple[Path, ...]] = {"plugins": tuple(files)} if files else {}
    benchmarks = [parse_benchmark(text) for text in arguments.eval_dataset]
    if not benchmarks:
        return Prepared(arguments, handed_in)
    from stages.environments import interpreter

    interpreter(ENVIRONMENT)
    if all(benchmark.index is not None for benchmark in benchmarks):
        return Prepared(arguments, handed_in)  # a rerun, whose input is given
    paths = tuple(Path(benchmark.place).expanduser() for benchmark in benchmarks)
    for benchmark, path in zip(benchmarks, paths, strict=True):
        if not path.exists():
            raise DataError(f"--eval_dataset {benchmark.name}:{benchmark.place}: no such file or folder")
    pinned = [benchmark.taken_in(index) for index, benchmark in enumerate(benchmarks)]
    return Prepared(arguments.model_copy(update={"eval_dataset": pinned}), handed_in | {"eval_data": paths})


def evaluate(arguments: EvaluateArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes `report.json` and `report.md`.

    Args:
        arguments: what to measure, and how to generate.
        inputs: `model`; `tokens`, whose validation rows give the held-out loss; `eval_data`, rows of benchmarks.
        out: the report.
        context: evalscope's folder with every answer is among the attachments.

    Raises:
        ArgumentsError: there is nothing to measure with.
        DataError: no held-out row, rows of another model's tokenizer, a malformed row of a benchmark.
        ModelError: a file of the model is missing or damaged, or benchmarks need a chat template that it lacks.
    """
    from stages.serving.engine import Engine
    from stages.serving.loading import load_model, load_tokenizer, uncompiled
    from stages.training.quiet import quiet

    tasks = _tasks(arguments, inputs, context)
    held_out_rows = _held_out_path(inputs, tasks, context)
    with quiet(), uncompiled():
        tokenizer = load_tokenizer(inputs["model"]) if tasks else None
        if tokenizer is not None:
            _settle_template(tokenizer, inputs, arguments)
        context.reporter.progress(0, 1, "loading the model")
        model = load_model(
            inputs["model"],
            torch_dtype=arguments.torch_dtype,
            device_map=arguments.device_map,
            attn_impl=arguments.attn_impl,
        )
        held_out = _held_out(model, held_out_rows, arguments, inputs, context)
        scores: list[Score] = []
        if tokenizer is not None:
            engine = Engine(model, tokenizer, arguments.system, use_chat_template=arguments.use_chat_template)
            scores = _scores(engine, tasks, arguments, context)
    return _write(out, inputs["model"], held_out, tasks, scores, context)


def _tasks(arguments: EvaluateArguments, inputs: Inputs, context: Context) -> list[Task]:
    """The benchmarks with their rows checked, before any model is loaded."""
    from stages.evaluation.benchmarks import prepare_rows
    from stages.evaluation.harness import Task

    benchmarks = [parse_benchmark(text) for text in arguments.eval_dataset]
    names = [benchmark.name for benchmark in benchmarks]
    tasks = []
    for place, benchmark in enumerate(benchmarks):
        title = f"{benchmark.name}_{place}" if names.count(benchmark.name) > 1 else benchmark.name
        data = context.scratch / "benchmarks" / title
        data.mkdir(parents=True, exist_ok=True)
        subsets = prepare_rows(benchmark, _data_of(benchmark, inputs), data, arguments.eval_limit)
        tasks.append(Task(benchmark, title, data, subsets))
    return tasks


def _data_of(benchmark: Benchmark, inputs: Inputs) -> Path:
    if "eval_data" not in inputs or benchmark.index is None:
        raise ArgumentsError(f"--eval_dataset {benchmark.name} has no rows: give their path, {benchmark.name}:PATH")
    folder = inputs["eval_data"] / benchmark.index
    if not folder.is_dir():
        raise ArgumentsError(f"input eval_data has no folder {benchmark.index}/ for {benchmark.name}")
    return folder


def _held_out_path(inputs: Inputs, tasks: list[Task], context: Context) -> Path | None:
    if "tokens" not in inputs:
        if not tasks:
            raise ArgumentsError("nothing to measure with: give the input tokens, or `--eval_dataset`")
        return None
    path = inputs["tokens"] / "validation.arrow"
    if path.exists():
        return path
    if (inputs["tokens"] / "validation.parquet").exists():
        return _encoded(inputs, context)
    if not tasks:
        raise DataError("no row is held out: raise `--split_dataset_ratio`, or give `--val_dataset`")
    context.logger.warning("no row is held out: only the benchmarks are run")
    return None


def _encoded(inputs: Inputs, context: Context) -> Path:
    """Rows that were left to be encoded when they are needed: they are needed now, but for those with media."""
    from stages.data.encode import EncoderSettings, open_encoder
    from stages.data.encode_file import encode_file
    from stages.data.media_encode import needs_processor
    from stages.data.plugins import load_plugins

    source = inputs["tokens"] / "validation.parquet"
    if needs_processor(inputs["model"], inputs["tokens"]):
        return source
    if (plugins := inputs["tokens"] / "plugins").is_dir():
        load_plugins(plugins)
    settings = EncoderSettings.from_json((inputs["tokens"] / "encoder.json").read_text(encoding="utf-8"))
    target = context.scratch / "validation.arrow"
    encode_file(source, target, open_encoder(inputs["model"], settings), context)
    if not target.exists():
        raise DataError("no held-out row is left: all are too long or have nothing to train")
    return target


def _settle_template(tokenizer: Any, inputs: Inputs, arguments: EvaluateArguments) -> None:
    """The template named takes the place of the model's own."""
    from stages.data.encode import template_settings
    from stages.data.plugins import load_plugins
    from stages.data.templates import open_template
    from stages.data.tokenizer import load_tokenizer
    from stages.errors import ModelError

    if "plugins" in inputs:
        load_plugins(inputs["plugins"])
    if not arguments.use_chat_template:
        return
    if arguments.template is not None:
        template = open_template(template_settings(arguments), load_tokenizer(inputs["model"]))
        tokenizer.chat_template = template.chat_template() or tokenizer.chat_template
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "`--eval_dataset` asks questions through the chat template, and the model has none: use its "
            "instruction-tuned version, or put a chat_template.jinja beside its tokenizer.json"
        )


def _with_media(path: Path, vocabulary: int, inputs: Inputs, context: Context) -> MediaRows:
    """Rows whose pixels are made when they are measured."""
    from stages.data.encode import EncoderSettings
    from stages.data.media_encode import open_media_encoder
    from stages.data.plugins import load_plugins
    from stages.training.lazy import open_standard_rows
    from stages.training.multimodal import MediaRows
    from stages.training.usable import Usable

    if (plugins := inputs["tokens"] / "plugins").is_dir():
        load_plugins(plugins)
    settings = EncoderSettings.from_json((inputs["tokens"] / "encoder.json").read_text(encoding="utf-8"))
    usable = Usable(
        open_media_encoder(inputs["model"], settings, inputs["tokens"]), vocabulary, path.name, context.logger
    )
    return MediaRows(open_standard_rows(path, context.scratch / "held-out.arrow"), usable)


def _held_out(
    model: Any, path: Path | None, arguments: EvaluateArguments, inputs: Inputs, context: Context
) -> HeldOut | None:
    from stages.evaluation.loss import held_out_loss
    from stages.training.rows import read_rows

    if path is None:
        return None
    vocabulary = model.config.get_text_config().vocab_size
    rows: TokenRows | MediaRows = (
        read_rows(path, vocabulary) if path.suffix == ".arrow" else _with_media(path, vocabulary, inputs, context)
    )
    found = held_out_loss(model, rows, batch_size=arguments.per_device_eval_batch_size, context=context)
    context.logger.info(
        "held-out loss %.4f, perplexity %.3f (%d tokens, %d rows)",
        found.loss, found.perplexity, found.num_tokens, found.num_samples,
    )  # fmt: skip
    return found


def _scores(engine: Engine, tasks: list[Task], arguments: EvaluateArguments, context: Context) -> list[Score]:
    from stages.environments import interpreter
    from stages.evaluation.harness import run_benchmarks
    from stages.serving.engine import Sampling

    engine.check_chat_template()
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        num_beams=arguments.num_beams,
    )
    scores = run_benchmarks(engine, tasks, interpreter(ENVIRONMENT), sampling, context)
    for score in scores:
        if score.is_main:
            context.logger.info("%s: %s %.4f (%d questions)", score.task, score.metric, score.value, score.num_samples)
    return scores


def _write(
    out: Path, model: Path, held_out: HeldOut | None, tasks: list[Task], scores: list[Score], context: Context
) -> Metrics:
    from stages.evaluation.report import write_report
    from stages.serving.loading import quantization_of
    from stages.sources.model_folder import check_model_folder

    facts = check_model_folder(model)
    described = {
        "architecture": facts.architecture,
        "quantization": quantization_of(model) or "none",
        "weights_bytes": facts.weights_bytes,
    }
    text = write_report(out, described, held_out, tasks, scores)
    context.reporter.markdown("report", text)
    metrics: Metrics = {}
    if held_out is not None:
        metrics |= {
            "eval_loss": held_out.loss,
            "perplexity": held_out.perplexity,
            "num_tokens": held_out.num_tokens,
            "num_samples": held_out.num_samples,
        }
    return metrics | {f"{score.task}_{score.metric}": score.value for score in scores}


STAGE = Stage(
    name="evaluate",
    version=1,
    arguments=EvaluateArguments,
    inputs={
        "model": Input(kinds=("model",), reads=MODEL_FILES, help="a float model, or one quantized by bnb or gptq"),
        "tokens": Input(
            kinds=("tokens",),
            reads=("validation.*", "encoder.json", "plugins/**", "media/**", "tokens.json"),
            required=False,
            help="tokenized rows; the validation rows are measured",
        ),
        "eval_data": Input(kinds=("files",), required=False, help="rows of benchmarks, as `--eval_dataset` names them"),
        "plugins": Input(kinds=("files",), required=False, help="Python files that register templates"),
    },
    output="report",
    function=evaluate,
    need="gpu",
    libraries=("bitsandbytes", "evaluate/evalscope", "gptqmodel", "torch", "transformers"),
    prepare=prepare,
)
