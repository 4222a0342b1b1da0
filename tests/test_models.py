"""Test the contract of every entry of MODELS; a new model needs no test of its own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.errors import InputError
from mnist_pipe.models import MODELS

# Counted by hand from the layers: in*out + out for a dense layer, k*k*in*out (+ out) for a convolution.
PARAMETERS = {
    "linear": 784 * 10 + 10,
    "mlp": (784 * 15 + 15) + (15 * 10 + 10),
    "lenet5": (25 * 6 + 6) + (25 * 6 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10),
    "lenet1": 4 * 26 + 4 * 2 + (20 * 25 + 12) + 12 * 2 + (192 * 10 + 10),
    "lenet4": 4 * 26 + 8 * 2 + (60 * 25 + 16) + 16 * 2 + (560 * 25 + 120) + (120 * 10 + 10),
    "lenet5_rbf": 156 + 12 + 1_516 + 32 + 48_120 + 10_164,  # layer by layer, as in the paper
    "cnn": (9 * 32 + 32) + (9 * 32 * 64 + 64) + (64 * 14 * 14 * 128 + 128) + (128 * 10 + 10),
    "convnet": 9 * 16 + 9 * 16 * 32 + 9 * 32 * 64 + 2 * (16 + 32 + 64) + (64 * 3 * 3 * 10 + 10),
    "resnet": 9 * 32  # the first convolution, which has no bias, like the others
    + 2 * (2 * 9 * 32 * 32 + 2 * 2 * 32)
    + (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 2 * (32 + 64))  # the shortcut of the widening block is 1x1
    + (2 * 9 * 64 * 64 + 2 * 2 * 64)
    + (2 * 64 + 64 * 10 + 10),
}


def test_a_cropped_convnet_ignores_the_border() -> None:
    model = models.build("convnet", channels=[4, 8], crop=3).eval()
    image = torch.randn(1, 1, 28, 28)
    other = image.clone()
    other[..., :3, :] = other[..., -3:, :] = other[..., :, :3] = other[..., :, -3:] = 9.0
    assert torch.equal(model(image), model(other))
    other[..., 3, 3] += 9.0
    assert not torch.equal(model(image), model(other))


def test_convnet_arguments_set_convolutions_per_block_and_the_last_pool() -> None:
    def count(**arguments: object) -> int:
        return sum(parameter.numel() for parameter in models.build("convnet", **arguments).parameters())

    twice = 9 * 4 + 9 * 4 * 4 + 9 * 4 * 8 + 9 * 8 * 8 + 2 * (4 + 4 + 8 + 8) + (8 * 7 * 7 * 10 + 10)
    assert count(channels=[4, 8], convolutions=2) == twice
    # 22 pixels after the crop, 20 after the first convolution, which is not padded, and 10 after the only pool.
    assert count(channels=[4, 8], crop=3, last_pool=False) == 9 * 4 + 9 * 4 * 8 + 2 * (4 + 8) + (8 * 10 * 10 * 10 + 10)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_maps_a_batch_of_images_to_ten_logits_each(name: str) -> None:
    assert models.build(name)(torch.randn(3, 1, 28, 28)).shape == (3, 10)


def test_ends_in_logits_and_not_in_probabilities(name: str) -> None:
    model = models.build(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    outputs = model(torch.randn(64, 1, 28, 28))
    assert (outputs < 0).any()
    assert (outputs > 1).any()


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = models.build(name)
    F.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.arange(8)).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_overfits_32_images(name: str) -> None:
    torch.manual_seed(0)
    model, images, labels = models.build(name), torch.randn(32, 1, 28, 28), torch.arange(32) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        logits = model(images)
        if (logits.argmax(1) == labels).all():
            return
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    pytest.fail("80 steps are not enough")


def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(models.build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_prediction_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    model = models.build(name).eval()
    images = torch.randn(16, 1, 28, 28)
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


def test_has_the_known_number_of_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in models.build(name).parameters()) == PARAMETERS[name]


def test_hidden_sizes_set_the_layers_of_the_mlp() -> None:
    model = models.build("mlp", hidden=[300, 100], activation="tanh")
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(300, 784), (100, 300), (10, 100)]
    assert any(isinstance(module, torch.nn.Tanh) for module in model.modules())


def test_a_cropped_mlp_ignores_the_border() -> None:
    model, image = models.build("mlp", hidden=[300], crop=4), torch.randn(1, 1, 28, 28)
    assert sum(parameter.numel() for parameter in model.parameters()) == 400 * 300 + 300 + 300 * 10 + 10
    assert torch.equal(model(image), model(F.pad(image[..., 4:24, 4:24], (4, 4, 4, 4))))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lenet", {}, f"models: model must be one of {', '.join(sorted(MODELS))}, but got 'lenet'; "
         "did you mean 'lenet5'?"),
        ("mlp", {"hiden": [3]}, "params.yaml: models.mlp.hiden must be a known key, but got 'hiden'; "
         "did you mean 'hidden'?"),
        ("mlp", {"activation": "rely"}, "params.yaml: models.mlp.activation must be one of sigmoid, tanh, relu, "
         "but got 'rely'; did you mean 'relu'?"),
        ("mlp", {"hidden": 15}, "params.yaml: models.mlp.hidden must be a list, but got 15"),
        ("mlp", {"hidden": "15"}, "params.yaml: models.mlp.hidden must be a list, but got '15'"),
        ("convnet", {"channels": [0]}, "params.yaml: models.convnet.channels[0] must be >= 1, but got 0"),
        ("linear", {"width": 3}, "params.yaml: models.linear.width must be a known key, but got 'width'; "
         "known here: none"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_argument_is_reported_in_one_line(
    name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        models.build(name, **arguments)
    assert str(caught.value) == message


def test_check_reports_every_error_at_once() -> None:
    with pytest.raises(InputError) as caught:
        models.check({"mlp": {"hidden": [-1]}, "convnet": {"chanels": [1]}})
    assert len(str(caught.value).splitlines()) == 2
