"""The graph of a dense decoder with a KV cache, in the operators of ONNX's opset 18.

Inputs and outputs have the names that Hugging Face optimum gives them. Legend: B batch, S new tokens, T past and new tokens,
H heads, K key/value heads, G = H / K, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mm.plugins.architectures.rotary import attention_factor, inverse_frequencies

if TYPE_CHECKING:
    from torch import Tensor

    from mm.plugins.architectures.dense import DenseConfig

OPSET = 18
# the version of the file format that came with the opset: onnxruntime reads both since 1.14
_IR_VERSION = 8
# what is added to the score of a position that a token must not see
_HIDDEN = -1e30


class _Graph:
    """Nodes and constants, each with a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output, `output` or a new name, and return that."""
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def weight(self, name: str, tensor: Tensor) -> str:
        """Add the values of a tensor in float32, under a name."""
        self.constants[name] = numpy_helper.from_array(tensor.float().numpy(), name)
        return name

    def integers(self, *values: int) -> str:
        """A list of integers, such as axes or a shape."""
        return self._constant(f"int_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def number(self, value: float | int) -> str:
        """One number: an int64, or a float32."""
        return self._constant(f"number_{value!r}", np.array(value, np.int64 if isinstance(value, int) else np.float32))

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def swapped_halves(self, x: str) -> tuple[str, str]:
        """The second and the first half of the last dimension."""
        first, second = f"{x}_first", f"{x}_second"
        self.nodes.append(helper.make_node("Split", [x], [first, second], axis=-1, num_outputs=2))
        return second, first


def decoder_graph(config: DenseConfig, state: Mapping[str, Tensor]) -> onnx.ModelProto:
    """The model with its weights. `state` has the tensors under the names of the layouts; without `lm_head.weight` the
    embedding is the output layer too."""
    graph = _Graph()
    embedding = graph.weight("model.embed_tokens.weight", state["model.embed_tokens.weight"])
    x_BSE = graph.add("Gather", embedding, "input_ids")
    mask, rotary = _mask(graph), _rotary(graph, config)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        normed = _norm(graph, x_BSE, f"{name}.input_layernorm", state, config)
        x_BSE = graph.add("Add", x_BSE, _attention(graph, normed, layer, mask, rotary, state, config))
        normed = _norm(graph, x_BSE, f"{name}.post_attention_layernorm", state, config)
        x_BSE = graph.add("Add", x_BSE, _feed_forward(graph, normed, f"{name}.mlp", state))
    x_BSE = _norm(graph, x_BSE, "model.norm", state, config)
    if "lm_head.weight" in state:
        _linear(graph, x_BSE, "lm_head", state, output="logits")
    else:
        graph.add("MatMul", x_BSE, graph.add("Transpose", embedding, perm=[1, 0]), output="logits")
    return _model(graph, config)


def _mask(graph: _Graph) -> str:
    """(B, 1, 1, S, T): 0 for what a token sees, which is itself and what is before it where `attention_mask` is 1."""
    zero, one = graph.number(0), graph.number(1)
    first, second = graph.integers(0), graph.integers(1)
    length, total = (
        graph.add("Squeeze", graph.add("Gather", graph.add("Shape", name), second), first)
        for name in ("input_ids", "attention_mask")
    )
    keys_T = graph.add("Range", zero, total, one)
    tokens_S = graph.add("Range", graph.add("Sub", total, length), total, one)
    earlier_ST = graph.add("LessOrEqual", keys_T, graph.add("Unsqueeze", tokens_S, second))
    kept_B1T = graph.add("Unsqueeze", graph.add("Cast", "attention_mask", to=TensorProto.BOOL), second)
    seen_BST = graph.add("And", earlier_ST, kept_B1T)
    return graph.add("Unsqueeze", graph.add("Where", seen_BST, graph.number(0.0), graph.number(_HIDDEN)), graph.integers(1, 2))


def _rotary(graph: _Graph, config: DenseConfig) -> tuple[str, str]:
    """Cosine and sine of the positions' angles, (B, 1, S, D); the sine has the sign of the rotation. See `Rotary`."""
    frequencies = graph.weight("rotary.frequencies", inverse_frequencies(config).view(1, 1, 1, -1))
    positions = graph.add("Cast", "position_ids", to=TensorProto.FLOAT)
    angles = graph.add("Mul", graph.add("Unsqueeze", positions, graph.integers(1, 3)), frequencies)
    factor = graph.number(float(attention_factor(config)))
    cos, sin = (graph.add("Mul", graph.add(operator, angles), factor) for operator in ("Cos", "Sin"))
    return graph.add("Concat", cos, cos, axis=-1), graph.add("Concat", graph.add("Neg", sin), sin, axis=-1)


