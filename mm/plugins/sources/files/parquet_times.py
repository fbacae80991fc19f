"""Dates, times and durations of Parquet as text: Python has no nanoseconds, and no years after 9999."""

from __future__ import annotations

from typing import Any


def with_text_times(batch: Any) -> Any:
    """The record batch with all values of time types as text, also those inside of lists and structs."""
    import pyarrow

    texts = [_retyped(field.type, _text) for field in batch.schema]
    if all(text == field.type for text, field in zip(texts, batch.schema, strict=True)):
        return batch
    columns = [_cast(column, text) for column, text in zip(batch.columns, texts, strict=True)]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _cast(column: Any, text: Any) -> Any:
    import pyarrow

    try:
        return column.cast(text)
    except pyarrow.ArrowInvalid:  # a time zone that this system does not know
        return column.cast(_retyped(column.type, _without_zone)).cast(text)


def _retyped(kind: Any, leaf: Any) -> Any:
    """The Arrow type with `leaf` applied to every type inside."""
    import pyarrow
    from pyarrow import types

    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_retyped(field.type, leaf)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(_retyped(kind.key_type, leaf), _retyped(kind.item_type, leaf))
    for is_list, make in ((types.is_list, pyarrow.list_), (types.is_large_list, pyarrow.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(_retyped(kind.value_type, leaf)))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_retyped(kind.value_type, leaf)), kind.list_size)
    return leaf(kind)


def _text(kind: Any) -> Any:
    import pyarrow

    return pyarrow.string() if pyarrow.types.is_temporal(kind) and not pyarrow.types.is_interval(kind) else kind


def _without_zone(kind: Any) -> Any:
    import pyarrow

    return pyarrow.timestamp(kind.unit) if pyarrow.types.is_timestamp(kind) else kind
