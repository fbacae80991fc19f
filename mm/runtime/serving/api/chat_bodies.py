"""The bodies of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from mm.runtime.serving.api.bodies import Count, DrawingFields, NotServed, StreamOptions, Usage
from mm.runtime.serving.api.logprobs import ChatLogprobs, PromptLogprobs
from mm.runtime.serving.errors import Refusal, not_served
from mm.runtime.serving.options import Drawing
from mm.runtime.serving.prompt import Conversation, read_conversation, read_thinking

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ConversationFields(BaseModel):
    """A conversation and how its prompt is made."""

    messages: list[dict[str, Any]] = Field(description="OpenAI's messages; their content is text.")
    tools: list[dict[str, Any]] | None = Field(None, description="OpenAI's function schemas.")
    tool_choice: str | dict[str, Any] | None = Field(None, description="auto, or none: the model does not see the tools.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="enable_thinking (or open_thinking): true or false.")
    enable_thinking: bool | None = None
    thinking: bool | dict[str, Any] | None = Field(None, description="true, false, or a type of enabled or disabled.")
    reasoning_effort: Effort | None = Field(None, description="none turns thinking off, all others on.")

    def conversation(self) -> Conversation:
        """The parsed conversation. Raises Refusal."""
        switches, own = {**(self.chat_template_kwargs or {})}, self.enable_thinking
        if own is not None and switches.setdefault("enable_thinking", own) != own:
            raise Refusal(400, "'enable_thinking' contradicts the one in 'chat_template_kwargs'.", param="enable_thinking")
        thinking = read_thinking(self.thinking, self.reasoning_effort, switches)
        return read_conversation(self.messages, self._tools(), thinking)

    def _tools(self) -> list[dict[str, Any]] | None:
        if self.tool_choice == "none":
            return None
        if self.tool_choice not in (None, "auto"):
            raise not_served("tool_choice", "only auto and none are.")
        return self.tools


def check_prompt(prompt: object, messages: list[dict[str, Any]]) -> None:
    """Raise Refusal unless there is either a prompt or a conversation."""
    if (prompt is None) == (not messages):
        raise Refusal(400, "Give either 'prompt' or 'messages'.", param="prompt")


class ChatRequest(ConversationFields, DrawingFields):
    """A chat."""

    not_served: ClassVar[NotServed] = {
        "parallel_tool_calls": ((True,), "take the first call of the answer."),
        "functions": (([],), "use 'tools'."),
        "function_call": (("none", "auto"), "use 'tools' and 'tool_choice'."),
        "modalities": ((["text"],), "only text is."),
        "audio": ((), "only text is."),
        "prediction": ((), "leave it out."),
        "web_search_options": ((), "give the model a tool."),
        "continue_final_message": ((False,), "use /v1/completions with the token ids that /render returns."),
        "add_generation_prompt": ((True,), "use /v1/completions with the token ids that /render returns."),
        "chat_template": ((), "the model's own template is used."),
        "documents": (([],), "put them into a message."),
        "echo": ((False,), "use 'prompt_logprobs' or 'return_token_ids'."),
    }

    max_tokens: Count | None = Field(None, description="The older name of max_completion_tokens.")
    max_completion_tokens: Count | None = Field(None, description="Longest completion, thoughts included.")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream_options: StreamOptions | None = None

    def chat_drawing(self) -> Drawing:
        """How the completions are drawn. Raises Refusal."""
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise Refusal(400, "'max_tokens' and 'max_completion_tokens' differ: give one of them.", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(400, "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        check_stream(self, self.stream_options)
        length = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.drawing(length, (self.top_logprobs or 0) if self.logprobs else None)


def check_stream(body: DrawingFields, options: StreamOptions | None) -> None:
    """Raise Refusal for options that fit a stream only, or a whole answer only."""
    if options is not None and not body.stream:
        raise Refusal(400, "'stream_options' needs 'stream': true.", param="stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise Refusal(400, "'prompt_logprobs' are not streamed: leave out 'stream', or them.", param="prompt_logprobs")


class CalledFunction(BaseModel):
    """The function of a call; `arguments` are JSON text."""

    name: str
    arguments: str


class CallBody(BaseModel):
    """A tool call."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """The assistant's turn. Its thoughts have both names that clients read."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallBody] | None = None


class ChatChoice(BaseModel):
    """One completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
