"""The estimator study. Exact: its gradients against those through the model, its moments against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dwrl_jax.core.types import PreferenceBatch
from dwrl_jax.judge.judge import logps
from dwrl_jax.objectives import dwrl
from studies import estimator, estimator_page
from tests.small import given_thoughts

NAMES = list(estimator.ESTIMATORS)


@pytest.fixture(scope="module")
def enumerated():
    """The study's judge, one pair and all that is known of it."""
    judge, params = estimator.make_judge(0)
    prefix = jnp.asarray(estimator.random_prefixes(1, 0))
    return judge, params, prefix, estimator.enumerate_pairs(judge, params, prefix)


def squared_norm(products, numbers):
    numbers = np.asarray(numbers, np.float64).ravel()
    return numbers @ np.asarray(products, np.float64) @ numbers


def test_all_thoughts_are_there_once(enumerated):
    log_pi = enumerated[-1].tables[0]
    thought, length = estimator.thought_space()
    assert len({tuple(one[:size]) for one, size in zip(thought.tolist(), length)}) == len(thought) == 57
    np.testing.assert_allclose(jax.nn.logsumexp(log_pi, -1), 0, atol=1e-5)


def test_exact_gradient_is_that_through_the_model(enumerated):
    """The two terms together are the gradient of -log P(y+ > y-) by the parameters, so their norms add up to it."""
    judge, params, prefix, pairs = enumerated
    flat, restore = ravel_pytree(params)
    thoughts = estimator.thought_space()
    numbers = estimator.exact_numbers(pairs.tables)

    def tables(flat):
        return estimator.tables_of(judge, restore(flat), prefix, *thoughts)

    @jax.jit
    def gradients(flat):
        whole = jax.grad(lambda x: dwrl.pair_nll(jax.nn.logsumexp(tables(x).sum(0), -1)).sum())(flat)
        _, pull = jax.vjp(tables, flat)
        return whole, [pull(numbers * jnp.eye(2)[kind][:, None, None, None])[0] for kind in (0, 1)]

    whole, parts = jax.tree.map(lambda x: np.asarray(x, np.float64), gradients(flat))
    np.testing.assert_allclose(parts[0] + parts[1], whole, atol=1e-5 * np.abs(whole).max())
    for kind in (0, 1):
        assert squared_norm(pairs.products[kind], numbers[kind]) == pytest.approx(parts[kind] @ parts[kind], rel=1e-4)


@pytest.fixture(scope="module")
def group(enumerated):
    """Places of a group of thoughts, its tokens and Logps, and the way from d loss / d Logps to the parameters."""
    judge, params, prefix, _ = enumerated
    index = np.array([[[3, 40, 40, 7], [0, 12, 56, 21]]])
    thought, length = estimator.thought_space()
    sides = (1, 2)
    batch = PreferenceBatch(
        prefix, jnp.full(sides, estimator.PREFIX), jnp.full(sides, estimator.GOOD), jnp.ones(1, bool), jnp.arange(1)
    )
    thoughts = given_thoughts(thought[index], length[index])
    flat, restore = ravel_pytree(params)

    @jax.jit
    def pull(given):
        return jax.vjp(lambda x: logps(judge, restore(x), batch, thoughts), flat)[1](given)[0]

    found = jax.jit(lambda: logps(judge, params, batch, thoughts))()
    return index, thoughts.replace(old_logp=found.thought), found, pull


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_is_the_gradient_of_its_loss_through_the_model(enumerated, group, name):
    """Token by token, with the densities of the sampler: what a thought as one token stands for."""
    index, thoughts, found, pull = group
    pairs, (term, loss) = enumerated[-1], estimator.ESTIMATORS[name]
    expected = np.asarray(pull(jax.grad(lambda given: loss(given, thoughts)[0].sum())(found)), np.float64)
    numbers = estimator.group_numbers(loss, pairs.tables, jnp.asarray(index))
    assert squared_norm(pairs.products[term], numbers[term]) == pytest.approx(expected @ expected, rel=1e-3)


@pytest.fixture(scope="module")
def made_up():
    """Two pairs with three thoughts each and random gradients, in eight dimensions."""
    rng = np.random.default_rng(0)
    log_pi, log_s = jax.nn.log_softmax(rng.normal(size=(2, 2, 3))), jax.nn.log_sigmoid(rng.normal(size=(2, 2, 3)))
    gradients = rng.normal(size=(2, 12, 8)).astype(np.float32)
    return estimator.Pairs(jnp.stack([log_pi, log_s]), jnp.asarray(gradients @ gradients.transpose(0, 2, 1)))


