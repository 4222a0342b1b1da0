"""Test convolutional networks with one max-pool against the report's order of layers and pytorch/examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.errors import InputError
from mnist_pipe.models.resnet import Block, ResNet


def _report(layers: dict[str, nn.Module], images: Tensor) -> Tensor:
    """Apply the report's layers in its order, with each ReLU before the next layer, and return the logits."""
    features = F.max_pool2d(F.relu(layers["3"](F.relu(layers["0"](images)))), 2)
    outputs: Tensor = layers["8"](F.relu(layers["6"](features.flatten(1))))
    return outputs


def _example(layers: dict[str, nn.Module], images: Tensor) -> Tensor:
    """Return the logits of `Net.forward` of pytorch/examples, mnist/main.py, without its log_softmax."""
    x = F.relu(layers["0"](images))
    x = F.relu(layers["2"](x))
    x = F.max_pool2d(x, 2)
    x = F.dropout(x, 0.25)
    x = torch.flatten(x, 1)
    x = F.relu(layers["7"](x))
    x = F.dropout(x, 0.5)
    outputs: Tensor = layers["10"](x)
    return outputs


def test_the_pool_before_the_relu_changes_neither_outputs_nor_gradients() -> None:
    torch.manual_seed(0)
    model = models.build("cnn")
    layers = dict(model.get_submodule("layers").named_children())
    layers["3"] = layers["2"]
    images, labels = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    outputs = []
    for forward in (model, lambda images: _report(layers, images)):
        model.zero_grad()
        logits = forward(images)
        F.cross_entropy(logits, labels).backward()
        outputs.append(
            [logits, *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]
        )
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_unpadded_with_dropout_it_is_the_network_of_pytorch_examples() -> None:
    torch.manual_seed(0)
    model = models.build("cnn", dropout=0.5, padding=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_199_882
    layers, images = dict(model.get_submodule("layers").named_children()), torch.randn(8, 1, 28, 28)
    torch.manual_seed(1)
    ours = model(images)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, _example(layers, images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(("name", "drops"), [("cnn", [0.2, 0.4]), ("resnet", [0.4])])
def test_dropout_is_where_its_argument_says(name: str, drops: list[float]) -> None:
    model = models.build(name, dropout=0.4)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == drops


def test_batch_norm_follows_each_convolution_and_replaces_its_bias() -> None:
    model = models.build("cnn", batch_norm=True)
    assert [module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == [32, 64]
    plain = sum(parameter.numel() for parameter in models.build("cnn").parameters())
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == plain + 32 + 64
    )  # a scale and a shift instead of a bias


def test_a_block_with_zero_weights_is_the_identity() -> None:
    block = Block(8, 8, stride=1)
    nn.init.zeros_(block.conv2.weight)
    features = torch.randn(4, 8, 14, 14)
    assert torch.equal(block(features.clone()), features)


def test_a_block_is_the_sum_of_its_two_branches() -> None:
    torch.manual_seed(0)
    block = Block(4, 6, stride=2).eval()
    features = torch.randn(2, 4, 14, 14)
    active = features.div((1 + 1e-5) ** 0.5).relu()  # an untrained norm has running mean 0 and variance 1
    inner = F.conv2d(active, block.conv1.weight, stride=2, padding=1).div((1 + 1e-5) ** 0.5).relu()
    assert block.shortcut is not None
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(features), expected)
    assert expected.shape == (2, 6, 7, 7)


def test_the_sizes_of_the_resnet_are_arguments() -> None:
    model = models.build("resnet", channels=[4, 8, 16], blocks=1)
    assert isinstance(model, ResNet)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [block.conv1.stride for block in blocks] == [(1, 1), (2, 2), (2, 2)]
    assert [block.shortcut is None for block in blocks] == [True, False, False]
    assert model.features(torch.randn(2, 1, 28, 28)).shape == (2, 16, 4, 4)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_a_dropout_of_1_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"dropout must be < 1, but got 1\.0"):
        models.build(name, dropout=1.0)
