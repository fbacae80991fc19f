"""MiniMind's own files: its .pth models of both generations, and folders of its MiniMindForCausalLM."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The repacker "minimind-pth"."""
    yield ConverterSpec(
        name="minimind-pth",
        summary="MiniMind's .pth files of both generations, dense or with experts, and folders of MiniMindForCausalLM.",
        target="mm.converters.minimind_pth.repacker:MiniMindPth",
        reads=("MiniMindForCausalLM",),
        writes="MiniMindForCausalLM",
    )
