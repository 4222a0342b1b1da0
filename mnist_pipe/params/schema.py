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


FORMATS = ("images", "csv", "parquet", "npz", "idx")
"""The formats of the user's own images, as `ingest.dataset` names them."""

ModelName = Annotated[str, _one_of("models")]
OptimizerName = Annotated[str, _one_of("optimizers")]
ScheduleName = Annotated[str, _one_of("schedules")]
DatasetName = Annotated[str, _one_of("datasets")]
PublishedName = Annotated[str, _one_of("published")]
SamplerName = Annotated[str, _one_of("samplers")]
SchedulerName = Annotated[str, _one_of("schedulers")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Epochs = Annotated[int, Field(ge=1, le=1000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Degrees = Annotated[float, Field(ge=0, le=45, allow_inf_nan=False)]
Pixels = Annotated[float, Field(ge=0, le=6, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
Workers = Annotated[int, Field(ge=1, le=10_000)]
Precision = Literal["auto", "float32", "tf32", "bfloat16"]


class Section(BaseModel):
    """A section of `params.yaml`: it has no unknown keys, converts no types and is frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class IngestParams(Section):
    """Section `ingest`: a published data set, or the user's own images."""

    dataset: DatasetName
    """The data set to use: a key of SOURCES, or for the user's own images their format, one of `FORMATS`."""
    path: Annotated[str, Field(min_length=1)]
    """The file or folder of the user's own images, or the URI of one in a bucket. A local one must exist always,
    because DVC watches it."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=50)] | None
    """The name of the user's own images, which register as `<name>-classifier`; null for a published data set."""
    mirrors: list[Annotated[str, Field(min_length=1), AfterValidator(_check_mirror)]]
    """The mirrors, in the order of use: each is a directory (skipped if missing) or an http(s) base URL."""
    fallback: PublishedName | None
    """The published data set to use, with a warning, if no mirror answers; null makes that an error."""
    timeout_seconds: Annotated[float, Field(gt=0, le=600)]
    """The longest silence, in seconds, of all mirrors together; each is left for the next one after its share of it."""
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=3, max_length=3)] | Literal["auto"]
    """Channels, height and width of the images that are made of the user's pictures. auto: the size that all pictures
    have, up to 128 pixels; of larger pictures, or of several sizes, at most 64."""
    channels: Literal[1, 3, "auto"]
    """1 for grey, 3 for colour. auto: grey if every picture is."""
    resize: Literal["fit", "stretch", "digit_box"]
    """How a picture gets the size of an image. fit: it is padded to its proportions. stretch: it is stretched to them.
    digit_box: its ink is scaled to a box and centred, as MNIST's digits were."""
    invert: bool | Literal["auto"]
    """Whether to invert the images. auto: of drawings, those on light ground."""
    test_share: Annotated[float, Field(ge=0.01, le=0.5)]
    """The share of the user's images that becomes the test split, stratified by class, if they have none."""
    seed: Seed
    """The seed of that share."""
    max_unreadable: Annotated[int, Field(ge=0, le=1_000_000)]
    """The number of pictures that may be unreadable; the report lists them."""
    drop_duplicates: bool
    """Whether to drop training images that are also in another split, or earlier in this one, byte for byte."""


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
    balance: Annotated[Literal["none", "weights", "sampling"], Searched(by="choice", label="balance")] = "none"
    """What makes up for classes with few training rows. weights: the loss of a row is weighted by the inverse of the
    number of rows of its class. sampling: an epoch draws rows with replacement, each class equally often."""
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
    algorithm: SamplerName
    """What proposes the trials, a key of SAMPLERS. grid: every combination of the choices and of `grid_points` values
    of each range, in an order that the seed shuffles; the search ends after `num_trials` of them or after the last."""
    grid_points: Annotated[int, Field(ge=1, le=1000)]
    """The number of values of a range that `grid` tries, evenly spaced from its low to its high end, on the scale of
    the range; 1 is the middle."""
    scheduler: SchedulerName
    """What stops trials early, a key of SCHEDULERS. asha: those that fall behind at a rung. hyperband: the same, in
    brackets of which some give every trial more time. median: those whose best epoch is below the median of the other
    trials' means so far. fifo: none."""
    reduction_factor: Annotated[int, Field(ge=2, le=16)]
    """The reduction factor of ASHA and HyperBand: of this many trials, one continues past each rung."""
    final_seeds: Annotated[int, Field(ge=0, le=100)]
    """The number of seeds with which each of the best configurations is trained in full, on the recipe's rows and for
    its epochs; the highest mean accuracy on validation is then chosen. 0: the best trial of the search is chosen."""
    final_candidates: Annotated[int, Field(ge=1, le=1000)]
    """The number of configurations that `final_seeds` trains."""
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
    """The number of workers. auto: as many GPUs as have 1,024 images of a batch each, at least one; without GPUs, one
    on every node. `batch_size` counts the images of all workers together. [low, high]: elastic, as many of these as
    there are at any moment. If nodes may join and leave, `auto` is elastic too, so that a run survives the loss of a
    node. 0: no worker; the loop runs in the stage's own process, where a debugger reaches it."""
    use_gpu: bool | Literal["auto"]
    precision: Precision
    """The precision of the products of a training step; evaluation is always in float32. float32: as IEEE 754 says.
    tf32: rounded to 10 bits on a GPU, float32 on a CPU. bfloat16: rounded to 7 bits. auto: on a CPU bfloat16 if it
    computes in it natively, else float32; on a GPU tf32."""
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
    promote: Literal["workspace", "always"] = "workspace"
    """Where a candidate that passes the gates becomes the champion. workspace: not in a DVC experiment outside of it
    (`dvc exp run --temp` or `--queue`), only when that is applied and reproduced. always: there too."""


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