def _attention(
    graph: _Graph, x_BSE: str, layer: int, mask: str, rotary: tuple[str, str], state: Mapping[str, Tensor], config: DenseConfig
) -> str:
    name, size, keys = f"model.layers.{layer}.self_attn", config.head_size, config.num_key_value_heads
    q = _heads(graph, x_BSE, f"{name}.q", config.num_attention_heads, state, config)
    k, v = (_heads(graph, x_BSE, f"{name}.{part}", keys, state, config) for part in "kv")
    q, k = _rotated(graph, q, rotary), _rotated(graph, k, rotary)
    k, v = (
        graph.add("Concat", f"past_key_values.{layer}.{part}", new, output=f"present.{layer}.{part}", axis=2)
        for part, new in (("key", k), ("value", v))
    )
    q_BKGSD = graph.add("Reshape", q, graph.integers(0, keys, config.num_attention_heads // keys, -1, size))
    k_BK1TD, v_BK1TD = (graph.add("Unsqueeze", each, graph.integers(2)) for each in (k, v))
    scores = graph.add("MatMul", q_BKGSD, graph.add("Transpose", k_BK1TD, perm=[0, 1, 2, 4, 3]))
    scores = graph.add("Add", graph.add("Mul", scores, graph.number(size**-0.5)), mask)
    o_BKGSD = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v_BK1TD)
    o_BSKGD = graph.add("Transpose", o_BKGSD, perm=[0, 3, 1, 2, 4])
    o_BSE = graph.add("Reshape", o_BSKGD, graph.integers(0, 0, config.num_attention_heads * size))
    return _linear(graph, o_BSE, f"{name}.o_proj", state)


def _heads(graph: _Graph, x_BSE: str, name: str, count: int, state: Mapping[str, Tensor], config: DenseConfig) -> str:
    """A projection, split into heads, (B, heads, S, D), and normalised if the layout does that."""
    x = graph.add("Reshape", _linear(graph, x_BSE, f"{name}_proj", state), graph.integers(0, 0, count, config.head_size))
    if f"{name}_norm.weight" in state:
        x = _norm(graph, x, f"{name}_norm", state, config)
    return graph.add("Transpose", x, perm=[0, 2, 1, 3])


def _rotated(graph: _Graph, x: str, rotary: tuple[str, str]) -> str:
    swapped = graph.add("Concat", *graph.swapped_halves(x), axis=-1)
    return graph.add("Add", graph.add("Mul", x, rotary[0]), graph.add("Mul", swapped, rotary[1]))


def _feed_forward(graph: _Graph, x_BSE: str, name: str, state: Mapping[str, Tensor]) -> str:
    gate, up = (_linear(graph, x_BSE, f"{name}.{part}_proj", state) for part in ("gate", "up"))
    silu = graph.add("Mul", gate, graph.add("Sigmoid", gate))
    return _linear(graph, graph.add("Mul", silu, up), f"{name}.down_proj", state)


def _linear(graph: _Graph, x: str, name: str, state: Mapping[str, Tensor], output: str = "") -> str:
    """x times a matrix, which is stored as (inputs, outputs), as tools that quantise a graph expect, and a bias if there is
    one."""
    weight = graph.weight(f"{name}.weight_transposed", state[f"{name}.weight"].t().contiguous())
    if f"{name}.bias" not in state:
        return graph.add("MatMul", x, weight, output=output)
    return graph.add("Add", graph.add("MatMul", x, weight), graph.weight(f"{name}.bias", state[f"{name}.bias"]), output=output)


def _norm(graph: _Graph, x: str, name: str, state: Mapping[str, Tensor], config: DenseConfig) -> str:
    """RMSNorm over the last dimension."""
    mean = graph.add("ReduceMean", graph.add("Mul", x, x), graph.integers(-1), keepdims=1)
    root = graph.add("Sqrt", graph.add("Add", mean, graph.number(config.rms_norm_eps)))
    return graph.add("Mul", graph.add("Div", x, root), graph.weight(f"{name}.weight", state[f"{name}.weight"]))


def _model(graph: _Graph, config: DenseConfig) -> onnx.ModelProto:
    new, whole = "sequence_length", "past_sequence_length + sequence_length"
    inputs = [_value(name, TensorProto.INT64, ("batch_size", length)) for name, length in (
        ("input_ids", new), ("attention_mask", whole), ("position_ids", new),
    )]  # fmt: skip
    outputs = [_value("logits", TensorProto.FLOAT, ("batch_size", new, config.vocab_size))]
    for layer in range(config.num_hidden_layers):
        for part in ("key", "value"):
            for values, name, length in (
                (inputs, "past_key_values", "past_sequence_length"), (outputs, "present", whole),
            ):  # fmt: skip
                shape = ("batch_size", config.num_key_value_heads, length, config.head_size)
                values.append(_value(f"{name}.{layer}.{part}", TensorProto.FLOAT, shape))
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, list(graph.constants.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="mm")


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
