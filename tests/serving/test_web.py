"""Test the HTTP interface without Ray: replies, refusals, limits and the security of its pages."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_pipe.data.pictures import FORMATS
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.inference.classifier import Predictions
from mnist_pipe.params import loader
from mnist_pipe.params.schema import ServeParams
from mnist_pipe.serving import web
from mnist_pipe.serving.access import digest
from mnist_pipe.serving.bodies import PICTURES, Images
from mnist_pipe.serving.follower import Follower, Served
from tests.support import ROOT
from tests.support.registry import NAME
from tests.support.serving import JSON, PNG, RAW, promote

TOKEN = "a-token"
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
Request = Callable[..., httpx.Response]


class InProcess:
    """What stands behind the interface, in the process of the test."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.counted: list[int] = []
        self.error: Exception | None = None

    async def classify(self, images: NDArray[np.uint8]) -> tuple[Served, Predictions]:
        if self.error:
            raise self.error
        return self.follower.served, self.follower.served.classifier.predict(images)

    async def saliency(self, served: Served, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [served.classifier.saliency(image) for image in images]

    async def prepare(self, work: Callable[[], Images]) -> Images:
        return work()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def state(self) -> tuple[Served, str]:
        return self.follower.served, self.follower.problem

    def count(self, *, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.counted.append(status)


@pytest.fixture
def answers(registry_root: Path) -> InProcess:
    promote(registry_root, 1, errors=60)
    return InProcess(Follower(f"{NAME}@champion", root=registry_root, log=logging.getLogger("ray.serve")))


@pytest.fixture
def params() -> ServeParams:
    return loader.load(ROOT / "params.yaml", names=None).serve


@pytest.fixture
def request_(answers: InProcess, params: ServeParams) -> Request:
    """Function that sends a request with the token; `limits` replaces parameters."""

    def send(
        method: str, path: str, kind: str = "", limits: dict[str, Any] | None = None, **options: Any
    ) -> httpx.Response:
        app = web.build(answers, params=params.model_copy(update=limits or {}), token_sha256=digest(TOKEN))
        headers = {"Authorization": f"Bearer {TOKEN}", **({"Content-Type": kind} if kind else {})}
        options["headers"] = {**headers, **options.get("headers", {})}

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    return send


def refusal(reply: httpx.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    message: str = reply.json()["error"]
    assert len(message.splitlines()) == 1
    return message


def test_a_reply_has_the_models_answer_for_each_image(request_: Request, answers: InProcess) -> None:
    reply = request_("POST", "/predict", RAW, content=IMAGES.tobytes()).json()
    assert reply["model"] == {"name": NAME, "version": 1}
    expected = answers.follower.served.classifier.predict(IMAGES)
    for number, found in enumerate(reply["predictions"]):
        assert found["label"] == expected.classes[number]
        assert found["name"] == expected.labels[number]
        assert found["probability"] == max(found["probabilities"])
        np.testing.assert_allclose(found["probabilities"], expected.probabilities[number], atol=1e-6)
        assert base64.b64decode(found["seen"]) == IMAGES[number].tobytes()
        assert "saliency" not in found
    assert answers.counted == [200]


def test_a_saliency_map_is_the_models_gradient(request_: Request, answers: InProcess) -> None:
    [found] = request_("POST", "/predict?saliency=true", RAW, content=IMAGES[0].tobytes()).json()["predictions"]
    expected = np.rint(255 * answers.follower.served.classifier.saliency(IMAGES[0])).astype(np.uint8)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found["saliency"]), np.uint8), expected.ravel())


def test_an_unsure_answer_has_no_label(request_: Request) -> None:
    sure = request_("POST", "/predict", RAW, content=IMAGES.tobytes()).json()["predictions"]
    middle = float(np.median([found["probability"] for found in sure]))
    asked = request_("POST", f"/predict?min_confidence={middle}", RAW, content=IMAGES.tobytes()).json()["predictions"]
    for found, expected in zip(asked, sure, strict=True):
        abstains = expected["probability"] < middle
        assert (found["label"], found["name"]) == ((None, None) if abstains else (expected["label"], expected["name"]))
        assert found["probabilities"] == expected["probabilities"]


@pytest.mark.parametrize("value", ["2", "-0.1", "nan", "much"])
def test_a_bad_confidence_is_refused(value: str, request_: Request) -> None:
    reply = request_("POST", f"/predict?min_confidence={value}", RAW, content=IMAGES.tobytes())
    assert re.fullmatch(rf"the query: min_confidence must be .*, but got '{value}'", refusal(reply, 422))


@pytest.mark.parametrize(("method", "path"), [("POST", "/predict"), ("GET", "/model")])
def test_the_token_is_required(method: str, path: str, request_: Request) -> None:
    for header, got in (("", "another one"), ("Bearer nope", "another one"), (f"Basic {TOKEN}", "another one")):
        reply = request_(method, path, RAW, headers={"Authorization": header}, content=b"")
        expected = (
            f"{path}: the token must be the endpoint's, but got {got}; send the header Authorization: Bearer TOKEN"
        )
        assert refusal(reply, 401) == expected
        assert reply.headers["WWW-Authenticate"] == "Bearer"


