"""Metrics and logs. Labels are names from the configuration, never values from outside; no secrets."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import Counter, Gauge, Histogram

EPOCHS = Counter("crossmargin_epochs_total", "Epochs by outcome", ["outcome"])
EPOCH_SECONDS = Histogram(
    "crossmargin_epoch_leg_seconds",
    "Time spent per leg of an epoch",
    ["leg"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LATENCY = Histogram(
    "crossmargin_latency_seconds",
    "Measured legs until a certificate or a hold lands; chain * is no chain's own",
    ["leg", "chain"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 900, 1800, 3600),
)
EPOCH_NUMBER = Gauge("crossmargin_epoch", "The newest certified epoch")
CHAIN_AGE = Gauge("crossmargin_chain_age_seconds", "Age of a chain's pinned block at the cut", ["chain"])
NOT_KEPT = Counter(
    "crossmargin_not_kept_total", "Epochs whose readings or measurements the store did not take", ["what"]
)
CUT_SKEW = Gauge("crossmargin_cut_skew_seconds", "Seconds between the oldest and the newest block of a Cut")
CARRIED = Gauge("crossmargin_carried_accounts", "Accounts carried from an older block of the chain", ["chain"])
FLOOR = Gauge("crossmargin_floor_epoch", "Statements below this epoch are void after a reorganisation; 0 = none")
HALTED_CHAINS = Gauge(
    "crossmargin_chain_halted",
    "1 while a reorganisation below finality halts the chain for the coordinator; attestors keep flags of their own",
    ["chain"],
)
READ_FAILURES = Counter("crossmargin_read_failures_total", "Chains not read in an epoch", ["chain"])
DISPUTES = Counter(
    "crossmargin_disputes_total",
    "Answers that differ from what other providers of the chain say, as each party of the process saw them",
    ["chain", "provider"],
)
PRICE_FAILURES = Counter(
    "crossmargin_price_failures_total", "Epochs without a usable update of a publisher", ["source"]
)
REFUSALS = Counter("crossmargin_refusals_total", "Attestors that refused or were late", ["attestor", "rule"])
UNHEALTHY = Gauge("crossmargin_accounts", "Accounts by status at the newest epoch", ["status"])
POSTINGS = Counter("crossmargin_postings_total", "Postings by destination and outcome", ["destination", "state"])


def configure_logging(*, json_lines: bool, level: str = "INFO") -> None:
    """Send structured logs to stderr; libraries only speak from WARNING on."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    # Plain tracebacks only: the fancy ones print the frames' local variables, and provider URLs carry keys.
    renderers: tuple[structlog.typing.Processor, ...] = (
        (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
        if json_lines
        else (
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # as it is when something is said
        cache_logger_on_first_use=False,
    )
