"""Options: types, texts and errors; a Run as argv and as TOML and back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings, strategies as st

from mm.core.config.composition import Composition
from mm.core.errors import UsageError
from mm.core.layers import Layer, argument_layer, merge
from mm.core.options import Option, OptionInfo, Refused, build, coerce, option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.run import Run, read_toml
from mm.plugins.commands.train.command import TrainCommand
from mm.testing import plugin_manager


@attrs.frozen(kw_only=True)
class Config:
    """One field of each type."""

    switch: bool = option(False, help="A switch.")
    count: int = option(1, help="A count.", within="[0, inf)")
    rate: float = option(0.5, help="A rate.")
    word: str = option("", help="A word.")
    shape: str = option("round", help="A shape.", choices=("round", "square"))
    path: Path = option(Path("."), help="A path.")  # noqa: RUF009
    limit: int | None = option(None, help="A limit.")
    ratio: float | None = option(0.25, help="A ratio that can be switched off.")
    sizes: tuple[int, ...] = option((), help="Sizes.")
    names: tuple[str, ...] = option((), help="Names.")
    class_: str = option("a", help="A Python keyword.")


OPTIONS = {o.field: o for o in options_of(Config, section="part", prefix="my-part")}


def test_names() -> None:
    assert OPTIONS["count"].key == "my_part_count"
    assert OPTIONS["count"].flag == "--my-part-count"
    assert OPTIONS["class_"].flag == "--my-part-class"
    assert OPTIONS["limit"].optional
    assert OPTIONS["limit"].base_type is int
    assert [o.flag for o in options_of(Config, section="x")][:2] == ["--switch", "--count"]


def test_a_field_without_help_is_refused() -> None:
    bad = attrs.make_class("Bad", {"size": attrs.field(default=1, type=int)}, frozen=True)
    with pytest.raises(TypeError, match=r"Bad.size is not made with option\(default, help=...\)"):
        options_of(bad, section="x")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("switch", "yes", True), ("switch", "Off", False), ("count", "7", 7), ("count", "-0", 0), ("rate", "1", 1.0),
        ("rate", "1e-5", 1e-5), ("word", "none", "none"), ("path", "a/b", Path("a/b")), ("limit", "3", 3),
        ("limit", "none", None), ("ratio", "none", None), ("sizes", "1,2", (1, 2)), ("sizes", "", ()),
        ("sizes", ("",), ()), ("sizes", ("4", "5"), (4, 5)),
    ],
)  # fmt: skip
def test_text(field: str, text: str, value: Any) -> None:
    found = coerce(OPTIONS[field], text, "here", textual=True)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", "1.5", "--my-part-count (here): expected an integer, got '1.5'."),
        ("count", "", "--my-part-count (here): expected an integer, got ''."),
        ("count", "none", "--my-part-count (here): expected an integer, got 'none'."),
        ("rate", "fast", "--my-part-rate (here): expected a number, got 'fast'."),
        ("switch", "maybe", "--my-part-switch (here): expected true or false, got 'maybe'."),
        ("shape", "oval", "--my-part-shape (here): 'oval' is not one of round, square."),
        ("sizes", "1,b", "--my-part-sizes (here): expected a list of int, got '1,b'."),
    ],
)
def test_errors_name_option_origin_and_expectation(field: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        coerce(OPTIONS[field], value, "here", textual=True)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [("count", "7"), ("count", True), ("count", 1.0), ("rate", "1"), ("rate", True), ("switch", 1), ("switch", "yes"),
     ("word", 3), ("word", None), ("sizes", "1,2"), ("sizes", 3), ("limit", "few")],
)  # fmt: skip
def test_values_from_files_and_python_must_fit_as_they_are(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        coerce(OPTIONS[field], value, "file.toml")


def test_an_integer_may_stand_for_a_number() -> None:
    assert coerce(OPTIONS["rate"], 1, "file.toml") == 1.0


def test_building_reports_the_flag() -> None:
    options = list(OPTIONS.values())
    with pytest.raises(UsageError, match=r"--my-part-count: 'count' must be at least 0, not -1"):
        build(Config, options, {"my_part_count": -1})
    required = Option(key="need", section="x", field="count", type=int, default=attrs.NOTHING, info=OptionInfo(help="."))
    with pytest.raises(UsageError, match=r"Missing option --need\."):
        build(Config, [required], {})


def test_the_flag_is_that_of_the_validator_which_raised() -> None:
    """Also where it mentions another field, or none."""

    def above(other: str) -> Any:
        def check(config: Any, attribute: Any, value: int) -> None:
            if value == 13:
                raise ValueError("nobody sits there")
            if value == 14:
                raise Refused(other, "nobody sits before there")
            if value < getattr(config, other):
                raise ValueError(f"'{attribute.name}' must not be below '{other}'")

        return check

    @attrs.frozen(kw_only=True)
    class Seats:
        first: int = option(1, help="The first.", within="[0, inf)", validator=above("last"))
        last: int = option(1, help="The last.", validator=above("first"))
        row: int = option(1, help="The row.")

        def __attrs_post_init__(self) -> None:
            if self.row < 0:
                raise ValueError("'row' is below 'first'")
            if self.row > 9:
                raise ValueError("there are 9 rows")

    options = options_of(Seats, section="x", prefix="seat")
    for values, message in (
        ({"first": 1, "last": 2}, "--seat-first: 'first' must not be below 'last'"),
        ({"first": 2, "last": 1}, "--seat-last: 'last' must not be below 'first'"),
        ({"first": -1, "last": -1}, "--seat-first: 'first' must be at least 0, not -1"),
        ({"first": 13, "last": 13}, "--seat-first: nobody sits there"),
        ({"first": 14}, "--seat-last: nobody sits before there"),
        ({"row": -1}, "--seat-row: 'row' is below 'first'"),
        ({"row": 10}, "Seats: there are 9 rows"),
    ):
        with pytest.raises(UsageError) as error:
            build(Seats, options, {f"seat_{field}": value for field, value in values.items()})
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("names", "a,b", ("a,b",)), ("names", Path("a/b"), ("a/b",)), ("names", ["a", Path("b")], ("a", "b")),
        ("names", (), ()), ("sizes", 3, (3,)), ("sizes", {4: "four"}.keys(), (4,)), ("word", Path("a/b"), "a/b"),
        ("path", "a/b", Path("a/b")), ("path", Path("a/b"), Path("a/b")), ("count", 3, 3),
    ],
)  # fmt: skip
def test_a_python_argument_may_be_one_for_many_and_a_path_for_text(field: str, value: Any, expected: Any) -> None:
    """Of every option, a plugin's like a built-in one; a file's values stay strict."""
    found = merge([argument_layer({f"my_part_{field}": value})], list(OPTIONS.values()))[0]
    assert found == {f"my_part_{field}": expected}
    if field in ("names", "sizes") and not isinstance(value, list | tuple):
        with pytest.raises(UsageError, match=r"--my-part-(names|sizes) \(f.toml\): expected a list"):
            coerce(OPTIONS[field], "a,b", "f.toml")


@pytest.mark.parametrize(("field", "value"), [("names", 3), ("names", [None]), ("sizes", "3"), ("count", Path("3"))])
def test_a_python_argument_is_typed_all_the_same(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        merge([argument_layer({f"my_part_{field}": value})], list(OPTIONS.values()))


# ---- a Run there and back

PLUGINS = PluginManager.discover(environ={})
_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
_KINDS = {bool: st.booleans(), str: _WORDS, float: st.floats(0.001, 1.0), int: st.integers(2, 4096), Path: _WORDS.map(Path)}


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Values that the option takes by its type; what its validator refuses is filtered out by `runs`."""
    inner = getattr(option.base_type, "__args__", None)
    if option.info.choices:
        found: st.SearchStrategy[Any] = st.sampled_from(option.info.choices)
    elif inner:
        found = st.lists(_KINDS[inner[0]], max_size=3).map(tuple)
    else:
        found = _KINDS[option.base_type]
    # text cannot tell a word "none" from no value, and only options that may be None have to
    return st.none() | found.filter(lambda v: v != "none") if option.optional else found


