"""The device of the tests that need a GPU."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

VARIABLE = "MNIST_PIPE_TEST_DEVICE"
"""Variable that tries the tests' own code on another device: `cpu`."""


@pytest.fixture
def gpu() -> torch.device:
    """The GPU; without one, the test is skipped."""
    device = torch.device(os.environ.get(VARIABLE, "cuda"))
    if device.type == "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a driver that is too old, as the doctor says
            if not torch.cuda.is_available():
                pytest.skip("no GPU that torch can use")
    return device


@pytest.fixture
def cuda(gpu: torch.device) -> torch.device:
    """The GPU, for a test that says nothing on another device."""
    if gpu.type != "cuda":
        pytest.skip(f"{VARIABLE} is {gpu}")
    return gpu
