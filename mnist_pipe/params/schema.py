"""Frozen, validated types of the content of `params.yaml`.

Every tunable parameter is a documented field here and has its value there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict


def _one_of(kind: str) -> AfterValidator:
    """Return a validator of names of a kind, such as `models`; the caller of `loader.load` supplies the known names."""

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
    """Return the type of a non-empty list of values of type `kind` to choose from."""
    return Annotated[list[kind], Field(min_length=1)]


def range_of(kind: Any) -> Any:
    """Return the type of a range `[low, high]` of values of type `kind`."""
    return Annotated[list[kind], *_RANGE]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The only declaration of how a field of a recipe is searched and how a report shows it."""

    by: Literal["choice", "range", "log", "arguments"]
    """How a value is drawn. choice: from a list of values. range: uniformly from `[low, high]`. log: the same on a
    logarithmic scale. arguments: by model and constructor argument, see `models.searched`."""
    label: str
    """The header of the field's column in a report."""
    shown: str = "{}"
    """The format string of a value in a report."""
    each: str = ""
    """The name of another field, if there is one range for each of its values: only the chosen value's is searched."""

    def domain(self, kind: Any, *, keys: Any = None) -> Any:
        """Return the type of a field's entry in `search.space`.

        Args:
            kind: the type of the field.
            keys: the type of the field `each`.
        """
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
    """A section of `params.yaml`: it has no unknown keys, converts no types and is frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class IngestParams(Section):
    """Section `ingest`: the source of the published files."""

    dataset: DatasetName
    """The data set to use, a key of SOURCES."""
    mirrors: list[Annotated[str, Field(min_length=1), AfterValidator(_check_mirror)]]
    """The mirrors, in the order of use: each is a directory (skipped if missing) or an http(s) base URL."""
    fallback: DatasetName | None
    """The data set to use, with a warning, if no mirror answers; null makes that an error."""
    folder: Annotated[str, Field(min_length=1)]
    """The folder of the four IDX files of `dataset: local`; it must exist always, because DVC watches it."""
    timeout_seconds: Annotated[float, Field(gt=0, le=600)]
    """The longest silence, in seconds, of all mirrors together; each is left for the next one after its share of it."""


class NormalizeParams(Section):
    """Section `normalize`: the validation split."""

    validation_rows: Annotated[int, Field(ge=1, le=1_000_000)]
    """The number of rows to hold out of the training split, stratified by label; at most a fifth of it is taken."""
    seed: Seed


class BaselineParams(Section):
    """Section `baseline`: the linear softmax classifier, whose score every other model must beat."""

    num_epochs: Epochs
    batch_size: BatchSize
    learning_rate: LearningRate
    seed: Seed


class RecipeParams(Section):
    """A recipe: the model and its training settings, which decide the run time and the accuracy."""

    model: Annotated[ModelName, Searched(by="choice", label="model")]
    model_params: Annotated[dict[str, Any], Searched(by="arguments", label="arguments")]
    """Constructor arguments of `model`, which replace those under `models`."""
    optimizer: Annotated[OptimizerName, Searched(by="choice", label="optimizer")]
    learning_rate: Annotated[LearningRate, Searched(by="log", label="learning rate", shown="{:.3g}", each="optimizer")]
    """The peak of the schedule. An optimizer for which a search space has no range uses its own in OPTIMIZERS."""
    weight_decay: Annotated[float, Field(ge=0, le=1), Searched(by="log", label="weight decay", shown="{:.1e}")]
    batch_size: Annotated[BatchSize, Searched(by="choice", label="batch")]
    train_rows: Annotated[int, Field(ge=100)] | None
    """The number of training rows to use, counted from the first; null uses all."""
    num_epochs: Annotated[Epochs, Searched(by="choice", label="planned epochs")]
    """The number of epochs. In a search, it is at most `search.num_epochs`, which is the length of every trial if this
    field is not searched."""
    schedule: Annotated[ScheduleName, Searched(by="choice", label="schedule")]
    label_smoothing: Annotated[Smoothing, Searched(by="range", label="smoothing", shown="{:.3f}")]
    average_decay: Annotated[float, Field(ge=0, lt=1), Searched(by="choice", label="averaging")]
    """The decay per step of the exponential moving average of the weights; 0 disables it and uses the last weights."""
    rotation_degrees: Annotated[Degrees, Searched(by="range", label="rotation", shown="{:.1f}°")]
    """The largest random rotation, in degrees."""
    translation_pixels: Annotated[Pixels, Searched(by="range", label="shift", shown="{:.1f} px")]
    """The largest random shift, in pixels."""
    test_time_augmentation: bool
    """Whether the model averages over five inputs: the image and its shifts by one pixel in the four directions."""


_HINTS = get_type_hints(RecipeParams, include_extras=True)
SEARCHED: dict[str, Searched] = {
    name: found
    for name, field in RecipeParams.model_fields.items()
    for found in field.metadata
    if isinstance(found, Searched)
}
"""The declaration of each searchable field of a recipe, in the order in which a trial draws them."""

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
"""The values that a search chooses from, by field of a recipe; a field that is not named keeps the recipe's value.

