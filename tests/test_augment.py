"""Test batched augmentation against torchvision, image by image."""

from __future__ import annotations

import math

import pytest
import torch

from mnist_pipe.data import augment


def _image() -> torch.Tensor:
    """Return a digit-like blob without symmetry, float32 `(1, 1, 28, 28)`."""
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 6:20, 12:16] = 1.0
    image[0, 0, 6:9, 12:22] = 0.5
    return image


def test_the_identity_keeps_the_image() -> None:
    image = _image()
    torch.testing.assert_close(augment.affine(image, torch.zeros(1, 3), background=0.0), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-4, 1)])
def test_a_shift_by_whole_pixels_moves_the_pixels(right: int, down: int) -> None:
    image = _image()
    moved = augment.affine(image, torch.tensor([[0.0, right, down]]), background=0.0)
    torch.testing.assert_close(moved, torch.roll(image, (down, right), dims=(2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("degrees", "right", "down"), [(90, 0, 0), (10, 0, 0), (-7, 2, -1), (30, -3, 2)])
def test_agrees_with_torchvision(degrees: float, right: int, down: int) -> None:
    from benchmarks.vision import transforms

    image = _image()
    ours = augment.affine(image, torch.tensor([[math.radians(degrees), right, down]]), background=0.0)
    theirs = transforms.functional.affine(
        image,
        angle=degrees,
        translate=[right, down],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=transforms.InterpolationMode.BILINEAR,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_pixels_from_outside_the_image_are_background() -> None:
    image = torch.full((1, 1, 28, 28), -0.4242)
    moved = augment.affine(image, torch.tensor([[0.5, 6.0, -6.0]]), background=-0.4242)
    torch.testing.assert_close(moved, image)


def test_draws_stay_within_their_bounds_and_fill_them() -> None:
    generator = torch.Generator().manual_seed(0)
    moves = augment.draw(10_000, rotation_degrees=10.0, translation_pixels=2.0, generator=generator)
    bounds = torch.tensor([math.radians(10.0), 2.0, 2.0])
    assert (moves.abs() <= bounds).all()
    assert (moves.abs().amax(0) > 0.99 * bounds).all()
    assert (moves.mean(0).abs() < 0.05 * bounds).all()


def test_each_image_gets_its_own_transformation() -> None:
    images = _image().expand(5, 1, 28, 28)
    moves = torch.tensor([[0.0, shift, 0.0] for shift in range(5)])
    moved = augment.affine(images, moves, background=0.0)
    for shift in range(5):
        torch.testing.assert_close(moved[shift], torch.roll(images[shift], shift, dims=2), atol=1e-5, rtol=0)
