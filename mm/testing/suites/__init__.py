"""The conformance suite of each kind of part: what it must hold to. Imports `mm.core` and `mm.runtime`, and no part."""
