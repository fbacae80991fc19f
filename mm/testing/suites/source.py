"""The checks that every source must pass: those of its rows, and those of its digest."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mm.runtime.data.source import Position
from mm.testing.suites.option_values import other_configs
from mm.testing.suites.running import about
from mm.testing.suites.source_rows import ROWS_READ, SourceRowsSuite
from mm.testing.suites.suite import options_of_part

_DIGESTS = """
import json, sys
from mm.core.discovery import import_plugin
module, name, locator, *kinds = sys.argv[1:]
record = next(record for record in import_plugin(module).mm_sources() if record.name == name)
made = {kind: record.load()(record.config() if record.config else None, locator, kind) for kind in kinds}
digests = {kind: source.digest() for kind, source in made.items()}
print("\\n" + json.dumps(digests), end="")
"""


class SourceSuite(SourceRowsSuite):
    """The checks of a source; see `SourceRowsSuite` for the arguments."""

    @about("digest")
    def check_digest(self) -> None:
        """`digest` is a text that two instances have alike, and that differs with the kind of rows that is asked for."""
        found = {}
        for kind in self.kinds:
            self.rows(kind)  # skips the check if the rows are not here
            sources = self.make(kind), self.make(kind)
            one, other = (source.digest() for source in sources)
            assert isinstance(one, str) and one, f"digest returns {one!r}"
            assert one == other, f"digest is {one} and then {other}: a run could never be resumed"
            found[kind] = one
        same = [kind for kind in found if list(found.values()).count(found[kind]) > 1]
        different = any(self.rows(a) != self.rows(b) for a, b in itertools.pairwise(same))
        assert not different, f"rows of the kinds {', '.join(same)} differ and have one digest: the token cache would mix them up"

    @about("digest")
    def check_digest_in_another_process(self) -> None:
        """`digest` is the same in another process: it does not depend on `hash()` of texts, on ids, or on the time."""
        self.rows(self.kinds[0])  # skips the check if the rows are not here
        self.require("check_digest")
        self.require("check_declaration_is_light")
        for kind, told in self._digests_elsewhere().items():
            own = self.make(kind).digest()
            differs = f"digest is {own} here and {told} in another process (where hash() of a text is another)"
            assert told == own, f"{differs}: no run could be resumed"

    @about("digest")
    def check_digest_and_options(self) -> str:
        """`digest` differs if another value of an option gives other rows."""
        self.require("check_digest")
        tried = []
        for option in options_of_part(self.record):
            assert self.record.config is not None
            changed = [config for config in other_configs(self.record.config(), option) if self._differs(config)]
            tried += [option.flag] if changed else []
            for config in changed:
                same = [kind for kind in self.kinds if self._rows_or_none(kind, config) != self.rows(kind)
                        and self.make(kind, config).digest() == self.make(kind).digest()]  # fmt: skip
                value = getattr(config, option.field)
                assert not same, f"{option.flag} {value} gives other rows and the same digest: the token cache would mix them up"
        return f"other rows with {', '.join(tried)}" if tried else "no option that gives other rows is known"

    def _digests_elsewhere(self) -> dict[str, str]:
        """The digests by kind, computed in a new process whose hashes of texts are others."""
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        words = (self.module, self.record.name, self.locator, *self.kinds)
        done = subprocess.run(
            [sys.executable, "-c", _DIGESTS, *words], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert done.returncode == 0, f"digest in another process: {done.stderr.strip().rpartition(chr(10))[2]}"
        found: dict[str, str] = json.loads(done.stdout.rpartition("\n")[2])
        return found

    def _differs(self, config: Any) -> bool:
        return any(found is not None and found != self.rows(kind)
                   for kind in self.kinds for found in [self._rows_or_none(kind, config)])  # fmt: skip

    def _rows_or_none(self, kind: str, config: Any) -> list[tuple[Position, Mapping[str, Any]]] | None:
        """The first rows with a config; None if they cannot be read, as with a path that does not exist."""
        try:
            return list(itertools.islice(self.make(kind, config).rows(), ROWS_READ))
        except Exception:
            return None
