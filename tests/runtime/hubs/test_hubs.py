"""The hubs through their real clients, against a server on this machine that speaks their protocols."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import again, point
from hypothesis import HealthCheck, given, settings, strategies as st

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec
from mm.core.workspace import Workspace
from mm.plugins.sources.hub.source import HubFiles
from mm.runtime.data.corpus import open_source
from mm.runtime.hubs.catalogue import catalogue, read
from mm.runtime.hubs.fetching import NotDownloaded, downloads
from mm.runtime.hubs.huggingface import HuggingFace
from mm.runtime.hubs.locator import HUBS, Locator, is_hub, parse
from mm.runtime.hubs.models import local_model
from mm.runtime.models.finding import find_adapter, find_model, find_tokenizer
from mm.testing import assert_passed, check_part

pytestmark = pytest.mark.mm_plugins("mm.plugins.sources.hub")

HAS_MODELSCOPE = importlib.util.find_spec("modelscope_hub") is not None
needs_modelscope = pytest.mark.skipif(not HAS_MODELSCOPE, reason="modelscope-hub is not installed")
PREFIXES = ["hub", pytest.param("ms", marks=needs_modelscope)]
ROWS = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(200))


def free_address() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


def rows(plugins: PluginManager, locator: str, kind: str = "") -> list[Any]:
    return list(open_source(plugins, locator, kind).rows())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_rows_of_a_hub_are_those_of_its_files_and_nothing_else_is_fetched(
    prefix: str, hub: hub_server.Hub, plugins: PluginManager, tmp_path: Path
) -> None:
    files = {"b.jsonl": ROWS, "a/x.jsonl": '{"text": "first"}\n', "README.md": "about", "load.py": "boom", ".gitattributes": ""}
    hub.add("dataset", "owner/set", files)
    found = rows(plugins, f"{prefix}:owner/set")
    assert [(at.path, at.line, row["text"]) for at, row in found[:2]] == [
        (f"{prefix}:owner/set/a/x.jsonl", 1, "first"), (f"{prefix}:owner/set/b.jsonl", 1, "row 0")]  # fmt: skip
    assert len(found) == 201
    for name in ("a/x.jsonl", "b.jsonl"):
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_text(files[name])
    same = open_source(plugins, str(tmp_path / "copy"), "")
    assert open_source(plugins, f"{prefix}:owner/set", "").digest() == same.digest()
    fetched = {name.partition("&")[0] for name, _ in hub.bodies()}
    assert not [name for name in fetched if "load" in name or "README" in name]
    before = len(hub.bodies())
    rows(plugins, f"{prefix}:owner/set:b.jsonl")
    assert len(hub.bodies()) == before


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_source_passes_the_checks_of_sources(prefix: str, hub: hub_server.Hub, plugins: PluginManager) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    assert_passed(check_part(plugins.get(SourceSpec, "hub"), plugins=plugins, locator=f"{prefix}:owner/set"))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_stopped_download_is_continued_where_it_stopped(
    prefix: str, hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    hub.cuts = [1000, *[0] * 9]
    module = {"hub": "huggingface_hub.constants", "ms": "modelscope_hub._download"}[prefix]
    monkeypatch.setattr(f"{module}.DOWNLOAD_CHUNK_SIZE", 100)  # bytes that are written at once
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the clients wait between their own attempts
    with pytest.raises(UsageError, match="what has arrived is kept"):
        rows(plugins, f"{prefix}:owner/set")
    hub.cuts, begin = [], len(hub.bodies())
    assert len(rows(plugins, f"{prefix}:owner/set")) == 200
    spans = [span for _, span in hub.bodies()[begin:] if span]
    assert len(spans) == 1 and int(spans[0].removeprefix("bytes=").rstrip("-").partition("-")[0]) >= 1000


@pytest.mark.parametrize("prefix", PREFIXES)
def test_damaged_bytes_are_refused_and_not_kept(
    prefix: str, hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.damaged = True
    with pytest.raises(UsageError, match="damaged"):
        rows(plugins, f"{prefix}:owner/set")
    hub.damaged = False
    assert len(rows(plugins, f"{prefix}:owner/set")) == 200


def test_the_token_stays_with_the_hub(hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    seen = []
    send = hub_server._Handler._bytes

    def look(self: Any, data: bytes, headers: dict[str, str]) -> None:
        seen.append(self.headers.get("Authorization"))
        send(self, data, headers)

    monkeypatch.setattr(hub_server._Handler, "_bytes", look)
    rows(plugins, "hub:owner/set")
    assert seen == [None]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_offline_the_cache_is_used_and_what_it_lacks_is_told(
    prefix: str, hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("dataset", "owner/set", {"a.jsonl": ROWS, "b.jsonl": ROWS})
    assert len(rows(plugins, f"{prefix}:owner/set:a.jsonl")) == 200
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    point(monkeypatch, free_address())
    assert len(rows(plugins, f"{prefix}:owner/set:a.jsonl")) == 200
    assert "the copy in the cache is used" in capsys.readouterr().err
    again(monkeypatch)
    with pytest.raises(UsageError, match=r"b\.jsonl is not downloaded yet.*by hand"):
        rows(plugins, f"{prefix}:owner/set")
    with pytest.raises(UsageError, match=rf"{prefix}:owner/other: .*nothing of it is in the cache"):
        rows(plugins, f"{prefix}:owner/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again(monkeypatch)
    assert len(rows(plugins, f"{prefix}:owner/set:a.jsonl")) == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrong_name_revision_or_pattern_is_one_clear_error(prefix: str, hub: hub_server.Hub, plugins: PluginManager) -> None:
    hub.add("dataset", "owner/set", {"a.jsonl": ROWS, "x.py": "1"})
    hub.add("dataset", "owner/gated", {"a.jsonl": ROWS}).gated = True
    for text, message in (
        ("owner/none", "has no dataset owner/none, or it is private"), ("owner/set@v9", "no revision v9"),
        ("owner/set:*.csv", r"no file of owner/set fits \*\.csv\. It has: a\.jsonl"), ("owner/set:x.py", "Code and pickled"),
        ("owner/gated", "its owner has to grant access"), ("owner/", "expected"), ("pretrain_t2t_min", "Did you mean"),
        ("sft_512", f"no longer on the hubs. Its successor is {prefix}:sft_t2t"), ("minimind-3", "is a model: --from"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            rows(plugins, f"{prefix}:{text}")


def test_a_commit_needs_no_network_and_a_branch_that_moved_is_read_anew(
    hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add("dataset", "owner/set", {"a.jsonl": ROWS})
    source = open_source(plugins, "hub:owner/set", "")
    assert isinstance(source, HubFiles)
    first, digest = str(source.snapshot.at), source.digest()
    assert first == f"hub:owner/set@{repository.commit}"
    repository.older["v1"] = repository.files
    repository.files = {"a.jsonl": ROWS.replace("row 0", "ROW 0").encode()}
    again(monkeypatch)
    assert open_source(plugins, "hub:owner/set", "").digest() != digest == open_source(plugins, "hub:owner/set@v1", "").digest()
    again(monkeypatch)
    hub.requests.clear()
    assert open_source(plugins, first, "").digest() == digest
    assert hub.requests == []


@needs_modelscope
def test_a_branch_of_modelscope_that_moved_to_bytes_of_one_size_is_read_anew(
    hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add("dataset", "owner/set", {"a.jsonl": ROWS})
    digest = open_source(plugins, "ms:owner/set", "").digest()
    repository.files = {"a.jsonl": ROWS.replace("row 0", "ROW 0").encode()}
    again(monkeypatch)
    assert open_source(plugins, "ms:owner/set", "").digest() != digest


def test_where_downloads_are_not_allowed_nothing_is_downloaded(hub: hub_server.Hub, plugins: PluginManager) -> None:
    hub.add("dataset", "owner/set", {"a.jsonl": ROWS})
    with downloads(allowed=False), pytest.raises(NotDownloaded, match=r"1 file, .* to download"):
        rows(plugins, "hub:owner/set")
    assert hub.bodies() == []
    assert len(rows(plugins, "hub:owner/set")) == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_models_adapters_and_tokenizers_are_paths_in_the_cache(
    prefix: str, hub: hub_server.Hub, plugins: PluginManager, mm_workspace: Path
) -> None:
    files = {
        "config.json": "{}", "model.safetensors": b"w" * 50, "tokenizer.json": "{}", "chat_template.jinja": "x",
        "modeling.py": "1", "README.md": "x", "onnx/model.json": "{}", "pytorch_model.bin": b"p" * 10,
        "full_sft_512.pth": b"q" * 20,
    }  # fmt: skip
    hub.add("model", "owner/model", files)  # type: ignore[arg-type]
    workspace = Workspace(mm_workspace)
    tokenizer = find_tokenizer(f"{prefix}:owner/model", plugins)
    assert sorted(os.listdir(tokenizer)) == ["chat_template.jinja", "config.json", "tokenizer.json"]
    folder = find_model(f"{prefix}:owner/model", workspace, plugins)
    assert sorted(os.listdir(folder)) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert find_adapter(f"{prefix}:owner/model", workspace, plugins) == folder
    file = local_model(plugins, f"{prefix}:owner/model:full_sft_512.pth")
    assert file.name == "full_sft_512.pth" and file.read_bytes() == b"q" * 20
    with pytest.raises(UsageError, match=f"mm convert {prefix}:owner/model:full_sft_512.pth full_sft_512-mm"):
        find_model(f"{prefix}:owner/model:full_sft_512.pth", workspace, plugins)


def test_a_model_with_pickles_alone_or_files_to_convert_is_told(hub: hub_server.Hub, plugins: PluginManager) -> None:
    hub.add("model", "owner/pickled", {"config.json": "{}", "pytorch_model.bin": b"p"})
    hub.add("model", "owner/files", {"README.md": "x", "full_sft_512.pth": b"q"})
    with pytest.raises(UsageError, match=r"pickled.*not fetched"):
        local_model(plugins, "hub:owner/pickled")
    with pytest.raises(UsageError, match=r"mm convert hub:owner/files:full_sft_512\.pth OUT"):
        local_model(plugins, "hub:owner/files")


def test_a_missing_client_is_told_with_its_package(plugins: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(UsageError, match="pip install modelscope-hub"):
        rows(plugins, "ms:owner/set")


def test_the_names_of_the_catalogue_are_distinct_and_name_their_successors(plugins: PluginManager) -> None:
    entries = catalogue(plugins)
    names = {entry.name for entry in entries}
    old = {
        "pretrain_hq", "sft_mini_512", "sft_512", "sft_1024", "sft_2048", "lora_identity", "lora_medical", "r1_mix_1024",
        "rlaif-mini",
    }  # fmt: skip
    new = {"pretrain_t2t", "pretrain_t2t_mini", "sft_t2t", "sft_t2t_mini", "dpo", "rlaif", "agent_rl", "agent_rl_math"}
    assert old | new <= names
    for entry in entries:
        assert entry.gone == (entry.name in old) and (not entry.instead or entry.instead in names)
        assert entry.gone or is_hub(entry.use.partition(" ")[2])


def test_names_ignore_case_dashes_and_the_suffix(hub: hub_server.Hub, plugins: PluginManager) -> None:
    hub.add("dataset", "jingyaogong/minimind_dataset", {"rlaif.jsonl": ROWS, "sft_t2t_mini.jsonl": ROWS, "dpo.jsonl": ROWS})
    for name in ("sft_t2t_mini", "SFT-t2t-mini", "sft_t2t_mini.jsonl"):
        assert {at.path for at, _ in rows(plugins, f"hub:{name}")} == {"hub:jingyaogong/minimind_dataset/sft_t2t_mini.jsonl"}
    with pytest.raises(UsageError, match="holds several sets: name one"):
        rows(plugins, "hub:jingyaogong/minimind_dataset")


def test_a_plugin_brings_names(hub: hub_server.Hub, mm_plugins: Any, mm_workspace: Path) -> None:
    (mm_workspace / "names.toml").write_text(
        '[poems]\nkind = "dataset"\nsummary = "Poems"\nhub = "owner/set"\nfile = "a.jsonl"\naliases = ["verse"]\n'
    )
    plugins = mm_plugins(names="""
