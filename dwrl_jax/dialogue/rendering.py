"""Conversations as texts and as ids. The tokenizer's own chat template writes every text.

A thought and its answer stand in a conversation in one of these forms:

    turns     two turns of the assistant, with the second question between them (layout "two_turns")
    fields    one turn, with the thought in a field of the message, such as `reasoning_content` (layout "one_turn")
    content   one turn, with "<think>", the thought and "</think>" in the content of the message
    prompt    one turn behind the generation prompt. It is for templates that show no thought, such as DeepSeek's: what
              the model writes there is never rendered again.
"""

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue import limits
from dwrl_jax.dialogue.questions import message
from dwrl_jax.dialogue.tokenizers import one_line

FORMS = {"two_turns": ("turns",), "one_turn": ("fields", "content", "prompt")}  # of each layout, the best first
FIELDS = ("reasoning_content", "reasoning", "thinking")  # names that templates have for the thought in a message
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"


def as_text(dialogue, conversations, prompt) -> list[str]:
    """The texts of conversations. With `prompt`, each ends where the assistant's next turn begins."""

    def rendered() -> list[str]:
        return dialogue.tokenizer.apply_chat_template(
            conversations,
            chat_template=dialogue.template,
            add_generation_prompt=prompt,
            tokenize=False,
            **{"date_string": dialogue.texts.date} | dialogue.texts.template_arguments,
        )

    try:
        return limits.limited(rendered, len(conversations))
    except UserError:
        raise
    except Exception as error:  # a template is a program from somebody else and may raise anything
        raise UserError(f"the chat template refuses a conversation: {one_line(error)}") from error


def up_to_thought(dialogue, conversations) -> list[str]:
    """The texts of conversations that end with a question, each up to the place where the thought begins.

    A generation prompt may end otherwise than a turn begins: Qwen3.5's opens a <think> block that a past turn lacks. So
    `dialogue.cut` is taken from its end, and `dialogue.opening` is put there.
    """
    texts = as_text(dialogue, conversations, prompt=True)
    if not all(text.endswith(dialogue.cut) for text in texts):
        raise UserError(f"the chat template refuses a conversation: its prompt does not end with {dialogue.cut!r}")
    return [text.removesuffix(dialogue.cut) + dialogue.opening for text in texts]


def whole(dialogue, rows) -> list[str]:
    """The whole texts of (conversation up to the question, thought, answer)."""
    if dialogue.form == "prompt":
        opened = up_to_thought(dialogue, [asked for asked, _, _ in rows])
        ends = [f"{thought}{CLOSE}{answer}{dialogue.closing}" for _, thought, answer in rows]
        return [text + end for text, end in zip(opened, ends)]
    return as_text(dialogue, [[*asked, *_reply(dialogue, *said)] for asked, *said in rows], prompt=False)


def encode(dialogue, texts) -> list[list[int]]:
    """Ids of rendered conversations, after the begin token if only the tokenizer adds it."""
    # verbose=False: data.buckets limits the lengths, not the tokenizer's model_max_length
    batch = dialogue.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    begin = list(dialogue.begin_ids)
    return [begin + ids for ids in batch["input_ids"]] if begin else batch["input_ids"]


def _reply(dialogue, thought, answer) -> list[dict[str, str]]:
    """The turns after the first question."""
    if dialogue.form == "turns":
        second = message("user", dialogue.texts.answer_question)
        return [message("assistant", thought), second, message("assistant", answer)]
    if dialogue.form == "fields":
        return [message("assistant", answer) | dict.fromkeys(FIELDS, thought)]
    return [message("assistant", f"{OPEN}{thought}{CLOSE}{answer}")]