def base(name: str, architecture: bool) -> dict[str, Any]:
    chosen = {"algo": name, "run": "r", "data": ("rows.jsonl",), "backend": "cpu"}
    return {**chosen, **({"arch": "dense", "preset": "tiny"} if architecture else {"from": "base"})}


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A resolved run with some of its settings changed."""
    names = [spec.name for spec in PLUGINS.specs(AlgorithmSpec)]
    values = base(draw(st.sampled_from(names)), draw(st.booleans()))
    run = Composition(PLUGINS, [Layer(origin="test", values=values)]).resolve().run
    free = [o for o in run.options if o.key not in (*values, "arch", "from", "preset", "tracker")]
    for option_ in draw(st.lists(st.sampled_from(free), max_size=6, unique_by=lambda o: o.key)):
        changed = {**values, option_.key: draw(values_of(option_))}
        try:
            Composition(PLUGINS, [Layer(origin="test", values=changed)]).resolve()
        except UsageError:
            continue
        values = changed
    return Composition(PLUGINS, [Layer(origin="test", values=values)]).resolve().run


@click.command(cls=TrainCommand)
@click.pass_context
def parse(ctx: click.Context) -> Run:
    """The train command without its choices and the training."""
    return attrs.evolve(ctx.meta["composition"], chosen={}).resolve().run


SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=SLOW_IS_FINE)


@QUICK
@given(run=runs())
def test_a_run_and_its_command_line_are_the_same(run: Run) -> None:
    assert parse.main(run.argv(), standalone_mode=False, obj=PLUGINS) == run


@QUICK
@given(run=runs())
def test_a_run_and_its_file_are_the_same(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(run.table()), encoding="utf-8")
    assert Composition(PLUGINS, [Layer(origin="run.toml", values=read_toml(path))]).resolve().run == run


@pytest.mark.parametrize("names", [("a b", "c,d", "--x"), ()])
def test_a_value_that_was_switched_off_survives_both_ways(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PART)
    plugins = plugin_manager(str(tmp_path / "mine.py"))
    values = {**base("mine", False), "ratio": None, "names": names, "switch": False, "max_steps": None}
    run = Composition(plugins, [Layer(origin="test", values=values)]).resolve().run
    assert (run.algorithm.ratio, run.algorithm.names, run.algorithm.switch) == (None, names, False)
    assert run.train.max_steps is None
    assert parse.main(run.argv(), standalone_mode=False, obj=plugins) == run
    table = tomllib.loads(tomli_w.dumps(run.table()))
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    assert Composition(plugins, [Layer(origin="run.toml", values=read_toml(tmp_path / "run.toml"))]).resolve().run == run


PART = """
import attrs
from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import AlgorithmSpec, Needs

@attrs.frozen(kw_only=True)
class Config:
    ratio: float | None = option(0.25, help="A ratio that can be switched off.")
    names: tuple[str, ...] = option(("x",), help="Names.")
    switch: bool = option(True, help="A switch that is on.")

@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="mine", summary="Mine.", target="a:b", config=Config, needs=lambda c: Needs(data="text"),
        defaults={"max_steps": 50})
"""
