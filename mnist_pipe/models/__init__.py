"""The models, one module per family, and `MODELS`, the dict that names them all.

A model maps standardised images, float32 `(N, channels, height, width)`, to logits, float32 `(N, classes)`, and does
not depend on a loss, device, rank or file. `params.yaml` may set its constructor's keyword arguments under `models`,
apart from `in_shape` and `num_classes`, which are facts about the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_type_hints

from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import nn

    from mnist_pipe.params.schema import Searched

_OF_THE_DATA = ("in_shape", "num_classes")

# A class is imported when its model is used, so that the names can be checked without importing torch. pydantic, which
# checks the arguments, is imported to check them: the models themselves need torch alone.


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


def build(name: str, *, facts: Facts = MNIST, **arguments: Any) -> nn.Module:
    """Return a new model with weights drawn from torch's global generator.

    Args:
        name: a key of `MODELS`.
        facts: the shape of the images and the classes.
        **arguments: the other keyword arguments of the model's constructor.

    Raises:
        InputError: there is no such model or argument, a value has the wrong type or is out of range, or the model
            does not take images of this shape.
    """
    if name not in MODELS:
        raise unknown("models", "model", name, MODELS)
    with suppress(ImportError):  # where pydantic is not installed, the constructor alone refuses an argument
        fields = {
            argument: (kind, defaults(name).get(argument, ...)) for argument, kind in _types(name, extras=True).items()
        }
        _validate(arguments, fields, prefix=("models", name))
    return MODELS[name]()(in_shape=facts.shape, num_classes=facts.num_classes, **arguments)


def check(
    arguments: Mapping[str, Mapping[str, Any]],
    *,
    space: Mapping[str, Mapping[str, list[Any]]] | None = None,
    trained: Collection[str] = (),
    facts: Facts = MNIST,
) -> None:
    """Build each model once with its arguments from `params.yaml`, and check the values in the search space.

    Args:
        arguments: the constructor arguments by model.
        space: `model_params` of the search space: by model and argument a list of values, or a range.
        trained: the models that may be trained, which must take the images.
        facts: the shape of the images and the classes.

    Raises:
        InputError: an argument or a value is wrong; the message has one line for each of them.
    """
    errors = []
    for name in {**arguments, **dict.fromkeys(trained)}:
        try:
            build(name, facts=facts if name in trained else MNIST, **arguments.get(name, {}))
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
    """Return how a search treats each constructor argument of a model: a `float` as a range, others as a choice."""
    from mnist_pipe.params.schema import Searched

    return {
        argument: Searched(by="range" if kind is float else "choice", label=argument)
        for argument, kind in _types(name, extras=False).items()
    }


def defaults(name: str) -> dict[str, Any]:
    """Return the defaults of a model's constructor arguments, without the arguments that have none."""
    parameters = inspect.signature(MODELS[name]()).parameters
    return {
        argument: parameter.default
        for argument, parameter in parameters.items()
        if parameter.default is not parameter.empty and argument not in _OF_THE_DATA
    }


def _types(name: str, *, extras: bool) -> dict[str, Any]:
    """Return the type of each constructor argument of a model; `extras` keeps the metadata of `Annotated`."""
    from pydantic import Field

    constructor = MODELS[name]()
    hints = get_type_hints(constructor.__init__, localns={"Field": Field}, include_extras=extras)
    arguments = inspect.signature(constructor).parameters
    return {argument: hints[argument] for argument in arguments if argument not in _OF_THE_DATA}


def _validate(values: Mapping[str, Any], fields: Mapping[str, Any], *, prefix: tuple[str, ...]) -> None:
    """Check `values`, which stand at `prefix` in params.yaml, against the type and default of each field.

    Raises:
        InputError: a value is wrong; the message has one line for each of them.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    from mnist_pipe.params import messages

    schema = create_model(prefix[-1], __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        schema.model_validate(values)
    except ValidationError as error:
        lines = messages.explain(error, values, schema=schema, where="params.yaml", prefix=prefix)
        raise InputError("\n".join(lines)) from error
