"""Tokenizers: their chat templates, begin tokens and control tokens."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.dialogue import limits

DOWNLOADED = ["*.json", "*.jinja", "*.txt", "*.model"]
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that do exactly what tokenizer.json says
# The template for tokenizers without one, such as those of base models. The blank line is before a turn and not after
# it, so that nothing follows the eos token of the last turn.
FALLBACK_TEMPLATE = (
    "{%- if bos_token is defined and bos_token %}{{- bos_token }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not loop.first %}{{- '\\n\\n' }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{{- 'User: ' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}{{- 'Assistant: ' + message['content'] + eos_token }}"
    "{%- else %}{{- message['content'] }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n\\nAssistant:' }}{%- endif %}"
)
NEW_PAD = "<|pad|>"
_MARK = re.compile(r"<[|｜].*[|｜]>|</?\w+_\w+>|</?think>|\[/?[A-Z_]+\]")  # no tag of HTML, which is a token of Gemma


def load_tokenizer(path) -> Any:
    """The tokenizer in a local folder or of a hub id, with a chat template. UserError if it cannot be loaded."""
    # slow to import, and not needed by callers who have a tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        folder = (
            path if Path(path).is_dir() else huggingface_hub.snapshot_download(str(path), allow_patterns=DOWNLOADED)
        )
        kind = PreTrainedTokenizerFast if _is_generic(Path(folder)) else AutoTokenizer
        tokenizer = kind.from_pretrained(str(folder))
    except Exception as error:  # transformers raises many types without a common base class
        raise UserError(
            f"tokenizer {str(path)!r} cannot be loaded: give a folder with tokenizer.json or a hub id "
            f"({one_line(error)})"
        ) from error
    named = [i for i in end_ids(folder) if i in tokenizer.added_tokens_decoder]
    if tokenizer.eos_token_id is None and named:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(named[0])
        say(f"note: {folder}: the tokenizer names no end token; {tokenizer.eos_token!r} of the model's config is taken")
    return with_template(tokenizer)


def end_ids(folder) -> tuple[int, ...]:
    """The end tokens that generation_config.json and config.json of a model folder name. Llama 3.1 has three."""
    ends = set()
    for name in ("generation_config.json", "config.json"):
        named = _read_object(Path(folder) / name).get("eos_token_id")
        ends |= {i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)}
    return tuple(sorted(ends))


def _is_generic(folder: Path) -> bool:
    """Whether a folder's tokenizer is defined by tokenizer.json alone, and by no class of a model.

    AutoTokenizer would replace it by the class of the model's family, which splits words in another way. Some folders
    of Llama 3's kind name Llama's class, which does not split at bytes: transformers 5.3 to 5.21 then lose all blanks
    (DeepSeek-R1-Distill-Llama).
    """
    name = _read_object(folder / "tokenizer_config.json").get("tokenizer_class") or ""
    if name.removesuffix("Fast") != "LlamaTokenizer":
        return name in GENERIC
    splitter = _read_object(folder / "tokenizer.json").get("pre_tokenizer") or {}
    return "ByteLevel" in {part.get("type") for part in (splitter, *(splitter.get("pretokenizers") or ()))}


def _read_object(path: Path) -> dict:
    """The object in a JSON file; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def with_template(tokenizer) -> Any:
    """The same tokenizer. If it has no chat template, it gets FALLBACK_TEMPLATE, and an export then contains this.

    UserError if it has no eos token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no eos token: set eos_token in tokenizer_config.json"
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else (templates,):
        limits.check(template)
    return tokenizer


def check_vocabulary(tokenizer, vocab_size: int) -> None:
    """UserError if a token has no row in the embedding of a model with `vocab_size` rows."""
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    if max(tokens) >= vocab_size:
        first = min(i for i in tokens if i >= vocab_size)
        raise UserError(
            f"the tokenizer has token ids up to {max(tokens)}, but the model's vocabulary ends at {vocab_size - 1}: "
            f"{tokens[first]!r} and later tokens were added without a row for them; resize the model "
            "(transformers: resize_token_embeddings) and save it again, or give the tokenizer that belongs to it"
        )


def set_pad_token(tokenizer, vocab_size: int) -> int | None:
    """The id of a pad token that occurs in no conversation. If the pad token occurs in one, the tokenizer gets another.

    transformers reads a reward at the last token that is not the pad token, so it would skip an end token that is also
    the pad token. The choice is, in this order: the tokenizer's pad token; a reserved special token; the unknown token;
    a new token, if a model with `vocab_size` embeddings has room for it. None if none of these is possible: in
    transformers such a model then accepts only a single text at a time.
    """
    taken = {*_conversation(with_template(tokenizer)), tokenizer.bos_token_id, tokenizer.eos_token_id, None}
    if tokenizer.pad_token_id not in taken:
        return tokenizer.pad_token_id
    special = {i: token.content.lower() for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special}
    reserved = [i for word in ("pad", "reserved", "unused") for i, content in special.items() if word in content]
    free = [i for i in (*reserved, tokenizer.unk_token_id) if i not in taken]
    if free:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    elif max(tokenizer.get_vocab().values()) + 1 < vocab_size:
        tokenizer.add_special_tokens({"pad_token": NEW_PAD})
    else:
        return None
    return tokenizer.pad_token_id


def _conversation(tokenizer) -> list[int]:
    """Ids of a conversation of four turns. Their text has a rare character that many tokenizers do not know."""
    turns = [{"role": role, "content": "a \U0001f9ff"} for role in ("user", "assistant")] * 2
    try:
        return limits.limited(lambda: tokenizer.apply_chat_template(turns, return_dict=False))
    except UserError:
        raise
    except Exception as error:  # Jinja and the templates raise many types
        raise unusable(one_line(error)) from error


def begin_ids(tokenizer, ids, question_ids) -> tuple[int, ...]:
    """The begin token to add before a rendered conversation so that it begins with exactly one; () if none is to be.

    UserError if the template prints it several times at the front, or elsewhere without being a mark of turns.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return ()
    # A token between two turns marks turns: it closes them (GPT-2's), opens them (SmolLM2's), or both. Only at the
    # front it is a begin token as well.
    printed = (ids[:2] if bos in question_ids else ids).count(bos)
    if printed > 1 or (printed == 1 and ids[0] != bos):
        raise unusable(f"begin token {tokenizer.bos_token!r} printed {printed} times; it must come once, at the front")
    added = tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
    return (bos,) if added and not printed else ()


