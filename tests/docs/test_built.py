"""The link check of the built site finds what it is there to find."""

from pathlib import Path

from .built import broken_links


def test_links_to_pages_files_and_anchors_are_followed(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.html").write_text('<h1 id="top">Guide</h1><a href="../#start">back</a>')
    (tmp_path / "plot.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text(
        '<h1 id="start">Start</h1><a href="guide/#top"></a><a href="#start"></a><img src="plot.svg">'
        '<a href="https://example.org/nowhere"></a>'
    )
    assert list(broken_links(tmp_path)) == []


def test_what_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<a href="gone/"></a><a href="#nothing"></a><img src="gone.svg">')
    assert list(broken_links(tmp_path)) == [
        "index.html: gone/: there is no such page or file",
        "index.html: #nothing: there is no such anchor",
        "index.html: gone.svg: there is no such page or file",
    ]
