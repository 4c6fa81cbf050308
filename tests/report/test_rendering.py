"""Templates: what is missing is an error, what is text stays text."""

import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from blossomrec.report import page
from blossomrec.report.page import environment, render_page

ITEM = "<script>alert(1)</script>"


def draw(macro, *content):
    template = f"{{% from 'parts.html' import {macro} %}}{{{{ {macro}(*content) }}}}"
    return environment().from_string(template).render(content=content)


def test_what_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render_page("report.html", sections={})


def test_an_item_id_stays_text_wherever_it_stands():
    cell = page.Cell(ITEM, note=ITEM, best=True, mark="worse", against=ITEM)
    drawing = page.Drawing("0 0 1 1", ITEM, "<g></g>")
    drawn = [
        draw("table", page.TextTable(ITEM, [ITEM, ITEM], [[ITEM, cell]])),
        draw("figures", [page.Figure(ITEM, drawing, ITEM, [page.KeyEntry(0, ITEM)])]),
        draw("definitions", [(ITEM, ITEM)]),
    ]
    for text, times in zip(drawn, (8, 4, 2), strict=True):
        assert "<script" not in text
        assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == times
    assert "<g></g>" in drawn[1]


def test_names_in_a_drawing_stay_text():
    pytest.importorskip("matplotlib")
    figure, axes = page.new_axes(1)
    axes.set_yticks([0, 1], [ITEM, "a & b"])
    drawing = page.to_svg(figure, ITEM)
    assert "<script" not in drawing.body
    assert "&lt;script&gt;" in drawing.body and "a &amp; b" in drawing.body
    assert "svg" not in drawing.body


def test_every_model_of_a_key_looks_like_its_line():
    assert len(page.SWATCHES) == len(page.MARKERS) == len(page.SERIES)
    names = [f"model {number}" for number in range(len(page.SERIES) + 1)]
    looks = [(entry.colour, entry.swatch) for entry in page.key_of(names)]
    assert len(set(looks)) == len(page.SERIES) and looks[0] == looks[-1]
    style = environment().get_template("style.css").render()
    for colour, _ in looks:
        assert f"{colour[4:-1]}: #" in style


def test_measuring_needs_no_drawing():
    """Evaluation and its storage are used where nothing is drawn, such as by the server."""
    code = (
        "import sys, blossomrec.evaluation.evaluation, blossomrec.recommender; "
        "print([name for name in sys.modules if name.startswith('blossomrec.report')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
