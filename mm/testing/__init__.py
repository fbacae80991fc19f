"""For authors of plugins: the conformance checks of each kind of part, and tiny models, tokenizers and runs for tests.

    def test_conformance():
        spec = plugin_manager("mm_focal").get(AlgorithmSpec, "focal")
        assert_passed(check_algorithm(spec))

Importing this package imports no torch, and no pytest: the fixtures are in `mm.testing.pytest_plugin`.
"""

from mm.testing.checks import (
    assert_passed,
    check_adapter,
    check_algorithm,
    check_architecture,
    check_backend,
    check_converter,
    check_part,
    check_reward,
    check_tool,
)
from mm.testing.checks_of_data import check_engine, check_format, check_source
from mm.testing.checks_of_runs import check_callbacks, check_command, check_recipe, check_stage, check_tracker
from mm.testing.plugins import fake_distribution, plugin_manager
from mm.testing.suites.check import Check
from mm.testing.tiny import tiny_model, tiny_rows, tiny_run, tiny_tokenizer, tiny_units

__all__ = [
    "Check", "assert_passed", "check_adapter", "check_algorithm", "check_architecture", "check_backend", "check_callbacks",
    "check_command", "check_converter", "check_engine", "check_format", "check_part", "check_recipe", "check_reward",
    "check_source", "check_stage", "check_tool", "check_tracker", "fake_distribution", "plugin_manager", "tiny_model",
    "tiny_rows", "tiny_run", "tiny_tokenizer", "tiny_units",
]  # fmt: skip
