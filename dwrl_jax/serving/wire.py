"""Parts of requests that several protocols have."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.service import Service
from dwrl_jax.serving.transcript import conversation, prompt_of, without_end

MOST = 256  # rows of a request


def _whole(text: str) -> str:
    """ValueError for half of a surrogate pair: JSON can write it, but it is no character, and no tokenizer reads it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Part(BaseModel):
    """A part of a message. Only texts can be judged."""

    type: str
    text: Text


class Message(BaseModel):
    """A turn of a conversation."""

    role: Text = Field(examples=["user"])
    content: Text | list[Part] = Field(examples=["s1 o1 o2"])

    @property
    def turn(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST)]


def turns_of(messages: str | list[Message]) -> list[dict[str, str]]:
    """A conversation as turns. A text is a single user turn."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [message.turn for message in messages]


def read_prompt(service: Service, prompt: str | list[Message], param: str) -> list[dict[str, str]]:
    """The turns of a prompt, which is a text of the chat template, plain text, or messages."""
    if not isinstance(prompt, str):
        return turns_of(prompt)
    try:
        return prompt_of(service.loaded.dialogue, service.marks, prompt)
    except ValueError as error:
        raise Refused(422, str(error), param) from None


def read_response(service: Service, response: str) -> str:
    """A response without the mark that closes its turn."""
    return without_end(service.marks, response)


def read_whole(service: Service, text: str, param: str) -> tuple[list[dict[str, str]], str]:
    """The prompt and the response of a text that the chat template made of both."""
    return divided(conversation(service.marks, text) or [], param)


def divided(turns: list[dict[str, str]], param: str) -> tuple[list[dict[str, str]], str]:
    """The prompt and the response of a conversation that ends with the assistant's turn."""
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise Refused(422, "must be a conversation of this judge's chat template that ends with the response", param)
    return turns[:-1], turns[-1]["content"]
