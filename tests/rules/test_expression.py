"""Expressions: how they are read, and which ones are refused where."""

from __future__ import annotations

import pickle

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data.feature_rows import taken_rows
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError
from blossomrec.rules import Rules
from blossomrec.rules.expression import And, Comparison, Flag, Not, Or, Value, parse
from blossomrec.rules.item_table import ItemTable, read_item_table
from blossomrec.rules.tokens import ExpressionError

ROWS = 37


def frame(rng=None):
    """Items 10, 11, ... with numbers, flags, one or several categories and titles, with gaps."""
    rng = np.random.default_rng(3) if rng is None else rng
    pick = lambda *names: [names[number] for number in rng.integers(0, len(names), ROWS)]  # noqa: E731
    return pl.DataFrame(
        {
            "item_id": np.arange(ROWS) + 10,
            "price": pick(None, 0.1, 19.99, 20.0, -3.0, 7.5),
            "sold_out": pick(True, False, None),
            "genre": pick("Crime", "Crime|Drama", "Drama|War", None, "sci-fi"),
            "brand_id": pick(4, 5, None, 12),
            "title": pick("Heat (1995)", "heat 2", None, 'The "Heat"', "Alien"),
            "odd name": pick(1.0, 2.0, None),
        },
        strict=False,
    )


@pytest.fixture(scope="module")
def table():
    items = Vocabulary(pl.Series(np.arange(ROWS) + 10))
    return ItemTable(items, read_item_table(frame(), items))


@pytest.fixture(scope="module")
def rows():
    """The same table, a dictionary for each item, categories as lists."""
    found = []
    for row in frame().to_dicts():
        row["genre"] = None if row["genre"] is None else row["genre"].split("|")
        row["brand_id"] = None if row["brand_id"] is None else [str(row["brand_id"])]
        row["sold_out"] = None if row["sold_out"] is None else [str(row["sold_out"]).lower()]
        found.append(row)
    return found


LITERALS = {
    "price": ["0.1", "19.99", "20", "-3", "1e40", "7.50", "0"],
    "`odd name`": ["1", "2", "1.5"],
    "genre": ['"Crime"', "'Drama'", '"War"', '"none such"'],
    "brand_id": ["4", '"12"', "5"],
    "sold_out": ["true", "false"],
    "title": ['"Heat (1995)"', '"Alien"', r'"The \"Heat\""'],
    "item_id": ["10", '"12"', "45"],
}
EQUAL = ["==", "!=", "in", "not in"]
OPERATORS = {
    "price": [*EQUAL, "<", "<=", ">", ">="],
    "`odd name`": [*EQUAL, "<", ">="],
    "genre": [*EQUAL, "contains"],
    "brand_id": EQUAL,
    "sold_out": EQUAL,
    "title": [*EQUAL, "contains"],
    "item_id": EQUAL,
}


PARTS = ['"r"', '"HEAT"', '"a"', '""', '"("']


@st.composite
def comparisons(draw):
    column = draw(st.sampled_from(list(LITERALS)))
    if draw(st.integers(0, 9)) == 0:
        return f"{column} {draw(st.sampled_from(['==', '!=']))} null"
    if column == "sold_out" and draw(st.booleans()):
        return column
    operator = draw(st.sampled_from(OPERATORS[column]))
    if operator == "contains":
        return f"{column} contains {draw(st.sampled_from(PARTS))}"
    if operator in ("in", "not in"):
        values = draw(st.lists(st.sampled_from(LITERALS[column]), min_size=1, max_size=3))
        return f"{column} {operator} ({', '.join(values)})"
    return f"{column} {operator} {draw(st.sampled_from(LITERALS[column]))}"


def grown(parts):
    joined = st.tuples(parts, st.sampled_from([" and ", " or "]), parts).map("".join)
    return st.one_of(joined, parts.map("({})".format), parts.map("not {}".format))


EXPRESSIONS = st.recursive(st.one_of(comparisons(), st.just("true")), grown, max_leaves=8)


def naive(text, row):
    """What an expression says of one item, by a program of Python over lists and numbers."""
    return eval(_translated(text), {"__builtins__": {}}, {"_": Naive(row)})


class Naive:
    """The comparisons of one row, the plainest way."""

    def __init__(self, row):
        self.row = row

    def __call__(self, column, operator, *wanted):
        value = self.row[column]
        if wanted == (None,):
            return (value is None) == (operator == "==")
        if value is None:
            return False
        own = value if isinstance(value, list) else [value]
        if column == "item_id":
            wanted = [int(each) for each in wanted]
        elif isinstance(value, list):
            wanted = [str(each).lower() if isinstance(each, bool) else str(each) for each in wanted]
        elif not isinstance(value, str):
            own, wanted = [np.float32(value)], [np.float32(each) for each in wanted]
        if operator == "contains":
            return any(wanted[0].lower() in each.lower() for each in own)
        if operator in ("==", "in"):
            return any(each in wanted for each in own)
        if operator in ("!=", "not in"):
            return not any(each in wanted for each in own)
        one, other = own[0], wanted[0]
        return {"<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other}[
            operator
        ]


