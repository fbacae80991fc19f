"""Chat templates in the styles of public model families, written for the tests. None has generation marks."""

from __future__ import annotations

from collections.abc import Sequence

from mm.runtime.text.messages import Message
from mm.runtime.text.template import ChatTemplate, Conversation

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# content is trimmed; calls are JSON in place of the content; tools stand in the first turn of the user
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) }}"
    "{{ '<|end_header_id|>\n\n' }}{% if loop.first and tools %}{% for t in tools %}{{ t | tojson(indent=4) + '\n\n' }}"
    "{% endfor %}{% endif %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '{\"name\": \"' + c.function.name + '\", \"parameters\": ' }}"
    "{{ c.function.arguments | tojson }}{{ '}' }}{% endfor %}{% else %}{{ m.content | trim }}{% endif %}{{ '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# no header for the assistant; tools stand before the last turn of the user; calls must have ids of nine characters
MISTRAL = (
    "{{ '<s>' }}{% set last = namespace(user=0) %}{% for m in messages if m.role == 'user' %}"
    "{% set last.user = messages.index(m) + 1 %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if loop.index == last.user and tools %}"
    "{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids must have nine characters') }}{% endif %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson }}{{ ', ' if not loop.last else '' }}"
    "{% endfor %}{{ ']</s>' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS] ' + ({'content': m.content, 'call_id': m.tool_call_id} | tojson) + '[/TOOL_RESULTS]' }}{% else %}"
    "{{ raise_exception('no system turn') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# a conversation that is complete ends with a further token
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
# null content and arguments as text for turns that call; thoughts are dropped; the prompt opens a think block
DEEPSEEK = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' and m.content is none %}{{ '<|Assistant|>' }}{% for c in m.tool_calls %}"
    "{{ '<|call|>' + c.type + '<|sep|>' + c.function.name + '\n```json\n' + c.function.arguments + '\n```<|endcall|>' }}"
    "{% endfor %}{{ '<|eos|>' }}{% elif m.role == 'assistant' %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|eos|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|output|>' + m.content + '<|endoutput|>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)

STYLES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "phi": PHI, "deepseek": DEEPSEEK}
ENDS = {
    "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>", "phi": "<|end|>",
    "deepseek": "<|eos|>",
}  # fmt: skip
CONTROL = (
    "<s>", "</s>", "<bos>", "<|begin|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|User|>",
    "<|Assistant|>", "<|call|>", "<|sep|>", "<|endcall|>", "<|output|>", "<|endoutput|>", "<|eos|>",
)  # fmt: skip


def template(source: str) -> ChatTemplate:
    """A template whose tokenizer has the special tokens of all styles."""
    return ChatTemplate(source, CONTROL, {})


def conversation(source: str, messages: Sequence[Message], tools: Sequence[dict[str, object]] = ()) -> Conversation:
    """The messages, rendered."""
    return template(source).conversation([message.as_dict() for message in messages], tools)


def learned(rendered: Conversation) -> list[str]:
    """The texts of the assistant's turns."""
    turns: dict[int, str] = {}
    for piece in rendered.pieces:
        if piece.turn is not None:
            turns[piece.turn] = turns.get(piece.turn, "") + piece.text
    return [turns[turn] for turn in sorted(turns)]


def whole(rendered: Conversation) -> str:
    """The text of all pieces."""
    return "".join(piece.text for piece in rendered.pieces)
