"""The built-in world's tokenizer and chat template."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dwrl_jax.data.world.world import OPERATIONS, STATES, STYLES

JUDGE, ASK, ANSWERS = "judge", "good?", ("yes", "no")
OTHER_ANSWERS = ("A", "B", "a", "I")  # answers of other dialogues, so that any config can be tried on the world
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word of the world, and with the world's chat template."""
    special = ["<pad>", "<bos>", "<end>", "<user>", "<assistant>", "<system>"]
    words = [*(f"s{i}" for i in range(STATES)), *(f"o{i}" for i in range(OPERATIONS)), *STYLES]
    words += [*(f"off{i}" for i in range(STATES // 2 + 1)), "hm"]
    words += [JUDGE, ASK, *ANSWERS, *OTHER_ANSWERS, "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
