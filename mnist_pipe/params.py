"""`params.yaml` as frozen, validated types.

Every number that a person may turn is a documented field here and a value there. All faults are raised at once, one
line each, with the nearest known name where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from mnist_pipe.errors import InputError, closest, describe, one_line, without_credentials


def _one_of(kind: str) -> AfterValidator:
    """A name that must be a key of the project's dict of that kind; the caller of `load` supplies the dict's names."""

    def check(value: str, info: ValidationInfo) -> str:
        known = ((info.context or {}).get("names") or {}).get(kind)
        if known is not None and value not in known:
            raise PydanticCustomError("unknown_name", "", {"known": sorted(known)})
        return value

    return AfterValidator(check)


def _check_mirror(value: str) -> str:
    if "://" not in value:
        return value
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise PydanticCustomError("bad_mirror", "")
    return value


ModelName = Annotated[str, _one_of("models")]
OptimizerName = Annotated[str, _one_of("optimizers")]
ScheduleName = Annotated[str, _one_of("schedules")]
DatasetName = Annotated[str, _one_of("datasets")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Epochs = Annotated[int, Field(ge=1, le=1000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Degrees = Annotated[float, Field(ge=0, le=45, allow_inf_nan=False)]
Pixels = Annotated[float, Field(ge=0, le=6, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
Workers = Annotated[int, Field(ge=1, le=10_000)]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """One block of `params.yaml`: closed against unknown keys, no conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class IngestParams(Section):
    """Where the published files come from."""

    dataset: DatasetName
    """A key of SOURCES."""
    mirrors: list[Annotated[str, Field(min_length=1), AfterValidator(_check_mirror)]]
    """Tried in order: a directory (skipped where it does not exist) or an http(s) base URL."""
    fallback: DatasetName | None
    """The data set to use, loudly, when no mirror answers; null makes that an error."""
    folder: str | None
    """The folder of the four IDX files, for `dataset: local` alone."""
    timeout_seconds: Annotated[float, Field(gt=0, le=600)]
    """The longest silence of a server before the next mirror is tried."""


class NormalizeParams(Section):
    """The validation split."""

    validation_rows: Annotated[int, Field(ge=1, le=1_000_000)]
    """Rows held out of the training split, stratified by label; at most a fifth of it is taken."""
    seed: Seed


class BaselineParams(Section):
    """The linear softmax classifier, the number that every other model must beat."""

    num_epochs: Epochs
    batch_size: BatchSize
    learning_rate: LearningRate
    seed: Seed


class RecipeParams(Section):
    """An operating point: how long a run takes and how accurate its model is."""

    model: ModelName
    model_params: dict[str, Any]
    """Constructor arguments of `model`, in place of those under `models`."""
    optimizer: OptimizerName
    learning_rate: LearningRate
    """The peak of the schedule."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    batch_size: BatchSize
    train_rows: Annotated[int, Field(ge=100)] | None
    """Train on the first so many training rows; null takes them all."""
    num_epochs: Epochs
    schedule: ScheduleName
    label_smoothing: Smoothing
    average_decay: Annotated[float, Field(ge=0, lt=1)]
    """What a step leaves of the moving average of the weights; 0 keeps none and takes the last weights."""
    rotation_degrees: Degrees
    """The largest random rotation."""
    translation_pixels: Pixels
    """The largest random shift."""
    test_shifts: bool
    """Whether the model looks at each image five times, once shifted by a pixel in each direction."""


class SpaceParams(Section):
    """What the search chooses from. A list of names or sizes is a choice; `[low, high]` is a range."""

    model: Annotated[list[ModelName], Field(min_length=1)]
    optimizer: Annotated[list[OptimizerName], Field(min_length=1)]
    learning_rate: dict[OptimizerName, Annotated[list[LearningRate], Field(min_length=2, max_length=2)]]
    """Log-uniform [low, high] by optimizer; an optimizer that is not named here takes its own range from OPTIMIZERS."""
    weight_decay: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
    """Log-uniform [low, high]."""
    batch_size: Annotated[list[BatchSize], Field(min_length=1)]
    rotation_degrees: Annotated[list[Degrees], Field(min_length=2, max_length=2)]
    """Uniform [low, high]: the largest random rotation."""
    translation_pixels: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    """Uniform [low, high]: the largest random shift."""


class SearchParams(Section):
    """The Ray Tune search."""

    num_trials: Annotated[int, Field(ge=1, le=100_000)]
    num_epochs: Epochs
    """The most that a trial may train."""
    train_rows: Annotated[int, Field(ge=100)] | None
    """A trial trains on the first so many training rows; null takes them all."""
    algorithm: Literal["random", "tpe"]
    scheduler: Literal["asha", "fifo"]
    reduction_factor: Annotated[int, Field(ge=2, le=16)]
    """ASHA keeps one trial in so many at each rung."""
    max_concurrent_trials: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"]
    """auto: on a cluster as many as there is room for; on one machine a trial on each GPU or one at a time on all
    cores, which makes it reproducible."""
    seed: Seed
    space: SpaceParams


class TrainParams(Section):
    """The final training of the search's best configuration."""

    data: Literal["memory", "stream"]
    """Where the training rows are: in the memory of every worker, or read from disk by Ray Data as they are needed."""
    num_epochs: Epochs | Literal["auto"]
    """auto: those of the recipe."""
    num_workers: Workers | Annotated[list[Workers], Field(min_length=2, max_length=2)] | Literal["auto"]
    """auto: one on every GPU of the cluster; without GPUs one on every machine. [low, high]: as many of these as there
    are at any moment; several machines make `auto` elastic too, so that the loss of one costs no run."""
    use_gpu: bool | Literal["auto"]
    precision: Precision
    """auto: bfloat16 where the processor or the GPU computes in it, float32 elsewhere."""
    seed: Seed


