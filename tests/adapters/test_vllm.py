"""Parity: the calls that the pages name give our score. vLLM runs on no CPU here: transformers stands in for it.

The stand-in does what vLLM documents: it renders `messages` by the model's chat template, as `continue_final_message`
and `chat_template_kwargs` say, and gives the log-probability of each token of that prompt.
"""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from dwrl_jax.adapters import vllm
from dwrl_jax.adapters.client import JudgeError
from dwrl_jax.judge import columns, exported, load
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.score import prepare
from tests.judge.exports import export
from tests.judge.test_score import CARD, PAIRWISE, SCORES
from tests.small import REPO

torch = pytest.importorskip("torch", reason="the stand-in needs PyTorch")
PROMPT = [{"role": "system", "content": "hm"}, {"role": "user", "content": "s1 o1 o2"}]
ROW = {"prompt": PROMPT, "responses": ["s2 warm", "s5 curt"]}
PLAIN = dataclasses.replace(CARD, thoughts="none")
CARDS = {
    "verdict": dataclasses.replace(CARD, buckets=(32,), max_thought=4),
    "score": dataclasses.replace(PLAIN, kind="score", texts=SCORES),
    "label": dataclasses.replace(PLAIN, kind="label", texts=PAIRWISE, readout="choices"),
}


class StandIn:
    """`post` takes the place of the client's; `calls` are the bodies that it got."""

    def __init__(self, folder, thoughts):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer, self.thoughts, self.calls = AutoTokenizer.from_pretrained(folder), thoughts, []

    def post(self, at, path, body):
        assert path == "/v1/chat/completions" and body["model"] == "judge"
        self.calls.append(body)
        if "n" in body:
            texts = self.thoughts.pop(0)
            return {"choices": [{"index": i, "message": {"content": text}} for i, text in enumerate(texts)]}
        how = {name: body[name] for name in ("add_generation_prompt", "continue_final_message")}
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, **how, **body["chat_template_kwargs"]
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
        each = [{str(t): {"logprob": float(logp[i, t]), "rank": 1}} for i, t in enumerate(ids[1:])]
        return {"prompt_logprobs": [None, *each], "choices": []}


def reading(folder, written):
    """Our votes and scores, from a reading of written thoughts."""
    loaded = load(folder)
    prepared = prepare(loaded, ROW)
    answers = {}
    for _, question in prepared.questions:
        asked = [exported._asked(loaded, prepared, question, text) for text in written[question.responses[0]]]
        answers[question.responses] = Answer(np.array([exported._ours(loaded, ids) for ids in asked]))
    scored = columns.scored(loaded, prepared.read, answers)
    return scored["votes"], scored["score"]


@pytest.mark.parametrize("name", CARDS)
def test_parity_of_the_two_calls(name, tmp_path, monkeypatch):
    folder = export(tmp_path / "judge", CARDS[name])
    written = [["s1 s2 hm", "s2"], ["", "off3 s4"]] if name == "verdict" else [[""], [""]]
    votes, scores = reading(folder, written)
    stand_in = StandIn(folder, [*written])
    monkeypatch.setattr(vllm, "post", stand_in.post)
    count = len(written[0])
    got = vllm.score(folder / "judge.json", PROMPT, ROW["responses"], count, model="judge", connections=1, seed=3)
    np.testing.assert_allclose(np.log(got["votes"]), np.log(votes), atol=1e-4)
    np.testing.assert_allclose(got["score"], scores, atol=1e-5)
    assert got["thoughts"] == written and len({*got["score"]}) == 2
    if name == "verdict":
        thought = stand_in.calls[0]
        assert (thought["n"], thought["max_tokens"], thought["temperature"], thought["top_k"]) == (2, 4, 1.0, -1)
        assert thought["seed"] == 3 and thought["messages"][-1] == {"role": "user", "content": "judge"}


def test_a_reply_without_a_probability_is_no_score(monkeypatch):
    card = json.loads(json.dumps(dataclasses.asdict(CARDS["score"])))
    for reply in ({}, {"prompt_logprobs": [None]}, {"prompt_logprobs": [None, {"7": {"logprob": float("nan")}}]}):
        monkeypatch.setattr(vllm, "post", lambda *_, reply=reply: reply)
        with pytest.raises(JudgeError, match="no log-probability"):
            vllm.score(card, PROMPT, ["s2 warm"], model="judge")
    with pytest.raises(JudgeError, match="0 thoughts in the reply, not 8"):
        vllm.score(card | {"thoughts": "policy"}, PROMPT, ["s2 warm"], model="judge")


@pytest.mark.parametrize("change", [{"kind": "reward"}, {"thoughts": "start"}, {"texts": {"layout": "one_turn"}}])
def test_judges_that_cannot_be_asked_so(change):
    card = json.loads(json.dumps(dataclasses.asdict(CARDS["score"])))
    change = {"texts": card["texts"] | change["texts"]} if "texts" in change else change
    with pytest.raises(JudgeError, match="only a judge that reads its own thoughts"):
        vllm.score(card | change, PROMPT, ["s2 warm"], model="judge")


def test_a_judge_that_escapes_cannot_be_asked_so():
    card = json.loads(json.dumps(dataclasses.asdict(CARDS["score"])))
    with pytest.raises(JudgeError, match="vLLM would read control tokens"):
        vllm.score(card | {"texts": card["texts"] | {"control": "escape"}}, PROMPT, ["s2 warm"], model="judge")


def test_no_jax_in_the_process_of_the_caller():
    code = "import dwrl_jax.adapters.vllm, sys; assert not {'jax', 'torch', 'flax'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
