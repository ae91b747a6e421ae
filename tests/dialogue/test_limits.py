"""A chat template is a program from somebody else: it reaches nothing, and it ends."""

import threading
import time

import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.dialogue import Texts, limits, make_dialogue
from dwrl_jax.dialogue.dialogue import Dialogue
from dwrl_jax.dialogue.rendering import as_text
from dwrl_jax.dialogue.tokenizers import set_pad_token, with_template

TURNS = [{"role": "user", "content": "s1 o1"}]
# long enough for the limits below, and short enough to end without them
LOOPS = "{% for i in range(9999) %}" * 2 + "{% endfor %}" * 2
SPACE = "{% set ns = namespace(x=START) %}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(22) }}"
ENDLESS = {
    "loops in loops": LOOPS,
    "a macro that calls itself": TWICE,
    "loops without a text": SPACE.replace("START", "0") + LOOPS.replace("{% endfor", "{% set ns.x = i %}{% endfor", 1),
    "filters": "{% for i in range(300) %}{{ range(99999)|map('string')|join|length }}{% endfor %}",
}
DOUBLING = "{% for i in range(28) %}{% set ns.x = ns.x + ns.x %}{% for j in range(20000) %}{% endfor %}{% endfor %}"
OUTSIDE = (
    "{% include '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__.__base__ }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{% set _ = messages.append(1) %}",
    "{{ self._TemplateReference__context }}",
    "{{ messages[0].update({'content': 'other'}) }}",
    "{% import 'os' as os %}",
)


@pytest.fixture(scope="module")
def tokenizer():
    return with_template(world.make_tokenizer())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    monkeypatch.setattr(limits, "EVERY", 0.02)


def rendered(tokenizer, template):
    return as_text(Dialogue(tokenizer, Texts("a", "b", ("A", "B")), template), [TURNS], True)


def busy():
    end = time.thread_time() + 0.6
    while time.thread_time() < end:
        pass
    return "done"


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(name, tokenizer):
    with pytest.raises(UserError, match="chat template is not usable: it took more than 0 s or 2 GiB"):
        rendered(tokenizer, ENDLESS[name])
    began = time.perf_counter()
    while time.perf_counter() - began < 0.1:  # nothing is raised in this thread any more
        assert rendered(tokenizer, "fine") == ["fine"]
    assert not limits._at_work


@pytest.mark.parametrize("start", ["'a'", "[0]"])
def test_a_template_that_builds_much_is_stopped(start, tokenizer, monkeypatch):
    monkeypatch.setattr(limits, "MEMORY", 1 << 26)
    monkeypatch.setattr(limits, "SECONDS", 60.0)
    monkeypatch.setattr(limits, "SLOW", 0.0)
    before = limits._resident()
    with pytest.raises(UserError, match="it took more than 60 s or"):
        rendered(tokenizer, SPACE.replace("START", start) + DOUBLING)
    assert limits._resident() - before < 1 << 30


def test_other_threads_go_on(tokenizer):
    """A server renders in several threads: the one that does not end is stopped, and the others are not."""
    said = {}

    def work(name, template, times):
        try:
            said[name] = [rendered(tokenizer, template) for _ in range(times)]
        except UserError as error:
            said[name] = error

    threads = [threading.Thread(target=work, args=("bad", LOOPS, 1))]
    threads += [threading.Thread(target=work, args=(i, "{{ messages[0].content }}", 300)) for i in range(3)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert isinstance(said.pop("bad"), UserError)
    assert said == {i: [["s1 o1"]] * 300 for i in range(3)}


def test_the_limit_is_the_threads_own_time(tokenizer):
    """A machine that is busy, or a thread that waits, stops no template."""
    assert limits.limited(lambda: time.sleep(0.6)) is None


def test_long_work_may_take_its_time(tokenizer, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS_EACH", 1.0)

    assert limits.limited(busy, conversations=5) == "done"
    with pytest.raises(UserError):
        limits.limited(busy, conversations=0)


def test_a_template_is_stopped_once():
    """Nothing is raised while it ends, where an exception would come out in the place of the message."""

    def ending():
        with pytest.raises(limits.TooMuch):
            busy()
        return busy()

    assert limits.limited(ending) == "done"


def test_nothing_watches_where_nothing_renders(tokenizer):
    def watched():
        return any(thread.name == "limits of chat templates" for thread in threading.enumerate())

    limits.limited(lambda: time.sleep(0.05))
    assert watched()
    end = time.monotonic() + 5
    while watched() and time.monotonic() < end:
        time.sleep(0.01)
    assert not watched()


@pytest.mark.parametrize("template", OUTSIDE)
def test_a_template_reaches_nothing(template, tokenizer):
    """What it asks for is refused, or is not there and leaves no text."""
    try:
        assert rendered(tokenizer, template) == [""]
    except UserError as error:
        assert str(error).startswith("the chat template refuses a conversation: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    "template", ["{{ 9**9**9 }}", "{{ 'a' * 10000000000 }}", "{% set x = x * x %}", "{{ n * 99999 }}", "{{ 'a' * n }}"]
)
def test_products_that_may_never_end_are_refused(template):
    with pytest.raises(UserError, match=r"it computes with '\*"):
        limits.check(template)


@pytest.mark.parametrize("template", ["{{ loop.index0 * 2 }}", "{{ 4 * ' ' }}", "** {{ '*' }} {# * #}", "{% broken"])
def test_products_that_end_are_not(template):
    limits.check(template)


def test_the_template_of_a_model(tokenizer):
    """Wherever a template is used first."""
    made = world.make_tokenizer()
    made.chat_template = LOOPS
    with pytest.raises(UserError, match="it took more than"):
        make_dialogue(made, Texts("a", "b", ("A", "B")))
    with pytest.raises(UserError, match="it took more than"):
        set_pad_token(made, 999)
    made.chat_template = "{{ 9**9**9**9 }}"
    with pytest.raises(UserError, match="it computes with"):
        with_template(made)


def test_published_templates_are_within_the_limits(shared_data):
    folder = shared_data / "templates"
    names = sorted(folder.glob("*.jinja"))
    assert names
    for path in names:
        limits.check(path.read_text())
