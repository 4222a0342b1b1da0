"""Environment variables that turn off every library's telemetry. Set them before the libraries are imported."""

from __future__ import annotations

OFF: dict[str, str] = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}
"""The variables and their values. `deploy/settings` exports the same ones; a test compares the two."""
