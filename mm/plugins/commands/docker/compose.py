"""The compose document: a container to train in for each backend, and servers of the exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.records import BackendSpec, Container
from mm.runtime.devices.container import GPUS, card_devices, image_name, shared_memory

PLAIN = "cpu"  # the service that starts without a profile

_HEADER = """\
# Written by 'mm docker compose --print', from the records of the backends; a test compares them.
# Containers to train in ({train}), and servers of the exported model ({serve}).
# docs/docker.md explains the services and the variables, which can also be set in a file .env.
"""


@attrs.frozen(kw_only=True)
class Server:
    """A service that serves an exported model on a chip."""

    name: str
    backend: str
    image: str


SERVERS = (
    Server(name="vllm", backend="cuda", image="${MM_VLLM_IMAGE:-vllm/vllm-openai:v0.23.0}"),
    Server(name="vllm-ascend", backend="npu", image="${MM_VLLM_ASCEND_IMAGE:-quay.io/ascend/vllm-ascend:v0.23.0}"),
)


def document(specs: Sequence[BackendSpec], cards: tuple[int, ...] | None) -> dict[str, Any]:
    """The document with the services of these backends, for these cards of each (None: all of this machine)."""
    services: dict[str, Any] = {}
    for spec in specs:
        services[service_name(spec.name)] = _training(spec, cards)
    for server in SERVERS:
        for spec in specs:
            if spec.name == server.backend:
                services[server.name] = _serving(server, spec.container, cards)
    return {"name": "minimind-ascend", "services": services, "volumes": {"workspace": {}}}


def service_name(backend: str) -> str:
    """The service to train in: `train`, and `train-NAME` for chips."""
    return "train" if backend == PLAIN else f"train-{backend}"


def as_yaml(found: Mapping[str, Any]) -> str:
    """The document as text, with what it is at its top."""
    import yaml

    names = [*found["services"]]
    train = ", ".join(name for name in names if name.startswith("train"))
    serve = ", ".join(name for name in names if not name.startswith("train"))
    text: str = yaml.safe_dump(found, sort_keys=False, width=120, default_flow_style=False)
    return _HEADER.format(train=train, serve=serve or "none") + text


def _training(spec: BackendSpec, cards: tuple[int, ...] | None) -> dict[str, Any]:
    container = spec.container
    arguments = dict.fromkeys(("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"))
    return {
        "image": image_name(spec.name),
        "build": {"context": "..", "dockerfile": f"docker/Dockerfile.{spec.name}", "args": [*arguments]},
        **({} if spec.name == PLAIN else {"profiles": [spec.name]}),
        # it waits for 'docker compose exec'
        "entrypoint": ["sleep", "infinity"],
        "init": True,
        "read_only": not container.root,
        "tmpfs": ["/tmp:exec"],
        "security_opt": ["no-new-privileges:true"],
        "working_dir": "/workspace",
        **_chip(container, cards, ["workspace:/workspace"]),
        "healthcheck": {"test": ["CMD", "mm", "plugins"], "interval": "5m", "timeout": "1m", "start_period": "30s"},
    }


def _serving(server: Server, container: Container, cards: tuple[int, ...] | None) -> dict[str, Any]:
    url = "http://127.0.0.1:8000/health"
    return {
        "image": server.image,
        "profiles": [server.name],
        "init": True,
        "entrypoint": ["vllm", "serve"],
        "command": [
            "/workspace/exports/${MM_EXPORT:-model}", "--served-model-name", "minimind",
            "--host", "0.0.0.0", "--port", "8000", "--max-model-len", "${MM_MAX_MODEL_LEN:-2048}",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3",
        ],
        "ports": ["127.0.0.1:${MM_PORT:-8000}:8000"],
        **_chip(container, cards, ["workspace:/workspace:ro"], {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}),
        "healthcheck": {
            "test": ["CMD", "python3", "-c", f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"],
            "interval": "30s", "timeout": "10s", "retries": 3, "start_period": "5m",
        },
        "restart": "unless-stopped",
    }  # fmt: skip


def _chip(
    container: Container, cards: tuple[int, ...] | None, volumes: list[str], env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The keys of a service that give it the chip."""
    devices = [f"{device}:{device}" for device in card_devices(container, cards)]
    env = {**container.env, **(env or {})}
    found: dict[str, Any] = {"shm_size": f"{shared_memory(container, cards)}m", "volumes": [*volumes, *container.mounts]}
    if devices:
        found["devices"] = devices
    if env:
        found["environment"] = env
    if container.card == GPUS:
        which: dict[str, Any] = {"count": "all"} if cards is None else {"device_ids": [str(card) for card in cards]}
        found["deploy"] = {"resources": {"reservations": {"devices": [{"driver": "nvidia", **which, "capabilities": ["gpu"]}]}}}
    return found
