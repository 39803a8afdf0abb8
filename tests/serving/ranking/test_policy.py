"""Policies: what is packaged, what a file may say, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.ranking.policy import PACKAGED, Policies, PolicyError, Rule, load, parse


def test_the_packaged_policies() -> None:
    policies = load()
    assert list(policies.contexts) == ["homepage", "item", "cart", "email"]
    homepage, email = policies.of("homepage"), policies.of("email")
    assert homepage.explore_slot == 8 and homepage.diversity > policies.of("item").diversity
    assert (email.explore_slot, email.session, email.preference) == (0, 0, 0)  # stable
    assert (policies.of("item").candidates, policies.of("cart").candidates) == ("item", "cart")
    assert homepage.deadline("on_demand") == 0.08
    with pytest.raises(KeyError, match="known: homepage, item, cart, email"):
        policies.of("nowhere")


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("""
[contexts.homepage]
diversity = 0
deadlines_ms = { list = 5 }

[[rules.boost]]
category = "Comedy"
add = 0.5
contexts = ["homepage", "email"]

[[rules.block]]
attribute = "age_rating"
value = "18"
""")
    changed, packaged = load(path), load()
    assert changed.of("homepage").diversity == 0.0 and changed.of("homepage").session == packaged.of("homepage").session
    assert changed.of("homepage").deadline("list") == 0.005
    assert changed.of("homepage").deadline("features") == packaged.of("homepage").deadline("features")
    block = Rule("block", attribute="age_rating", value="18")
    assert changed.of("item").rules == (block,) and changed.of("cart").candidates == "cart"
    assert changed.of("email").rules == (Rule("boost", category="Comedy", add=0.5, contexts=("homepage", "email")), block)


def test_a_context_of_ones_own(tmp_path: Path) -> None:
    text = PACKAGED.read_text().partition("[contexts.item]")[0].replace("contexts.homepage", "contexts.search")
    assert parse(text, "f", load()).of("search").explore_slot == 8


@pytest.mark.parametrize(("text", "said"), [
    ("a = 1", "line 1: unknown key 'a'; known: contexts, rules"),
    ("x = [", "f: "),
    ("[contexts.homepage]\n\ndiversity = 2", "line 3: diversity is a number from 0 to 1, not 2"),
    ("[contexts.homepage]\nexplore_slot = 1.5", "line 2: explore_slot is a whole number from 0 to 100, not 1.5"),
    ("[contexts.homepage]\nsession = true", "line 2: session is a number from 0 to 10, not True"),
    ("[contexts.homepage]\nsession = nan", "line 2: session is a number"),
    ("[contexts.item]\nsession = 1\n[contexts.homepage]\nsesion = 1", "line 4: unknown key 'sesion'"),
    ("[contexts.homepage]\ncandidates = 'x'", "line 2: candidates is one of list, item, cart, not 'x'"),
    ("[contexts.homepage]\ndeadlines_ms = {lists = 1}", "line 2: unknown deadline 'lists'; known: features, list"),
    ("[contexts.homepage]\ndeadlines_ms = {popular = 20}", "line 2: unknown deadline 'popular'; known: features, list"),
    ("[contexts.homepage]\ndeadlines_ms = {list = 0}", "line 2: deadline list is from 1 to 60000 ms, not 0"),
    ("[contexts.mine]\nsession = 1", "line 1: context 'mine' needs 'candidates'"),
    ("[[rules.block]]\nitem = 'a'\n[[rules.block]]\ncategory = 1", "line 4: category is a text, not 1"),
    ("[[rules.block]]\nitem = 'a'\ncategory = 'b'", "line 3: a rule names one of item, category, attribute"),
    ("[[rules.block]]\nitem = 'a'\nadd = 1", "line 3: a block has no 'add'"),
    ("[[rules.boost]]\nitem = 'a'", "line 1: a boost needs 'add'"),
    ("[[rules.boost]]\nattribute = 'a'\nadd = 1", "line 2: attribute and value go together"),
    ("[[rules.boost]]\nitem = 'a'\nadd = 1\ncontexts = ['x']", "line 4: contexts is a list of homepage, item, cart, email"),
    ("[rules]\nblock = 1", "line 2: write each rule as [[rules.block]]"),
    ("contexts = 1", "line 1: 'contexts' is a table"),
])
def test_errors_name_the_line(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse(text, "f", load())
    assert said in str(error.value) and str(error.value).startswith("f")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(PolicyError, match="nowhere"):
        load(Path("/nowhere.toml"))
    with pytest.raises(PolicyError, match="needs 'candidates'"):
        parse("[contexts.a]\nsession = 1", "f", Policies({}))
