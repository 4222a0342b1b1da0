"""Stage `evaluate`: metrics and plots of the candidate and the baseline on the validation and the test split.

No other stage evaluates a model on the test split, and nothing is chosen by the results on it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.evaluation import markdown
from mnist_pipe.params.schema import EvaluateParams

if TYPE_CHECKING:
    from mnist_pipe.evaluation.metrics import CalibrationBins

SPLITS = ("validation", "test")
THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
"""Smallest confidences whose coverage and accuracy the report lists."""
Metrics = dict[str, Any]


@flow
def evaluate(params: EvaluateParams) -> None:
    """Write the predictions, the metrics and the plots."""
    with workspace():
        by_split = {split: score_split(split, params) for split in SPLITS}
        evaluation = summarise(by_split, params)
        draw(params, by_split["test"]["uncalibrated_bins"])
        test, baseline = evaluation["test"], evaluation["baseline"]["test"]
        headline = (
            f"{evaluation['model']} on the test split of {evaluation['dataset']}: {test['accuracy']:.2%} "
            f"({params.confidence:.0%} interval {test['interval'][0]:.2%} to {test['interval'][1]:.2%}), "
            f"baseline {baseline['accuracy']:.2%}"
        )
        get_run_logger().info(headline)
        text = f"{markdown.plain(headline)}."
        create_markdown_artifact(text, key="evaluation", description="Headline of the evaluation")
        create_table_artifact(evaluation["per_class"], key="per-class", description="Test split, by actual class")


@task
def score_split(split: str, params: EvaluateParams) -> Metrics:
    """Evaluate both models on a split, and write every prediction.

    Returns:
        The metrics of both models, McNemar's test, and the candidate's metrics and reliability at temperature 1.
    """
    import numpy as np

    from mnist_pipe import atomic, hardware
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.evaluation import metrics
    from mnist_pipe.evaluation.predictions import predict, write_predictions
    from mnist_pipe.evaluation.significance import mcnemar
    from mnist_pipe.models import forward, saved

    hardware.limit_threads()
    data = read_normalized(paths.NORMALIZED / f"{split}.parquet")
    models = {"candidate": paths.CANDIDATE, "baseline": paths.BASELINE}
    logits = {name: forward.logits(saved.load_model(folder)[0], data.images) for name, folder in models.items()}
    temperature = atomic.read_json(paths.CANDIDATE / paths.CARD).get("temperature", 1.0)
    predictions = predict(
        logits["candidate"], logits["baseline"], labels=data.labels, index=data.index, provenance=data.provenance
    )
    write_predictions(paths.PREDICTIONS / f"{split}.parquet", predictions)
    options: Metrics = {"confidence": params.confidence, "num_bins": params.num_calibration_bins}
    comparison = mcnemar(predictions.correct, predictions.baseline_correct, alternative="greater")
    raw = logits["candidate"] * temperature
    by_model = {
        name: asdict(metrics.compute_metrics(output, data.labels, **options))
        for name, output in {**logits, "uncalibrated": raw}.items()
    }
    bins = metrics.calibration_bins(
        np.exp(metrics.log_probabilities(raw, where="the candidate's output").max(axis=1)),
        predictions.correct,
        num_bins=params.num_calibration_bins,
    )
    return {**by_model, "uncalibrated_bins": bins, "mcnemar": asdict(comparison)}


@task
def summarise(by_split: dict[str, Metrics], params: EvaluateParams) -> Metrics:
    """Write `reports/evaluation.json`, `metrics.json` and `confusion.csv`, and return the content of the first."""
    import numpy as np
    import pandas as pd

    from mnist_pipe import atomic
    from mnist_pipe.data.facts import Facts
    from mnist_pipe.data.parquet import read_provenance
    from mnist_pipe.evaluation import metrics
    from mnist_pipe.evaluation.predictions import read_predictions

    provenance = read_provenance(paths.NORMALIZED / "test.parquet")
    test = read_predictions(paths.PREDICTIONS / "test.parquet")
    facts = Facts.of(provenance)
    matrix = metrics.confusion_matrix(test.label, test.prediction, num_classes=facts.num_classes)
    card = atomic.read_json(paths.CANDIDATE / paths.CARD)
    evaluation = {
        "dataset": provenance["dataset"],
        "fallback_for": provenance.get("fallback_for"),
        "model": card["model"],
        "confidence": params.confidence,
        **{split: scores["candidate"] for split, scores in by_split.items()},
        "baseline": {split: scores["baseline"] for split, scores in by_split.items()},
        "mcnemar_against_baseline": {split: scores["mcnemar"] for split, scores in by_split.items()},
        "calibration": {
            "temperature": card.get("temperature", 1.0),
            **{
                split: {key: scores["uncalibrated"][key] for key in ("nll", "calibration_error")}
                for split, scores in by_split.items()
            },
        },
        "coverage": [
            asdict(one) for one in metrics.compute_coverage(test.probability, test.correct, thresholds=THRESHOLDS)
        ],
        "per_class": [asdict(one) for one in metrics.compute_class_metrics(matrix, names=facts.labels)],
    }
    atomic.write_json(paths.EVALUATION, evaluation)
    atomic.write_json(paths.METRICS, _headline(evaluation))
    names = np.array(facts.labels)
    pairs = pd.DataFrame({"actual": names[test.label], "predicted": names[test.prediction]})
    atomic.write_bytes(paths.CONFUSION, pairs.to_csv(index=False, lineterminator="\n").encode())
    return evaluation


def _headline(evaluation: Metrics) -> Metrics:
    """Return the metrics that tell two runs apart, few enough for a line of a terminal."""
    test, validation = evaluation["test"], evaluation["validation"]
    low, high = test["interval"]
    return {
        "test": {
            "accuracy": test["accuracy"],
            "low": round(low, 5),
            "high": round(high, 5),
            "errors": test["num_rows"] - test["num_correct"],
            "nll": round(test["nll"], 5),
            "ece": round(test["calibration_error"], 5),
        },
        "validation": {"accuracy": validation["accuracy"]},
        "baseline": {"accuracy": evaluation["baseline"]["test"]["accuracy"]},
    }


@task
def draw(params: EvaluateParams, uncalibrated: CalibrationBins) -> None:
    """Draw every plot of `reports/plots`; `uncalibrated` is the candidate's reliability on test at temperature 1."""
    import numpy as np
    import pandas as pd

    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.evaluation import metrics, plots
    from mnist_pipe.evaluation.predictions import read_predictions
    from mnist_pipe.models import saved

    test, data = read_predictions(paths.PREDICTIONS / "test.parquet"), read_normalized(paths.SPLITS["test"])
    names, shape = data.facts.labels, data.facts.shape
    matrix = metrics.confusion_matrix(test.label, test.prediction, num_classes=len(names))
    classes = metrics.compute_class_metrics(matrix, names=names)
    bins = metrics.calibration_bins(test.probability, test.correct, num_bins=params.num_calibration_bins)
    weights = next(p for p in saved.load_model(paths.BASELINE)[0].parameters() if p.ndim == 2)
    plots.draw_confusion(paths.PLOTS / "confusion.png", matrix, names=names)
    plots.draw_classes(paths.PLOTS / "classes.png", classes, confidence=params.confidence)
    plots.draw_reliability(
        paths.PLOTS / "reliability.png", bins, uncalibrated=uncalibrated, confidence=params.confidence
    )
    plots.draw_coverage(paths.PLOTS / "coverage.png", test.probability, test.correct)
    templates = weights.detach().numpy().astype(np.float32)
    plots.draw_templates(paths.PLOTS / "templates.png", templates, shape=shape, names=names)
    plots.draw_curves(paths.PLOTS / "curves.png", pd.read_csv(paths.CURVES))
    trials = pd.read_csv(paths.TRIALS)
    plots.draw_search(paths.PLOTS / "search.png", trials)
    plots.draw_rates(paths.PLOTS / "rates.png", trials)
    plots.draw_mistakes(
        paths.PLOTS / "mistakes.png",
        data.images,
        labels=test.label,
        predictions=test.prediction,
        probabilities=test.probability,
        num_worst=params.num_worst_mistakes,
        names=names,
    )