def moments(pairs, name, part):
    """Bias, sd, mean cosine by all groups of two, each with its probability."""
    term, loss = estimator.ESTIMATORS[name]
    log_pi = np.asarray(pairs.tables[0], np.float64)
    groups = np.array(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)  # both sides of one pair
    each, chances = [], []
    for pair in part:
        one = pairs.tables[:, pair : pair + 1]
        found = jax.jit(jax.vmap(lambda g, one=one: estimator.group_numbers(loss, one, g[None])[term]))(groups)
        each.append(np.asarray(found, np.float64).reshape(len(groups), -1))
        chances.append(np.exp(np.take_along_axis(log_pi[pair][None], groups, -1).sum((1, 2))))
    index = list(itertools.product(range(len(groups)), repeat=len(part)))
    drawn = np.array([np.concatenate([each[p][i] for p, i in enumerate(row)]) for row in index])
    chance = np.array([np.prod([chances[p][i] for p, i in enumerate(row)]) for row in index])
    own = np.concatenate([np.arange(pair * 6, pair * 6 + 6) for pair in part])
    products = np.asarray(pairs.products[term], np.float64)[np.ix_(own, own)]
    exact = np.asarray(estimator.exact_numbers(pairs.tables)[term], np.float64).ravel()[own]
    mean, length = chance @ drawn, np.sqrt(exact @ products @ exact)
    norm = np.sqrt(np.einsum("ni,ij,nj->n", drawn, products, drawn))
    cosine = np.divide(drawn @ products @ exact, norm * length, where=norm > 0, out=np.zeros_like(norm))
    bias = np.sqrt((mean - exact) @ products @ (mean - exact))
    sd = np.sqrt(chance @ norm**2 - mean @ products @ mean)
    return chance.sum(), bias / length, sd / length, chance @ cosine


@pytest.mark.parametrize("name", NAMES)
def test_drawn_moments_are_those_of_enumeration(made_up, name):
    parts = {"second": [1], "both": [0, 1]}
    for row, part in zip(estimator.study(made_up, parts, name, 2, 40_000), parts.values()):
        total, bias, sd, cosine = moments(made_up, name, part)
        assert total == pytest.approx(1, abs=1e-5)
        assert row["bias"] == pytest.approx(bias, abs=4 * row["chance"])
        assert row["sd"] == pytest.approx(sd, rel=0.03) and row["cosine"] == pytest.approx(cosine, abs=0.02)
        assert row["chance"] == pytest.approx(sd / 200, rel=0.03)


def test_one_thought_with_a_baseline_says_nothing(made_up):
    (row,) = estimator.study(made_up, {"first": [0]}, "1/n", 1, 100)
    assert row["bias"] == pytest.approx(1) and row["sd"] == row["cosine"] == 0 and row["signal_to_noise"] is None


def test_the_closest_pair_is_chosen():
    """Four thoughts as likely as each other, of which a share makes the score: P(y+ > y-) is 0.8, 0.5, 0.5."""
    score = np.array([[[0.4] * 4, [0.1] * 4], [[0.4, 0, 0, 0], [0, 0.4, 0, 0]], [[0.4, 0.4, 0.2, 0.2]] * 2])
    log_pi = np.full(score.shape, np.log(0.25))
    tables = jnp.asarray([log_pi, np.log(score + 1e-9)])
    wanted = {"peaked": (0.5, 3.0), "even": (0.5, 0.1), "easy": (0.9, 0.0001)}
    assert estimator.choose(tables, wanted) == {"peaked": 1, "even": 2, "easy": 0}


def study_of_rows(bias):
    row = {"sd": 2.0, "signal_to_noise": None, "cosine": 0.5, "mean_cosine": 0.75, "chance": 0.02}
    rows = [row | {"pair": p, "estimator": "1/n", "n": n, "bias": bias / n} for p in ("easy", "all") for n in (1, 8)]
    host = {"device": "cpu", "cpu": "a CPU", "cores": 2, "jax": "0", "commit": "abc", "date": "2026-01-01"}
    about = {"command": "python studies/estimator.py", "machine": host, "draws": 10, "thoughts": 57, "parameters": 9}
    return about | {"pairs": {"easy": {"probability": 0.9, "spread": [0.5, 0.4]}}, "rows": rows}


def test_page_has_the_last_part_and_keeps_what_was_written(tmp_path):
    estimator_page.write(study_of_rows(0.4), tmp_path)
    page = tmp_path / "estimator.md"
    page.write_text(page.read_text().replace("# The", "What we learn.\n\n# The"))
    estimator_page.write(study_of_rows(0.1), tmp_path)
    text = page.read_text()
    assert "| 1/n | 1 | 0.10 | 2.00 | – | 0.50 | 0.75 |" in text and "| 1/n | 8 | < 0.020 |" in text
    assert "What we learn." in text and "commit `abc`" in text and text.count("| 1/n |") == 2
    assert (tmp_path / "estimator.png").stat().st_size > 10_000


def test_a_wrong_number_of_draws_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        estimator.main(["--draws=0", f"--output={tmp_path}"])
    assert ended.value.code == 2 and "--draws" in capsys.readouterr().err and not list(tmp_path.iterdir())
