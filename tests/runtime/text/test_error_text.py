"""An exception as a text: a KeyError says what is missing, and where if its line shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mm.runtime.text.wording import error_text


def asks(metrics: Mapping[str, Any], name: str) -> Any:
    return metrics[name]


def asks_for_los(metrics: Mapping[str, Any], name: str) -> Any:
    return metrics["los"]


def raises(metrics: Mapping[str, Any], name: str) -> Any:
    raise ValueError("not so")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (asks_for_los, "KeyError: there is no 'los' in metrics. Did you mean 'loss'?"), (asks, "KeyError: there is no 'los'"),
        (raises, "ValueError: not so"),
    ],
)  # fmt: skip
def test_a_missing_name_is_told_with_its_variable(function: Callable[..., Any], said: str) -> None:
    with pytest.raises((KeyError, ValueError)) as caught:
        function({"loss": 1.0}, "los")
    assert error_text(caught.value) == said


def test_an_error_that_was_not_raised_has_a_text() -> None:
    assert error_text(KeyError("los")) == "KeyError: there is no 'los'"
    assert error_text(KeyError()) == "KeyError: "
