"""Building the roles of a run: opening its models, adapting them, and moving them to the device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.callback import Callback
from mm.core.config.sections import section_of
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec
from mm.core.run import Run
from mm.core.say import Say
from mm.core.workspace import ADAPTER, Workspace
from mm.runtime.devices.backend import Backend
from mm.runtime.models import folder as models
from mm.runtime.models.adapter import Adapter
from mm.runtime.models.finding import find_adapter, find_model, find_tokenizer
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.opening import compile_blocks, fuse_kernels, keeping_tensors
from mm.runtime.models.provenance import package_of
from mm.runtime.nn.model import Model
from mm.runtime.nn.recompute import checkpoint_blocks
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.training.distributed import World, wrap
from mm.runtime.training.roles import Role
from mm.runtime.training.sharding import UpdatesCopy, shard, whole_copy

if TYPE_CHECKING:
    import torch
    from torch import nn

# an orthogonal update, Muon's, is derived for a matrix that is a layer by itself, and not for one of its factors
_FACTORS = {"optimizer": "adamw"}


@attrs.frozen(kw_only=True)
class RoleBuilder:
    """Opens the models of one run. New weights are initialised from the run's seed, so that a resume can make the model of a
    role again that started as a copy of the policy's."""

    plugins: PluginManager
    run: Run
    workspace: Workspace
    backend: Backend
    world: World
    say: Say

    def policy(self, checkpoint: Path | None) -> LoadedModel:
        """The policy as the run starts or, with a checkpoint, as saved there; with the run's adapter.

        A frozen role that shares its weights must answer as it began: what an adapter begins with is then merged first.
        """
        loaded = models.load_model_folder(self.plugins, checkpoint, self.backend, merge=False) if checkpoint else self._start()
        self._check_tokenizer(loaded)
        adapter = self._adapted("policy", loaded.model, checkpoint / ADAPTER if checkpoint else None)
        sharing = [name for name in self.run.needs.roles if self._shared(name)]
        if adapter and sharing and not checkpoint and adapter.restart():
            self.say(f"adapter: what it begins with is merged first, for the {sharing[0]} is the policy with the adapter off")
        own = package_of(self.plugins, self.plugins.get(AdapterSpec, adapter.name)) if adapter else {}
        return attrs.evolve(loaded, adapter=adapter, packages={**loaded.packages, **own})

    @property
    def sharded(self) -> bool:
        """True if each rank keeps a part of the trained models."""
        return self.run.train.parallel == "fsdp" and self.world.size > 1

    def whole(self, policy: LoadedModel) -> LoadedModel:
        """The policy that this rank writes and generates from: itself, or with sharding a copy. Call this before `roles`. Raises
        UsageError for what cannot be sharded."""
        if not self.sharded:
            if self.run.train.parallel == "fsdp":
                self.say("--parallel fsdp: one rank keeps the whole model; --nproc starts more")
            return policy
        if self._dtype == "fp16":
            raise UsageError("--parallel fsdp cannot scale the loss, as --dtype fp16 needs it: use bf16 or fp32.")
        generates = self.run.needs.generates
        device = self.backend.device(self.world.local_rank) if generates or self._samples else "cpu"
        found = whole_copy(policy, device, here=self.world.main or generates)
        fuse_kernels(self.backend, found.model)
        return found

    def updates_copy(self, policy: LoadedModel, whole: LoadedModel) -> list[Callback]:
        """The callback that keeps the copy of `whole` up to date for those that write it or generate from it, if any do."""
        used = self.sharded and (self.run.train.keep_best or self._samples)
        return [UpdatesCopy(policy.model, whole.model)] if used else []

    @property
    def _samples(self) -> bool:
        return bool(self.run.train.samples or self.run.train.sample_prompt)

    @property
    def _dtype(self) -> str:
        dtype = self.run.train.dtype
        return self.backend.default_dtype() if dtype == "auto" else dtype

    def roles(self, policy: LoadedModel) -> dict[str, Role]:
        """Every role that the algorithm needs. Raises UsageError if the user must name a role's model, or if it does not fit."""
        needs = self.run.needs
        adapted = {name: adapter for name in needs.trainable if (adapter := self._adapter_name(name))}
        if len(adapted) == len(needs.trainable) and self.run.train.optimizer != _FACTORS["optimizer"]:
            raise UsageError(
                f"--optimizer {self.run.train.optimizer} works on whole matrices and {', '.join(adapted.values())} trains none: "
                f"an adapter's parameters are trained by {_FACTORS['optimizer']}; leave it out."
            )
        roles = {name: self._role(name, policy) for name in needs.roles}
        if adapted:
            parameters = [p for role in roles.values() if role.trainable for p in role.model.parameters()]
            trained, total = (sum(p.numel() for p in parameters if p.requires_grad >= only) for only in (True, False))
            what = ", ".join(f"{adapter} of the {name}" for name, adapter in adapted.items())
            self.say(f"adapter: {what}; {trained:,} of {total:,} parameters are trained")
        return roles

    def _role(self, name: str, policy: LoadedModel) -> Role:
        needs = self.run.needs
        trainable = name in needs.trainable
        if name == "policy":
            return self._placed(name, policy.model, trainable, _FACTORS if policy.adapter else None)
        settings = self.run.parts[f"role.{name}"]
        if name in needs.user_provided and not settings.from_:
            raise UsageError(f"{self.run.select.algo} needs a {name}: pass --{name}-from RUN|FOLDER.")
        if policy.adapter is not None and self._shared(name):
            return Role(name, policy.model, trainable=False, without=policy.adapter.off)
        loaded = self._open(settings.from_) if settings.from_ else self._start()
        if loaded.tokenizer.fingerprint != policy.tokenizer.fingerprint:
            raise UsageError(f"--{name}-from {settings.from_}: its tokenizer is not the policy's; a {name} must share it.")
        outputs = self._set_outputs(name, loaded) if name in needs.value_heads else []
        own: dict[str, Any] = {}
        if trainable:
            own = {"learning_rate": settings.learning_rate, "clip_norm": settings.clip_norm}
            if self._adapted(name, loaded.model):
                own |= _FACTORS
                for parameter in outputs:  # new, so there is nothing yet that could be adapted
                    parameter.requires_grad_(True)
        return self._placed(name, loaded.model, trainable, own, None if trainable else loaded.path)

    def _adapted(self, role: str, model: Model, saved: Path | None = None) -> Adapter | None:
        """The adapter of a role, applied to its model; None if it has none."""
        if not (name := self._adapter_name(role)):
            return None
        spec = self.plugins.get(AdapterSpec, name)
        config: Any = self.run.parts.get(section_of(spec, role).name) if spec.config else None
        if config and config.from_ and not saved:
            config = attrs.evolve(config, from_=str(find_adapter(config.from_, self.workspace, self.plugins)))
        adapter: Adapter = self.plugins.load(AdapterSpec, name)(name, config, model)
        with keeping_tensors(model, f"Adapter {name}", "apply()", adapter.names):
            adapter.apply(saved)
        for note in adapter.notes():
            self.say(f"adapter: {note}")
        return adapter

    def _adapter_name(self, role: str) -> str:
        name: str = self.run.select.adapter if role == "policy" else self.run.parts[f"role.{role}"].adapter
        return name

    def _shared(self, name: str) -> bool:
        """True if this role uses the policy's weights with the policy's adapter switched off."""
        needs = self.run.needs
        own = name == "policy" or name in needs.trainable or name in needs.value_heads
        return not own and not self.run.parts[f"role.{name}"].from_

    def _placed(
        self, name: str, model: Model, trainable: bool, settings: Mapping[str, Any] | None = None, path: Path | None = None
    ) -> Role:
        if trainable and self.run.train.dropout and not model.applies_dropout:
            raise UsageError(
                f"--dropout {self.run.train.dropout:g}: the {name} is a {type(model).__name__}, which applies no dropout. "
                "Leave it out."
            )
        device = self.backend.device(self.world.local_rank)
        model.to(device)
        for kernel in fuse_kernels(self.backend, model):
            self._note(f"fused kernel: {kernel}")
        if self.run.train.compile and (declined := compile_blocks(self.backend, model)):
            self._note(f"not compiled: {declined}")
            self.say(f"--compile: {declined}; going on without")
        if trainable and self.run.train.activation_checkpointing and (declined := checkpoint_blocks(model)):
            self._note(f"activations are kept: {declined}")
            self.say(f"--activation-checkpointing: {declined}; going on without")
        module = self._parallel(model, device) if trainable else None
        return Role(name, model, trainable=trainable, module=module, settings=settings, path=path)

    def _parallel(self, model: Model, device: torch.device) -> nn.Module:
        if not self.sharded:
            return wrap(model, self.world, device)
        shard(model, self.world.size, device, self._dtype)
        return model

    def _note(self, text: str) -> None:
        if text not in self.backend.notes:
            self.backend.notes.append(text)

    def _start(self) -> LoadedModel:
        """The model that the policy starts from: that of `--from`, or new weights from the seed."""
        select = self.run.select
        if select.from_:
            return self._open(select.from_)
        self.backend.seed(self.run.train.seed)
        tokenizer = Tokenizer.load(find_tokenizer(select.tokenizer, self.plugins))
        return models.new_model(self.plugins, select.arch, self.run.architecture, tokenizer, self.backend)

    def _set_outputs(self, role: str, loaded: LoadedModel) -> list[nn.Parameter]:
        """Give the model one number per position as its output; returns the parameters that are new."""
        before = set(loaded.model.parameters())
        try:
            loaded.model.set_outputs(1)
        except NotImplementedError as error:
            raise UsageError(
                f"{self.run.select.algo} needs a {role} with one value per token, and a model of architecture "
                f"{loaded.architecture!r} has only logits: {error} is not implemented. Name another model with --{role}-from."
            ) from None
        return [parameter for parameter in loaded.model.parameters() if parameter not in before]

    def _check_tokenizer(self, loaded: LoadedModel) -> None:
        """Raise UsageError if --tokenizer names another tokenizer than that of the --from model."""
        select = self.run.select
        if select.from_ and select.tokenizer:
            own, named = loaded.tokenizer.fingerprint, Tokenizer.load(find_tokenizer(select.tokenizer, self.plugins)).fingerprint
            if own != named:
                raise UsageError(
                    f"--tokenizer {select.tokenizer} ({named}) is not the tokenizer that {select.from_} was trained with "
                    f"({own}): leave --tokenizer out, or train a new model with --arch."
                )

    def _open(self, text: str) -> LoadedModel:
        return models.load_model_folder(self.plugins, find_model(text, self.workspace, self.plugins), self.backend)