class EvaluateParams(Section):
    """What `evaluate` reports."""

    confidence: Probability
    """Of the Wilson interval."""
    num_calibration_bins: Annotated[int, Field(ge=2, le=100)]
    num_worst_mistakes: Annotated[int, Field(ge=1, le=100)]


class RegisterParams(Section):
    """The gates, all on the validation split."""

    max_p_value_against_baseline: Probability
    max_p_value_against_champion: Probability
    max_calibration_error: Annotated[float, Field(gt=0, le=1)]


class Params(Section):
    """The whole of `params.yaml`."""

    ingest: IngestParams
    normalize: NormalizeParams
    baseline: BaselineParams
    models: dict[ModelName, dict[str, Any]]
    """Constructor arguments by model; a model that is not named here takes its own defaults."""
    recipe: str
    """The key of `recipes` that is used."""
    recipes: Annotated[dict[str, RecipeParams], Field(min_length=1)]
    """The search starts from the chosen recipe and keeps what it does not search; its winner is trained by it."""
    search: SearchParams
    train: TrainParams
    evaluate: EvaluateParams
    register_: RegisterParams = Field(alias="register")


def load(path: Path, *, names: Mapping[str, Collection[str]] | None) -> Params:
    """Read and check `path`; `names` maps `models`, `optimizers` and `datasets` to the names that exist, None to any.

    Raises:
        InputError: every fault of the file, one line each.
    """
    return read(path, schema=Params, names=names, cross_checks=_cross_checks)


Schema = TypeVar("Schema", bound=Section)


def read(
    path: Path,
    *,
    schema: type[Schema],
    names: Mapping[str, Collection[str]] | None = None,
    cross_checks: Callable[[Path, Schema], list[str]] = lambda *_: [],
) -> Schema:
    """The YAML file `path` as a `schema`; `cross_checks` finds the faults of a file whose values are right one by one.

    Raises:
        InputError: every fault of the file, one line each.
    """
    content, lines, faults = _parse(path)
    try:
        params = schema.model_validate(content, context={"names": names})
    except ValidationError as error:
        by_value: dict[tuple[Location, str], list[ErrorDetails]] = {}
        for fault in error.errors():
            by_value.setdefault((_location(fault, lines), _show(fault["input"])), []).append(fault)
        faults += [_explain(path, location, found, lines, schema) for (location, _), found in by_value.items()]
    else:
        faults += cross_checks(path, params)
    if faults:
        raise InputError("\n".join(faults))
    return params


Location = tuple[str | int, ...]


