"""One file a family, and `MODELS`, the one dict that names them all.

A model maps (n, 1, 28, 28) standardised images to (n, 10) logits and knows no loss, device, rank or file. Its
constructor's keyword arguments are what `params.yaml` may set under `models`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from mnist_pipe.errors import InputError, unknown
from mnist_pipe.params import messages
from mnist_pipe.params.schema import Searched

if TYPE_CHECKING:
    from torch import nn

# A class is imported when its model is built, so that the names can be checked without importing torch.


def _linear() -> type[nn.Module]:
    from mnist_pipe.models.linear import Linear

    return Linear


def _mlp() -> type[nn.Module]:
    from mnist_pipe.models.mlp import MLP

    return MLP


def _lenet1() -> type[nn.Module]:
    from mnist_pipe.models.lenet1998 import LeNet1

    return LeNet1


def _lenet4() -> type[nn.Module]:
    from mnist_pipe.models.lenet1998 import LeNet4

    return LeNet4


def _lenet5() -> type[nn.Module]:
    from mnist_pipe.models.lenet5 import LeNet5

    return LeNet5


def _lenet5_rbf() -> type[nn.Module]:
    from mnist_pipe.models.lenet1998 import LeNet5RBF

    return LeNet5RBF


def _cnn() -> type[nn.Module]:
    from mnist_pipe.models.cnn import CNN

    return CNN


def _convnet() -> type[nn.Module]:
    from mnist_pipe.models.convnet import ConvNet

    return ConvNet


def _resnet() -> type[nn.Module]:
    from mnist_pipe.models.resnet import ResNet

    return ResNet


MODELS: dict[str, Callable[[], type[nn.Module]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "lenet1": _lenet1,
    "lenet4": _lenet4,
    "lenet5": _lenet5,
    "lenet5_rbf": _lenet5_rbf,
    "cnn": _cnn,
    "convnet": _convnet,
    "resnet": _resnet,
}


def build(name: str, **arguments: Any) -> nn.Module:
    """A new model with weights drawn from torch's global generator.

    Raises:
        InputError: no such model, no such argument, or a value that the constructor refuses.
    """
    if name not in MODELS:
        raise unknown("models", "model", name, MODELS)
    fields = {
        argument: (kind, defaults(name).get(argument, ...)) for argument, kind in _types(name, extras=True).items()
    }
    _validate(arguments, fields, prefix=("models", name))
    return MODELS[name]()(**arguments)


def check(
    arguments: Mapping[str, Mapping[str, Any]], *, space: Mapping[str, Mapping[str, list[Any]]] | None = None
) -> None:
    """Build each model once with its arguments from `params.yaml`, and check the values that `space` is to try.

    `space` is `model_params` of the search space: by model and argument a list of values, or a range.

    Raises:
        InputError: every error, one line each.
    """
    errors = []
    for name, own in arguments.items():
        try:
            build(name, **own)
        except InputError as error:
            errors.append(str(error))
    for name, domains in (space or {}).items():
        types, ways = _types(name, extras=True), searched(name)
        tried: dict[str, Any] = {argument: (way.domain(types[argument]), []) for argument, way in ways.items()}
        try:
            _validate(domains, tried, prefix=("search", "space", "model_params", name))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))


def searched(name: str) -> dict[str, Searched]:
    """How a search takes each constructor argument of a model: a `float` in a range, everything else as a choice."""
    return {
        argument: Searched(by="range" if kind is float else "choice", label=argument)
        for argument, kind in _types(name, extras=False).items()
    }


def defaults(name: str) -> dict[str, Any]:
    """The constructor arguments of a model that have a default."""
    parameters = inspect.signature(MODELS[name]()).parameters
    return {
        argument: parameter.default
        for argument, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }


def _types(name: str, *, extras: bool) -> dict[str, Any]:
    """The type of each constructor argument of a model, with `extras` as it is annotated."""
    constructor = MODELS[name]()
    hints = get_type_hints(constructor.__init__, include_extras=extras)
    return {argument: hints[argument] for argument in inspect.signature(constructor).parameters}


def _validate(values: Mapping[str, Any], fields: Mapping[str, Any], *, prefix: tuple[str, ...]) -> None:
    """Check `values`, which are at `prefix` in params.yaml, against the type and the default of each field."""
    schema = create_model(prefix[-1], __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        schema.model_validate(values)
    except ValidationError as error:
        lines = messages.explain(error, values, schema=schema, where="params.yaml", prefix=prefix)
        raise InputError("\n".join(lines)) from error