def _translated(text):
    """The expression as calls of Python, by regular expressions instead of a parser."""
    import re

    value = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|-?[\d.]+(?:e\d+)?|true|false|null)"""
    column = r"(`[^`]+`|[a-z_]+)"
    pattern = (
        rf"{column} (==|!=|<=|>=|<|>|contains) ({value})"
        rf"|{column} (in|not in) \(({value}(?:, {value})*)\)|\b(sold_out)\b|\b(true)\b"
    )

    def call(found):
        if found[7]:
            return '_("sold_out", "==", True)'
        if found[8]:
            return "True"
        name, operator, values = found.groups()[:3] if found[1] else found.groups()[3:6]
        for word, plain in (("true", "True"), ("false", "False"), ("null", "None")):
            values = re.sub(rf"(?<![\w\"'])\b{word}\b", plain, values)
        return f'_("{name.strip("`")}", "{operator}", {values})'

    return re.sub(pattern, call, text)


@pytest.mark.filterwarnings("ignore:no item has", "ignore:overflow")
@settings(deadline=None, max_examples=300)
@given(text=EXPRESSIONS)
def test_an_expression_is_true_of_the_items_that_it_is_true_of(table, rows, text):
    assert table.where(text).tolist() == [naive(text, row) for row in rows], text


def test_the_oracle_tells_rows_apart(rows):
    found = [naive('price < 20 and not sold_out or genre contains "sci"', row) for row in rows]
    assert 0 < sum(found) < ROWS


def test_and_binds_closer_than_or_and_not_closest():
    text = "not a and b or c == 1 and (d or e)"
    found = parse(text)
    assert isinstance(found, Or) and len(found.parts) == 2
    first, second = found.parts
    assert isinstance(first, And) and isinstance(first.parts[0], Not)
    assert [first.parts[0].part, first.parts[1]] == [Flag("a", 5), Flag("b", 11)]
    assert second.parts[0] == Comparison("c", "==", (Value(1.0, 21),), 16)
    assert second.parts[1] == Or((Flag("d", 28), Flag("e", 33)))
    # Of neighbours the order of evaluation is that of writing.
    assert parse("a or b or c") == Or(
        tuple(Flag(n, p) for n, p in zip("abc", (1, 6, 11), strict=True))
    )


def test_names_and_texts_are_quoted_in_several_ways(table):
    assert parse("`odd name` == 1") == Comparison("odd name", "==", (Value(1.0, 15),), 1)
    assert parse("`not`") == Flag("not", 1)
    (value,) = parse(r"""title == 'it''s'""".replace("''", r"\'")).values
    assert value.value == "it's"
    assert parse(r'a == "\\n"').values[0].value == r"\n"
    assert table.where("price<20 and not(sold_out)").any()


@pytest.mark.parametrize(
    "text, place, words",
    [
        ("", 1, "a column, 'not' or '(' is expected, not the end"),
        ("price <", 8, "a number, a text in quotes, true, false or null is expected, not the end"),
        ("price << 3", 8, "a number, a text in quotes, true, false or null is expected, not '<'"),
        ("price = 3", 7, "'=' begins nothing; equal is =="),
        ("20 > price", 1, "a column, 'not' or '(' is expected, not 20.0"),
        ("price < other", 9, "is expected, not 'other'"),
        ("(price < 3", 11, "')' is expected, not the end"),
        ("price < 3)", 10, "'and', 'or' or the end is expected, not ')'"),
        ("price < 3 price", 11, "'and', 'or' or the end is expected, not 'price'"),
        ("price < 3 and", 14, "a column, 'not' or '(' is expected, not the end"),
        ("genre in Crime", 10, "'(' is expected, not 'Crime'"),
        ("genre in ()", 11, "a number, a text in quotes, true, false or null is expected, not ')'"),
        ('genre in ("a" "b")', 15, "',' or ')' is expected, not 'b'"),
        ('genre not "a"', 11, "'in' is expected, not 'a'"),
        ("title contains 3", 16, "a text in quotes is expected, not 3.0"),
        ('title == "a', 10, 'what is quoted by " does not end'),
        ("`price < 3", 1, "what is quoted by ` does not end"),
        ("price < 3kg", 9, "a number is not followed by a letter"),
        ("price & 3", 7, "'&' begins nothing"),
        ("import os; x", 8, "'and', 'or' or the end is expected, not 'os'"),
        ("price.__class__", 6, "'.' begins nothing"),
        ("not " * 101 + "a", 401, "more than 100 parts stand inside of each other"),
        ("(" * 50_000, 101, "more than 100 parts stand inside of each other"),
        # What is well formed and does not fit the table.
        ("prise < 3", 1, "there is no column 'prise': the table of items has price, sold_out"),
        ("true and prise < 3", 10, "did you mean 'price'?"),
        ('price < "3"', 9, "price is a number: a number is expected, not '3'"),
        ("price in (1, true)", 14, "price is a number: a number is expected, not true"),
        (
            'price contains "3"',
            1,
            "price is a number: ==, !=, <, <=, >, >=, in, not in is expected",
        ),
        ("genre < 3", 1, "genre is a category: ==, !=, in, not in, contains is expected, not <"),
        ("title == 3", 10, "title is a text: a text in quotes is expected, not 3.0"),
        ("item_id == 1.5", 12, "item_id is an id: a whole number or a text in quotes"),
        ("item_id > 3", 1, "item_id is an id: ==, !=, in, not in is expected, not >"),
        ("price < null", 9, "null is compared by == and != alone, not by <"),
        ('genre in ("a", null)', 16, "null is compared by == and != alone, not by in"),
        ("price", 1, "price is a number: a comparison is expected after it"),
        ("not genre", 5, "genre is a category: a comparison is expected after it"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(table, text, place, words):
    with pytest.raises(ExpressionError) as error:
        table.where(text)
    assert error.value.place == place
    assert words in str(error.value)
    assert f"character {place}: " in str(error.value)
    assert "\n" not in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.place) == (str(error.value), place)


@settings(deadline=None)
@given(st.text(alphabet="ab01<>=!()\"'`,. \\\nnotinradul", max_size=30))
def test_any_text_is_an_expression_or_refused_inside_of_it(text):
    try:
        parse(text)
    except ExpressionError as error:
        assert 1 <= error.place <= len(text) + 1


def test_names_that_no_item_has_are_told(table):
    with pytest.warns(UserWarning, match="no item has genre 'Crme'"):
        assert not table.where('genre == "Crme"').any()
    with pytest.warns(UserWarning, match="no item has the id 7"):
        assert not table.where("item_id == 7").any()


def test_without_a_table_there_are_ids_alone():
    table = ItemTable(Vocabulary(pl.Series(["a", "b", "12"])), None)
    assert table.where('item_id in ("a", 12)').tolist() == [True, False, True]
    with pytest.raises(ExpressionError, match="the items have no table and item_id"):
        table.where("price < 3")


def test_a_table_in_other_rows_is_the_same_table(table):
    order = np.array([5, -1, 0, 36, 5, -1])
    ids = np.array([15, 900, 10, 46, 15, 901])
    other = taken_rows([table.features], order)
    wanted = frame().join(pl.DataFrame({"item_id": np.unique(ids)}), on="item_id", how="right")
    read = read_item_table(wanted, Vocabulary(pl.Series(np.unique(ids))))
    places = np.searchsorted(np.unique(ids), ids)
    for name in ("price", "odd name"):
        np.testing.assert_array_equal(other[name].values, read[name].values[places])
    for name in ("title", "genre", "brand_id", "sold_out"):
        assert [other[name][n] for n in range(6)] == [read[name][n] for n in places]
    assert not ItemTable(Vocabulary(pl.Series(range(6))), other).where("genre != 'War'")[1]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"filter": "price <"}, "filter: 'price <', character 8: "),
        ({"filter": 3}, "filter is 3: an expression is needed"),
        ({"boost": [("a", 1), ("b <", 1)]}, "boost[1]: 'b <', character 4"),
        ({"boost": [("a", float("nan"))]}, "boost[0] is nan: a finite number is needed"),
        ({"boost": ["a"]}, "boost[0] is 'a': (expression, amount) is needed"),
        ({"max_per": {"genre": 0}}, "max_per['genre'] is 0: it must be at least 1"),
        ({"max_per": ["genre"]}, "max_per is ['genre']: limits by column are needed"),
        ({"diversity": 1}, "diversity is 1: it must be from 0 to under 1"),
        ({"diversity": True}, "diversity is True: a finite number is needed"),
        ({"exclude_seen_days": 0}, "exclude_seen_days is 0: it must be over 0"),
        ({"fallback": "popular"}, "fallback is 'popular': choose one of none, recent-popularity"),
    ],
)
def test_rules_out_of_bounds_are_named(options, words):
    with pytest.raises(ConfigError) as error:
        Rules(**options)
    assert words in str(error.value)