def _parse(path: Path) -> tuple[Any, dict[Location, int], list[str]]:
    """The file's value, the line of each key and list entry, and a fault for each key that is defined twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "bytes that are not UTF-8"
        raise InputError(describe(path, "the file", "be readable text", got=reason)) from fault
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    try:
        root = yaml.compose(text)
        content = yaml.load(text)
        keys = list(_keys(root, ()))
    except MarkedYAMLError as fault:
        mark = fault.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise InputError(describe(where, "the file", "be YAML", got=fault.problem)) from fault
    except RecursionError as fault:
        raise InputError(describe(path, "the file", "be YAML", got="bottomless nesting")) from fault
    except (YAMLError, ValueError, KeyError) as fault:  # the last two from `!!int x` and `!!bool x`
        raise InputError(describe(path, "the file", "be YAML", got=_show_text(str(fault)))) from fault
    if not isinstance(content, dict):
        got = "nothing" if content is None else type(content).__name__
        raise InputError(describe(path, "the file", "be a mapping of sections", got=got))
    lines: dict[Location, int] = {}
    faults = []
    for key, line in keys:
        if key in lines:
            got = f"line {lines[key]} and line {line}"
            faults.append(describe(path, _name(key), "be defined once", got=got, fix="keep one"))
        lines[key] = line
    return content, lines, faults


def _keys(node: Node | None, prefix: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            here = (*prefix, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _keys(value, here)
    elif isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            yield (*prefix, number), value.start_mark.line + 1
            yield from _keys(value, (*prefix, number))


def _location(fault: ErrorDetails, lines: Mapping[Location, int]) -> Location:
    """Where the fault is in the file: pydantic adds a part for the branch of a union or the key that it tried."""
    location: Location = ()
    for part in fault["loc"]:
        known = [(*location, part), (*location, str(part))]  # a key such as `1:` is a number to pydantic
        found = next((candidate for candidate in known if candidate in lines), None)
        if found is None and fault["type"] not in ("missing", "extra_forbidden"):
            break
        location = found or known[0]
    return location


def _explain(
    path: Path,
    location: Location,
    faults: list[ErrorDetails],
    lines: Mapping[Location, int],
    schema: type[Section],
) -> str:
    """One line for one value; several faults of a value are the branches of its union, all of which failed."""
    fault = faults[0]
    where = f"{path}:{lines[location]}" if location in lines else str(path)
    name, value = _name(location), fault["input"]
    match fault["type"]:
        case "missing":
            return describe(path, name, "be set", got="nothing")
        case "invalid_key":
            return describe(where, "every key", "be text", got=_show(value))
        case "extra_forbidden":
            siblings = _known_keys(location[:-1], schema)
            fix = closest(location[-1], siblings) or f"known here: {', '.join(siblings)}"
            return describe(where, name, "be a known key", got=repr(location[-1]), fix=fix)
    rules, known = zip(*(_rule(fault) for fault in faults), strict=True)
    rule = " or ".join([rules[0], *(other.removeprefix("be ") for other in rules[1:])])
    names = [name for branch in known for name in branch]
    return describe(where, name, rule, got=_show(value), fix=closest(value, names) if isinstance(value, str) else "")


def _rule(fault: ErrorDetails) -> tuple[str, list[str]]:
    """The rule that was broken, and the names that it knows where it is about names."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "unknown_name":
            known = context["known"]
        case "literal_error":
            known = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        case kind if kind in _RULES:
            limits = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in context.items()}
            return _RULES[kind].format(**limits), []
        case _:
            return fault["msg"][0].lower() + fault["msg"][1:], []
    return f"be {known[0]}" if len(known) == 1 else f"be one of {', '.join(known)}", known


_RULES = {
    "int_type": "be a whole number",
    "float_type": "be a number",
    "string_type": "be text",
    "bool_type": "be true or false",
    "list_type": "be a list",
    "dict_type": "be a mapping",
    "model_type": "be a mapping",
    "finite_number": "be a finite number",
    "greater_than": "be > {gt}",
    "greater_than_equal": "be >= {ge}",
    "less_than": "be < {lt}",
    "less_than_equal": "be <= {le}",
    "too_short": "have {min_length} or more entries",
    "too_long": "have {max_length} or fewer entries",
    "string_too_short": "have {min_length} or more characters",
    "bad_mirror": "be a directory or an http(s) base URL",
}


def _known_keys(location: Location, schema: type[Section]) -> list[str]:
    section: Any = schema
    for part in location:
        field = {f.alias or n: f for n, f in section.model_fields.items()}[str(part)]
        section = field.annotation
    return sorted(f.alias or n for n, f in section.model_fields.items())


def _name(location: Location) -> str:
    """`search.space.model[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _show(value: Any) -> str:
    """The value as the file spells it, as far as that is short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _show_text(without_credentials(repr(value)))  # a mirror may hold a password


def _show_text(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _cross_checks(path: Path, params: Params) -> list[str]:
    """The rules that need more than one key."""
    faults = []
    space = params.search.space
    ranges: dict[str, Any] = {
        **{f"search.space.learning_rate.{name}": low_high for name, low_high in space.learning_rate.items()},
        "search.space.weight_decay": space.weight_decay,
        "search.space.rotation_degrees": space.rotation_degrees,
        "search.space.translation_pixels": space.translation_pixels,
        "train.num_workers": params.train.num_workers,
    }
    for name, values in ranges.items():
        if isinstance(values, list) and values[0] > values[1]:
            rule = "be [low, high] with low <= high"
            faults.append(describe(path, name, rule, got=values, fix="swap them"))
    if params.recipe not in params.recipes:
        rule = f"be one of {', '.join(sorted(params.recipes))}"
        fix = closest(params.recipe, params.recipes)
        faults.append(describe(path, "recipe", rule, got=repr(params.recipe), fix=fix))
    elif params.train.data == "stream" and params.recipes[params.recipe].train_rows is not None:
        rule = "be null when train.data is stream, which reads every row"
        got = params.recipes[params.recipe].train_rows
        faults.append(describe(path, f"recipes.{params.recipe}.train_rows", rule, got=got))
    for name, dataset in (("dataset", params.ingest.dataset), ("fallback", params.ingest.fallback)):
        if dataset == "local" and params.ingest.folder is None:
            rule = f"name the folder of the four IDX files when ingest.{name} is local"
            faults.append(describe(path, "ingest.folder", rule, got="null"))
    return faults
