"""The conformance suites: the checks that every part of a kind must pass. Imports `mm.core` and `mm.runtime`, and no part."""
