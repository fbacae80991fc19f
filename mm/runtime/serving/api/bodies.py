"""The bodies of OpenAI's dialect: the options of drawing that several endpoints share, usage, errors, unknown fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from mm.runtime.generation.engine import Sampling
from mm.runtime.serving.errors import not_served
from mm.runtime.serving.options import Drawing, read_logit_bias

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]

# option -> (the values that ask for nothing, the cure)
NotServed = Mapping[str, tuple[tuple[Any, ...], str]]

_NOT_SERVED: NotServed = {
    "response_format": (({"type": "text"},), "ask for JSON in a message, and check it."),
    "guided_json": ((), "ask for JSON in a message, and check it."),
    "guided_regex": ((), "check the text, and ask again."),
    "guided_grammar": ((), "check the text, and ask again."),
    "guided_choice": ((), "compare the choices with /v1/score."),
    "structured_outputs": ((), "ask for JSON in a message, and check it."),
    "best_of": ((1,), "ask for 'n' completions with log-probabilities, and take the best."),
    "use_beam_search": ((False,), "leave it out."),
    "length_penalty": ((1, 1.0), "it belongs to beam search: leave it out."),
    "bad_words": (([],), "give their tokens a 'logit_bias' of -100."),
    "allowed_token_ids": ((), "use 'logit_bias'."),
    "truncate_prompt_tokens": ((), "shorten the prompt."),
    "thinking_budget": ((), "'max_tokens' bounds the thoughts and the reply together."),
    "thinking_token_budget": ((), "'max_tokens' bounds the thoughts and the reply together."),
    "skip_special_tokens": ((True,), "ask for 'return_token_ids', and decode them by /detokenize."),
    "include_stop_str_in_output": ((False,), "append the stop text yourself."),
    "add_special_tokens": ((), "send the prompt as token ids to choose its first one."),
    "explain": ((False,), "leave it out."),
    "store": ((False,), "nothing is stored."),
}


class Body(BaseModel):
    """The body of a request. Unknown fields are kept apart in `model_extra`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)
    not_served: ClassVar[NotServed] = {}

    model: str | None = Field(None, description="Name of the model or adapter; by default the first model.")

    def unknown_fields(self) -> list[str]:
        """The fields that nothing reads. Raises Refusal for an option that is known and not served, unless its value asks for
        nothing."""
        known = {**_NOT_SERVED, **self.not_served}
        unknown = []
        for name, value in (self.model_extra or {}).items():
            if name not in known:
                unknown.append(name)
            elif value is not None and value not in known[name][0]:
                raise not_served(name, known[name][1])
        return unknown


class DrawingFields(Body):
    """The options of drawing completions."""

    temperature: float = Field(1.0, ge=0, le=1000, description="0 takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31 - 1, description="0 and -1 are off.")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=1000)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: Seed | None = Field(None, description="Completion i depends on the seed and i alone.")
    stop: StopText | list[StopText] | None = Field(None, description="Texts that end a completion, also across tokens.")
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0
    n: int = Field(1, ge=1, le=128)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, description="Token id -> added logit.")
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="The k likeliest of each prompt token.")
    return_token_ids: bool = False
    stream: bool = False

    def drawing(self, max_new_tokens: int | None, top_logprobs: int | None) -> Drawing:
        """The options in no dialect's words. Raises Refusal."""
        return Drawing(
            sampling=Sampling(
                temperature=self.temperature, top_p=self.top_p, top_k=max(0, self.top_k), min_p=self.min_p,
                repetition_penalty=self.repetition_penalty, presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty, logit_bias=read_logit_bias(self.logit_bias),
            ),
            max_new_tokens=max_new_tokens, min_new_tokens=self.min_tokens, seed=self.seed, n=self.n,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()), ignore_eos=self.ignore_eos, top_logprobs=top_logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )  # fmt: skip


class StreamOptions(BaseModel):
    """The options of a stream."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class CachedTokens(BaseModel):
    """Details of a prompt."""

    cached_tokens: int


class Usage(BaseModel):
    """The tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class ErrorDetail(BaseModel):
    """See `ErrorBody`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


# the answers of every endpoint beside its own, for the schema
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request cannot be served; the message says why.",
        401: "The API key is missing or wrong.",
        403: "The header Host is not this machine's, and no API key protects the server.",
        404: "No such model.",
        413: "The body is too large.",
        422: "The body does not fit the schema.",
        429: "Too many completions are open.",
        500: "The engine failed.",
        503: "The server is shutting down.",
    }.items()
}
