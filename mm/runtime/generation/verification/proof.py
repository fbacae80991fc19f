"""The proof of a written model: the same conversations in our model and in the program that it was written for."""

from __future__ import annotations

import copy
from pathlib import Path

import attrs

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import Say
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.generation.verification.cases import LENGTH, answered
from mm.runtime.generation.verification.compare import compare
from mm.runtime.generation.verification.verifier import VerificationFailed, Verifier, run_program
from mm.runtime.models.accepting import dequantised_model, layout_values
from mm.runtime.models.description import NATIVE
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.repacker import Packing
from mm.runtime.models.tensors import named_tensors


class Proof:
    """Tries a written model with a verifier, at the place `where` that the user names ("": none)."""

    def __init__(self, plugins: PluginManager, verifier: Verifier, where: str, say: Say) -> None:
        """Raises UsageError if the engine is not there."""
        self._plugins, self._verifier, self._where, self._say = plugins, verifier, where, say
        self._command, self._values = verifier.prepare(where)

    def check(self, name: str, loaded: LoadedModel) -> None:
        """Raise UsageError, before anything is written, if the verifier does not read the format or refuses the model."""
        verifier = self._verifier
        layout = name != NATIVE and bool(self._plugins.get(ConverterSpec, name).architecture)
        if not {name, "*"} & {*verifier.formats} and not (layout and verifier.layouts):
            known = [*["a Hugging Face layout"] * verifier.layouts, *verifier.formats]
            raise UsageError(f"--verify {verifier.name}: it does not read {name}. It reads {', '.join(known)}.")
        if verifier.layouts and (reason := verifier.refusal(layout_values(self._plugins, name, loaded), self._where)):
            raise UsageError(f"--verify {verifier.name}: {reason}")

    def prove(self, name: str, loaded: LoadedModel, out: Path, packing: Packing) -> None:
        """Try the model that was written to `out` in the format of that name, and print the verdict. Raises VerificationFailed
        naming the first difference; the written model stays."""
        cases = answered(self._plugins, self._as_written(name, loaded, out, packing))
        tokenizer = loaded.tokenizer
        job = {
            "model": str(out), "count": LENGTH, "stop": sorted({tokenizer.eos_id, tokenizer.pad_id}), **self._values,
            "chats": [case.job() for case in cases],
        }  # fmt: skip
        self._say(f"--verify {self._verifier.name}: {len(cases)} conversations, {LENGTH} tokens each")
        found = run_program(self._command, job, self._say)
        verdict = compare(cases, found["chats"], tokenizer, self._verifier.bound(packing.quantise or packing.dtype or "fp32"))
        for line in verdict.lines(found["engine"]):
            self._say(line)
        if verdict.first:
            raise VerificationFailed(f"{out} is not the same model in {self._verifier.name}: {verdict.first}. It was written.")

    def _as_written(self, name: str, loaded: LoadedModel, out: Path, packing: Packing) -> LoadedModel:
        """The model with the weights that the file has, in float32."""
        if packing.quantise:
            return dequantised_model(self._plugins, name, loaded, out)
        if packing.dtype:
            # tensor by tensor: casting the module would round the rotary frequencies, which the file does not have
            rounded = attrs.evolve(loaded, model=copy.deepcopy(loaded.model))
            for tensor in named_tensors(rounded.model).values():
                tensor.copy_(tensor.to(torch_dtype(packing.dtype)))
            return rounded
        return loaded