Whether a list is a choice or `[low, high]` depends on the field alone: see its `Searched` in `RecipeParams`.
"""


class SearchParams(Section):
    """Section `search`: the hyper-parameter search with Ray Tune."""

    num_trials: Annotated[int, Field(ge=1, le=100_000)]
    num_epochs: Epochs
    """The largest number of epochs of a trial."""
    train_rows: Annotated[int, Field(ge=100)] | None
    """The number of training rows of each trial, counted from the first; null uses all."""
    algorithm: Literal["random", "tpe"]
    scheduler: Literal["asha", "fifo"]
    reduction_factor: Annotated[int, Field(ge=2, le=16)]
    """The reduction factor of ASHA: of this many trials, one continues past each rung."""
    max_concurrent_trials: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"]
    """The number of concurrent trials. auto: on a cluster, as many as there is room for; on one machine, one on each
    GPU or, without GPUs, one at a time on all cores, which makes the search reproducible."""
    seed: Seed
    space: Space


class TrainParams(Section):
    """Section `train`: the final training of the search's best configuration."""

    data: Literal["memory", "stream"]
    """The place of the training rows: the memory of every worker, or a disk from which Ray Data streams them."""
    num_epochs: Epochs | Literal["auto"]
    """The number of epochs. auto: that of the recipe."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] | Annotated[list[Workers], *_RANGE] | Literal["auto"]
    """The number of workers. auto: one on every GPU of the cluster or, without GPUs, one on every node. [low, high]:
    elastic, as many of these as there are at any moment. If nodes may join and leave, `auto` is elastic too, so that a
    run survives the loss of a node. 0: no worker; the loop runs in the stage's own process, where a debugger reaches
    it."""
    use_gpu: bool | Literal["auto"]
    precision: Precision
    """The precision of the computation. auto: bfloat16 if the CPU or GPU computes in it natively, else float32."""
    seed: Seed


class EvaluateParams(Section):
    """Section `evaluate`: the settings of the reported metrics."""

    confidence: Probability
    """The confidence level of the Wilson interval."""
    num_calibration_bins: Annotated[int, Field(ge=2, le=100)]
    num_worst_mistakes: Annotated[int, Field(ge=1, le=100)]


class RegisterParams(Section):
    """Section `register`: the limits of the gates, all on the validation split."""

    max_p_value_against_baseline: Probability
    max_p_value_against_champion: Probability
    max_calibration_error: Annotated[float, Field(gt=0, le=1)]


class ServeParams(Section):
    """Section `serve`: the HTTP endpoint on Ray Serve."""

    host: Annotated[str, Field(min_length=1)]
    """The address to listen on."""
    port: Annotated[int, Field(ge=1, le=65_535)]
    require_token: bool
    """Whether a request must carry the token in `.state/secrets/serve`; may be false on loopback only."""
    num_replicas: Annotated[list[Workers], *_RANGE]
    """The numbers of replicas [low, high] between which Ray Serve scales."""
    target_ongoing_requests: Annotated[float, Field(gt=0, le=10_000)]
    """The number of unfinished requests per replica above which Ray Serve adds a replica."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=10_000)]
    """The largest number of unfinished requests that a replica takes; further ones wait in the proxy."""
    max_queued_requests: Annotated[int, Field(ge=1, le=100_000)]
    """The largest number of requests that wait in the proxy; further ones are refused with 503."""
    cpus_per_replica: Annotated[float, Field(ge=0, le=1024)]
    """The number of CPUs that Ray reserves for a replica. 0 reserves none, so that a training on the same Ray still has
    all of them."""
    max_batch_size: Annotated[int, Field(ge=1, le=10_000)]
    """The largest number of requests that are computed together."""
    batch_wait_seconds: Annotated[float, Field(ge=0, le=1)]
    """The time that a batch waits for more requests. 0 takes those that came while the last batch was computed."""
    max_body_bytes: Annotated[int, Field(ge=1000, le=1_000_000_000)]
    max_images: Annotated[int, Field(ge=1, le=100_000)]
    """The largest number of arrays in a request."""
    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)]
    """The rate limit of a replica; further requests are refused with 429."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)]
    """The longest duration of a request, with its wait."""
    drain_seconds: Annotated[float, Field(gt=0, le=3600)]
    """The time that requests have to finish after SIGTERM."""
    poll_seconds: Annotated[float, Field(ge=0.1, le=3600)]
    """The interval at which the registry is asked where the alias points."""


class Params(Section):
    """The whole content of `params.yaml`."""

    ingest: IngestParams
    normalize: NormalizeParams
    baseline: BaselineParams
    models: dict[ModelName, dict[str, Any]]
    """Constructor arguments by model; a model that is not named here uses its own defaults."""
    recipe: str
    """The chosen recipe, a key of `recipes`."""
    recipes: Annotated[dict[str, RecipeParams], Field(min_length=1)]
    """The recipes by name. The search starts from the chosen one and keeps the fields that it does not search; the
    search's best configuration is trained with it."""
    search: SearchParams
    train: TrainParams
    evaluate: EvaluateParams
    register_: RegisterParams = Field(alias="register")
    serve: ServeParams
