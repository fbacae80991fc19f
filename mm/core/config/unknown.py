"""Keys that no selected part has: the parts that have them, and close matches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mm.core.config.sections import PREFIXED, section_of
from mm.core.errors import UsageError, close_match
from mm.core.layers import ENVIRONMENT, Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, SourceSpec
from mm.core.spec import Spec


def check_keys(plugins: PluginManager, options: Iterable[Option], layers: Sequence[Layer], algo: str = "") -> list[str]:
    """Raise UsageError for a key that no selected part has. Returns warnings for lenient layers' keys of other parts."""
    known = {option.key for option in options}
    warnings = []
    for layer in layers:
        for key in [key for key in layer.values if key not in known]:
            message, foreign = unknown_option(plugins, key, known, algo)
            if not (layer.lenient and foreign):
                raise UsageError(f"{message} (from {f'the keyword {key}' if layer.arguments else layer.origin})")
            name = f"{ENVIRONMENT}{key.upper()}" if layer.textual else f"{key} of {layer.origin}"
            warnings.append(f"{name} is not used: {message}")
    return warnings


def unknown_option(plugins: PluginManager, key: str, known: Iterable[str], algo: str = "") -> tuple[str, bool]:
    """The message for an unknown flat key in a run of algorithm `algo`, and True if another installed part has the key."""
    flag = "--" + key.replace("_", "-")
    records: tuple[type[Spec], ...] = (AlgorithmSpec, SourceSpec, *(record for record, _ in PREFIXED))
    specs = [spec for record in records for spec in plugins.specs(record) if spec.config]
    if owners := [(spec, option) for spec in specs for option in section_of(spec).options if option.key == key]:
        names = ", ".join(f"{spec.kind} {spec.name!r}" for spec, _ in owners)
        loaded = "--" + owners[0][1].field.replace("_", "-")
        way = f" A trained model takes it by 'mm convert MODEL OUT {loaded} VALUE'." if owners[0][1].info.on_load else ""
        return f"{flag} is an option of {names}{f'; this run uses algorithm {algo!r}' if algo else ''}.{way}", True
    bare = key.removeprefix(f"{algo.replace('-', '_')}_")
    if bare != key and bare in known:
        own = "--" + bare.replace("_", "-")
        return f"No such option: {flag}. An algorithm's options are bare: {own}, in a file {bare} above all tables.", False
    own_config = next((spec.config for spec in specs if algo and (spec.kind, spec.name) == ("algorithm", algo)), None)
    if reason := getattr(own_config, "refused_options", {}).get(key):
        return f"{flag}: {reason}.", False
    return f"No such option: {flag}.{close_match(flag, ['--' + k.replace('_', '-') for k in known])}", False
