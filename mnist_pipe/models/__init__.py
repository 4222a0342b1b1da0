"""One file a family, and `MODELS`, the one dict that names them all.

A model maps (n, 1, 28, 28) standardised images to (n, 10) logits and knows no loss, device, rank or file. Its
constructor's keyword arguments are what `params.yaml` may set under `models`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from mnist_pipe.errors import InputError, closest, describe, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import nn

MODELS = {  # name: module and class, so that the names can be checked without importing torch
    "linear": "linear.Linear",
    "mlp": "mlp.MLP",
    "lenet1": "lenet1998.LeNet1",
    "lenet4": "lenet1998.LeNet4",
    "lenet5": "lenet5.LeNet5",
    "lenet5_rbf": "lenet1998.LeNet5RBF",
    "cnn": "cnn.CNN",
    "convnet": "convnet.ConvNet",
    "resnet": "resnet.ResNet",
}


def build(name: str, **arguments: Any) -> nn.Module:
    """A new model with weights drawn from torch's global generator.

    Raises:
        InputError: no such model, no such argument, or a value that the constructor refuses.
    """
    from pydantic import ValidationError

    if name not in MODELS:
        raise unknown("models", "model", name, MODELS)
    module, _, attribute = MODELS[name].partition(".")
    constructor = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    try:
        _arguments_of(constructor).model_validate(arguments)
    except ValidationError as error:
        raise InputError("\n".join(_explain(name, fault, constructor) for fault in error.errors())) from error
    return cast("nn.Module", constructor(**arguments))


def _arguments_of(constructor: type) -> type[BaseModel]:
    """The constructor's keyword arguments as a pydantic model, so that params.yaml is checked against the signature."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(constructor.__init__, include_extras=True)  # type: ignore[misc]
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(constructor).parameters.items()
    }
    return create_model(constructor.__name__, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _explain(name: str, fault: Any, constructor: type) -> str:
    where = "params.yaml"
    key = ".".join(["models", name, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        known = list(inspect.signature(constructor).parameters)
        fix = closest(fault["loc"][-1], known) or f"known: {', '.join(known) or 'none'}"
        return describe(where, key, "be a known argument", got=repr(fault["loc"][-1]), fix=fix)
    return describe(where, key, fault["msg"].removeprefix("Input should "), got=repr(fault["input"]))


def check(arguments: Mapping[str, Mapping[str, Any]]) -> None:
    """Build each model once with its arguments from `params.yaml`; raise one InputError with every fault."""
    faults = []
    for name in arguments:
        try:
            build(name, **arguments[name])
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise InputError("\n".join(faults))
