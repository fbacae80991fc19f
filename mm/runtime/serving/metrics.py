"""The numbers of a server for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mm.runtime.serving.models import ServedModels

_FIRST = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_BETWEEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Metrics:
    """The counters of one server, in a registry of their own, so that two servers in a process do not mix them."""

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OpenCompletions(models))
        self.requests = Counter("mm_requests", "Answered requests.", ["path", "status"], registry=self.registry)
        self.prompt_tokens = Counter("mm_prompt_tokens", "Tokens of prompts.", ["model"], registry=self.registry)
        self.cached_tokens = Counter(
            "mm_cached_prompt_tokens", "Tokens of prompts that the cache had already.", ["model"], registry=self.registry
        )
        self.completion_tokens = Counter("mm_completion_tokens", "Generated tokens.", ["model"], registry=self.registry)
        self.finished = Counter(
            "mm_completions", "Completions by the reason of their end.", ["model", "finish_reason"], registry=self.registry
        )
        self.cut_readers = Counter("mm_cut_readers", "Streams whose reader took nothing for too long.", registry=self.registry)
        self.first = Histogram(
            "mm_time_to_first_token_seconds", "From the request to its first token.", ["model"], buckets=_FIRST,
            registry=self.registry,
        )  # fmt: skip
        self.between = Histogram(
            "mm_inter_token_seconds", "Between the tokens of a completion.", ["model"], buckets=_BETWEEN, registry=self.registry
        )

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)

    def clock(self, model: str) -> Clock:
        """The clock of one request's completions."""
        return Clock(self, model)


@attrs.define(eq=False)
class Clock:
    """Measures the tokens of the completions of one request, from now on."""

    metrics: Metrics
    model: str
    _last: dict[int, float] = attrs.field(factory=dict)
    _start: float = attrs.field(factory=time.perf_counter)

    def tokens(self, index: int, count: int) -> None:
        """Take `count` new tokens of completion `index` into account."""
        if not count:
            return
        now, last = time.perf_counter(), self._last.get(index)
        if last is None:
            self.metrics.first.labels(self.model).observe(now - self._start)
        else:
            for _ in range(count):
                self.metrics.between.labels(self.model).observe((now - last) / count)
        self._last[index] = now
        self.metrics.completion_tokens.labels(self.model).inc(count)

    def ended(self, prompt_tokens: int, cached_tokens: int, reasons: Sequence[str]) -> None:
        """Take the end of the request into account."""
        self.metrics.prompt_tokens.labels(self.model).inc(prompt_tokens)
        self.metrics.cached_tokens.labels(self.model).inc(cached_tokens)
        for reason in reasons:
            self.metrics.finished.labels(self.model, reason).inc()


@attrs.frozen
class _OpenCompletions(Collector):
    """The completions that are open at the moment when the numbers are read."""

    models: ServedModels

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        gauge = GaugeMetricFamily("mm_open_completions", "Completions that run or wait.", labels=["model"])
        for opened in self.models.opened():
            gauge.add_metric([opened.name], opened.loop.open)
        yield gauge
