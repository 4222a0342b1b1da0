"""What `params.yaml` may hold: frozen, validated types.

Every number that a person may turn is a documented field here and a value there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict


def _one_of(kind: str) -> AfterValidator:
    """A name that must be a key of the project's dict of that kind; the caller of `loader.load` supplies the names."""

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


def _check_range(value: list[float]) -> list[float]:
    if value[0] > value[1]:
        raise PydanticCustomError("bad_range", "")
    return value


_RANGE = (Field(min_length=2, max_length=2), AfterValidator(_check_range))


def choice_of(kind: Any) -> Any:
    """The type of a list of values to choose from."""
    return Annotated[list[kind], Field(min_length=1)]


def range_of(kind: Any) -> Any:
    """The type of `[low, high]`."""
    return Annotated[list[kind], *_RANGE]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """How a field of a recipe is searched, and how a report shows it; this is the field's one declaration."""

    by: Literal["choice", "range", "log", "arguments"]
    """choice: from a list of values. range: uniformly from `[low, high]`. log: the same on a logarithmic scale.
    arguments: by model and constructor argument, see `models.searched`."""
    label: str
    """The header of the report's column."""
    shown: str = "{}"
    """The format of a value in the report."""
    each: str = ""
    """Another field: there is a range for each of its values, and only that of the chosen value is searched."""

    def domain(self, kind: Any, *, keys: Any = None) -> Any:
        """The type of what `search.space` may hold for a field of type `kind`; `keys` is that of the field `each`."""
        match self.by:
            case "arguments":
                return dict[ModelName, dict[str, Annotated[list[Any], Field(min_length=1)]]]
            case "choice":
                domain = choice_of(kind)
            case "range":
                domain = range_of(kind)
            case "log":
                domain = range_of(Annotated[kind, Field(gt=0)])
        return dict[keys, domain] if self.each else domain  # type: ignore[valid-type]


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

    model: Annotated[ModelName, Searched(by="choice", label="model")]
    model_params: Annotated[dict[str, Any], Searched(by="arguments", label="arguments")]
    """Constructor arguments of `model`, in place of those under `models`."""
    optimizer: Annotated[OptimizerName, Searched(by="choice", label="optimizer")]
    learning_rate: Annotated[LearningRate, Searched(by="log", label="learning rate", shown="{:.3g}", each="optimizer")]
    """The peak of the schedule. In a search an optimizer that is not named has its own range, of OPTIMIZERS."""
    weight_decay: Annotated[float, Field(ge=0, le=1), Searched(by="log", label="weight decay", shown="{:.1e}")]
    batch_size: Annotated[BatchSize, Searched(by="choice", label="batch")]
    train_rows: Annotated[int, Field(ge=100)] | None
    """Train on the first so many training rows; null takes them all."""
    num_epochs: Annotated[Epochs, Searched(by="choice", label="planned epochs")]
    """In a search at most `search.num_epochs`, which is otherwise the length of a trial."""
    schedule: Annotated[ScheduleName, Searched(by="choice", label="schedule")]
    label_smoothing: Annotated[Smoothing, Searched(by="range", label="smoothing", shown="{:.3f}")]
    average_decay: Annotated[float, Field(ge=0, lt=1), Searched(by="choice", label="averaging")]
    """What a step leaves of the moving average of the weights; 0 keeps none and takes the last weights."""
    rotation_degrees: Annotated[Degrees, Searched(by="range", label="rotation", shown="{:.1f}°")]
    """The largest random rotation."""
    translation_pixels: Annotated[Pixels, Searched(by="range", label="shift", shown="{:.1f} px")]
    """The largest random shift."""
    test_time_augmentation: bool
    """Whether the model looks at each image five times, once shifted by a pixel in each direction."""


_HINTS = get_type_hints(RecipeParams, include_extras=True)
SEARCHED: dict[str, Searched] = {
    name: found
    for name, field in RecipeParams.model_fields.items()
    for found in field.metadata
    if isinstance(found, Searched)
}
"""How each field of a recipe is searched, in the order in which a trial draws them."""

if TYPE_CHECKING:
    Space = dict[str, Any]
else:
    Space = with_config(ConfigDict(extra="forbid", strict=True))(
        TypedDict(
            "Space",
            {name: how.domain(_HINTS[name], keys=_HINTS.get(how.each)) for name, how in SEARCHED.items()},
            total=False,
        )
    )
"""What the search chooses from, by field of a recipe; what is not named stays as the recipe has it.

Whether a list is a choice or `[low, high]` depends on the field alone: see its `Searched` in `RecipeParams`.
"""


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
    space: Space


class TrainParams(Section):
    """The final training of the search's best configuration."""

    data: Literal["memory", "stream"]
    """Where the training rows are: in the memory of every worker, or read from disk by Ray Data as they are needed."""
    num_epochs: Epochs | Literal["auto"]
    """auto: those of the recipe."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] | Annotated[list[Workers], *_RANGE] | Literal["auto"]
    """auto: one on every GPU of the cluster; without GPUs one on every machine. [low, high]: as many of these as there
    are at any moment; several machines make `auto` elastic too, so that the loss of one costs no run. 0: none, the loop
    runs in the stage's own process, where a debugger reaches it."""
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