def control_tokens(tokenizer, marks, template) -> dict[str, int]:
    """{control token: id}, the longest first.

    They are the special tokens, and of the other added tokens those with which the template marks turns (`marks`, ids),
    those that stand in the template, and those of a form that templates have: <|...|>, <tool_call>, <think>, [INST].
    """
    added = tokenizer.added_tokens_decoder
    control = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    others = {i: token.content for i, token in added.items() if token.content.strip()}
    control |= {text for i, text in others.items() if i in marks or text in template or _MARK.fullmatch(text)}
    longest_first = sorted(control, key=lambda token: (-len(token), token))
    return {token: tokenizer.convert_tokens_to_ids(token) for token in longest_first}


def unknown_id(tokenizer) -> int | None:
    """The id that the tokenizer itself gives to what it does not know; None if it knows everything."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    unknown = getattr(model, "unk_token", tokenizer.unk_token)
    return tokenizer.convert_tokens_to_ids(unknown) if unknown else None


def whole_words(tokenizer) -> frozenset[str] | None:
    """The vocabulary of a tokenizer for which every word between blanks is a token; None for any other tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, WordLevel):
        return None
    return frozenset(backend.get_vocab()) if isinstance(backend.pre_tokenizer, WhitespaceSplit) else None


def unusable(why) -> UserError:
    return UserError(f"the chat template is not usable: {why}")


def one_line(error) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
