"""The types of replies, for the OpenAPI document; the replies themselves are plain dictionaries."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from mnist_pipe.serving.bodies import JSON, PICTURES, RAW

_ARRAYS = "whole numbers from 0 to 255, one image or many, in the shape that GET /model has"
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES},
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "array"}}},
                    "description": f"{_ARRAYS}, as nested lists",
                },
            },
            RAW: {"schema": {"type": "string", "format": "binary", "description": f"{_ARRAYS}, as bytes"}},
        },
    }
}
"""The body of `POST /predict`, which FastAPI cannot derive from a signature."""


class Version(BaseModel):
    """The model that answered."""

    name: str
    version: int


class Prediction(BaseModel):
    """The answer for one image."""

    label: int | None = Field(description="number of the most probable class; null if the model abstains")
    name: str | None = Field(description="name of that class")
    probability: float = Field(description="probability of the most probable class")
    probabilities: list[float] = Field(description="probabilities of all classes; they sum to 1")
    seen: str = Field(description="the image that the network saw, in the shape of GET /model, as bytes in base64")
    saliency: str | None = Field(
        default=None, description="if asked for: how strongly each pixel moves the answer, a byte each, in base64"
    )


class Reply(BaseModel):
    """The answers for the images of a request, in their order."""

    model: Version
    predictions: list[Prediction]
    doubt: str | None = Field(description="why a picture may show something else than one digit on plain paper")


class Model(Version):
    """The model that serves."""

    content_sha256: str = Field(description="digest of weights and card")
    accuracy: float | None = Field(description="accuracy on the test split, as registered")
    dataset: str | None
    labels: list[str] = Field(description="names of the classes, in the order of the probabilities")
    shape: list[int] = Field(description="height and width of an image, in colour with the channels before them")
    resize: str = Field(description="how an image is made of a picture: digit_box, fit or stretch")
    problem: str | None = Field(description="why the version that the alias names does not serve, if it does not")


class Health(BaseModel):
    """The sign of life."""

    status: str
    model: str


class Failure(BaseModel):
    """What is wrong, in one line."""

    error: str