def test_health_pages_and_the_document_need_no_token(request_: Request) -> None:
    for path in ("/", "/docs", "/healthz", "/openapi.json"):
        assert request_("GET", path, headers={"Authorization": ""}).status_code == 200, path


@pytest.mark.parametrize("announced", [True, False])
def test_a_long_body_is_refused_before_it_is_read(announced: bool, request_: Request) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield bytes(1000)

    headers = {"Content-Length": "100000"} if announced else {}
    reply = request_("POST", "/predict", RAW, {"max_body_bytes": 5000}, content=body(), headers=headers)
    got = 100000 if announced else 6000
    assert refusal(reply, 413) == f"the body: its length must be at most 5000 bytes, but got {got} bytes"
    assert read <= 100


def test_a_body_of_another_type_is_refused(request_: Request) -> None:
    message = refusal(request_("POST", "/predict", "text/plain", content=b"7"), 415)
    assert message.startswith("/predict: Content-Type must be one of image/png, image/jpeg, image/bmp, ")
    assert message.endswith(", but got 'text/plain'")


def test_the_type_of_a_body_may_have_parameters(request_: Request) -> None:
    body = json.dumps(IMAGES[0].tolist()).encode()
    assert request_("POST", "/predict", f"{JSON}; charset=utf-8", content=body).status_code == 200


def test_a_bad_body_is_a_400_and_counted(request_: Request, answers: InProcess) -> None:
    message = refusal(request_("POST", "/predict", PNG, content=b"no picture"), 400)
    assert message == f"the body: the content must be {FORMATS}, but got bytes that start with b'no pictu'"
    assert answers.counted == [400]


def test_more_requests_than_the_limit_are_refused(answers: InProcess, params: ServeParams) -> None:
    app = web.build(answers, params=params.model_copy(update={"requests_per_second": 3.0}), token_sha256="")

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            headers = {"Content-Type": RAW}
            return [await client.post("/predict", content=IMAGES.tobytes(), headers=headers) for _ in range(6)]

    replies = asyncio.run(run())
    assert [reply.status_code for reply in replies[:3]] == [200] * 3
    assert replies[-1].headers["Retry-After"] == "1"
    message = "/predict: requests must be at most 3 a second, but got more; try again in a second"
    assert refusal(replies[-1], 429) == message


def test_a_model_that_fails_is_a_500_in_one_line(request_: Request, answers: InProcess) -> None:
    answers.error = CorruptDataError.invalid("the model", "every logit", "be finite", got="nan")
    expected = "the model: every logit must be finite, but got nan"
    assert refusal(request_("POST", "/predict", RAW, content=IMAGES.tobytes()), 500) == expected
    answers.error = RuntimeError("something\nelse")
    message = refusal(request_("POST", "/predict", RAW, content=IMAGES.tobytes()), 500)
    assert message == "RuntimeError: something else"


@pytest.mark.parametrize(("method", "path"), [("GET", "/predict"), ("POST", "/model"), ("GET", "/admin")])
def test_an_unknown_request_names_the_known_ones(method: str, path: str, request_: Request) -> None:
    reply = request_(method, path)
    expected = f"{path}: the request must be one of POST /predict, GET /model, GET /healthz, but got {method}"
    assert refusal(reply, reply.status_code) == expected
    assert reply.status_code in (404, 405)


def test_the_model_is_described(request_: Request) -> None:
    found = request_("GET", "/model").json()
    assert (found["name"], found["version"], found["accuracy"]) == (NAME, 1, 0.75)
    assert found["labels"] == [str(digit) for digit in range(10)]
    assert (found["shape"], found["resize"]) == ([28, 28], "digit_box")
    assert found["problem"] is None


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_and_its_policy_admits_only_its_own_script(path: str, request_: Request) -> None:
    reply = request_("GET", path)
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", reply.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        assert policy[f"{tag}-src"] == (" ".join(f"'sha256-{value}'" for value in hashes) or "'none'")
    assert "unsafe" not in reply.headers["Content-Security-Policy"]
    assert not re.findall(r"""(?:src|href)=["'](?!data:|docs|openapi\.json|\./)[^"']*""", reply.text)
    assert " style=" not in reply.text
    assert not re.search(r"\son\w+=", reply.text)


def test_the_document_describes_every_request(request_: Request) -> None:
    schema = request_("GET", "/openapi.json").json()
    assert {(path, *methods) for path, methods in schema["paths"].items()} == {
        ("/predict", "post"),
        ("/model", "get"),
        ("/healthz", "get"),
    }
    predict = schema["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {*PICTURES, JSON, RAW}
    assert {"200", "400", "401", "413", "415", "422", "429"} <= set(predict["responses"])
    assert predict["security"]
    text = request_("GET", "/docs").text
    for word in ("POST /predict", "GET /model", "min_confidence", "saliency", *predict["requestBody"]["content"]):
        assert word in text, word
