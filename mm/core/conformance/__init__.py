"""The conformance kit: what every part of a kind must hold to. `mm.testing` is its public face."""