from pathlib import Path
from mm.contracts import Source, SourceSpec, hookimpl

@hookimpl
def mm_sources():
    yield SourceSpec(name="lab", summary="Names.", target=f"{__name__}:Lab", recognise=lambda text: text == "lab")

class Lab(Source):
    catalogue = Path("names.toml")

    def rows(self):
        return iter(())

    def digest(self):
        return ""
""")
    hub.add("dataset", "owner/set", {"a.jsonl": ROWS, "b.csv": "text\nx\n"})
    assert len(rows(plugins, "hub:verse")) == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nkind = 'dataset'", "needs summary"), ("[a]\nkind = 'x'\nsummary = ''\nhub = 'a/b'", "expected dataset or model"),
        ("[a]\nkind = 'model'\nsummary = ''", "on no hub"), ("[a]\nhubb = 'x'", "no field 'hubb'"),
        ("[a", "no catalogue"), ("a = 1", "no table"),
    ],
)  # fmt: skip
def test_a_faulty_catalogue_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "names.toml")


WORD = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text of a pattern takes a second
@given(
    st.builds(
        Locator,
        hub=st.sampled_from(sorted(HUBS)),
        repo=st.one_of(WORD, st.builds("{}/{}".format, WORD, WORD)),
        revision=st.one_of(st.just(""), WORD),
        pattern=st.one_of(st.just(""), st.from_regex(r"[a-z*?/\[\].]{1,9}", fullmatch=True)),
    )
)
def test_a_place_is_what_its_text_says(place: Locator) -> None:
    assert is_hub(str(place)) and parse(str(place)) == place


@given(st.text())
def test_any_text_is_asked_without_an_exception(text: str) -> None:
    if is_hub(text):
        with contextlib.suppress(UsageError):
            parse(text)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["../../../../outside.jsonl", "a/../../b.jsonl", "OUTSIDE", "..\\x.jsonl", "a//b.jsonl"])
def test_a_name_that_leads_out_of_the_repository_is_refused_and_nothing_is_written(
    prefix: str, name: str, hub: hub_server.Hub, plugins: PluginManager, tmp_path: Path
) -> None:
    name = str(tmp_path / "outside.jsonl") if name == "OUTSIDE" else name
    before = set(tmp_path.parent.rglob("*.jsonl"))
    hub.add("dataset", "owner/evil", {name: ROWS})
    with pytest.raises(UsageError, match="not one inside a repository"):
        rows(plugins, f"{prefix}:owner/evil")
    assert set(tmp_path.parent.rglob("*.jsonl")) == before and not hub.bodies()


def test_an_etag_that_leads_out_of_the_cache_is_refused(
    hub: hub_server.Hub, plugins: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("dataset", "owner/set", {"a.json": '[{"text": "x"}]'})
    monkeypatch.setattr(hub_server, "_git", lambda data: "../../../../../outside")
    with pytest.raises(UsageError, match=r"ETag .* is not the name of a file"):
        rows(plugins, "hub:owner/set:a.json")
    assert not list(tmp_path.parent.rglob("outside*"))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"null"])
def test_a_page_in_the_place_of_a_hub_is_said(
    prefix: str, body: bytes, hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_server._Handler, "_answer", lambda self: self._send(200, body, {"Content-Type": "text/html"}))
    with pytest.raises(UsageError, match="its answer is not a hub's"):
        rows(plugins, f"{prefix}:owner/set")


def test_a_finished_file_of_another_size_is_downloaded_again(
    hub: hub_server.Hub, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("dataset", "owner/set", {"a.jsonl": ROWS})
    at, folder = "hub:owner/set", HuggingFace().folder(parse("hub:owner/set"), "dataset")
    assert len(rows(plugins, at)) == 200
    for blob in (path for path in (folder / "blobs").iterdir() if path.suffix != ".lock"):
        os.truncate(blob, 100)
    again(monkeypatch)
    assert len(rows(plugins, at)) == 200
