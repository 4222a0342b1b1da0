"""The variables that turn off the telemetry of every library. Set them before the libraries are imported."""

from __future__ import annotations

OFF: dict[str, str] = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}
"""`deploy/settings` exports the same; a test compares the two."""
