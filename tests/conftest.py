"""What pytest has to know before it collects."""

import pytest

pytest.register_assert_rewrite("drawing", "peers", "rollout_cases")
