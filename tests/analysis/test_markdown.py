"""Text comes between its markers, and nowhere else."""

import pytest

from llm_jax.analysis.markdown import publish, with_pictures


def test_only_what_stands_between_the_markers_changes(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\nkept\n<!-- /two -->\n")
    publish(document, "one", "new \\1 text")
    expected = "before\n<!-- one -->\n\nnew \\1 text\n\n<!-- /one -->\nbetween\n<!-- two -->\nkept\n<!-- /two -->\n"
    assert document.read_text() == expected
    publish(document, "one", "new \\1 text")
    assert document.read_text() == expected


def test_a_document_without_markers_is_refused(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("<!-- one -->")
    with pytest.raises(ValueError, match="no markers <!-- one --> ... <!-- /one -->: add them"):
        publish(document, "one", "text")
    assert document.read_text() == "<!-- one -->"


def test_pictures_come_along_under_the_name_of_their_file(tmp_path):
    made, lab = tmp_path / "runs", tmp_path / "lab" / "ablations"
    made.mkdir()
    lab.mkdir(parents=True)
    (made / "loss.png").write_bytes(b"picture")
    text = "see [a](b.md) and ![curves](loss.png) and ![far](https://example.org/x.png)"
    found = with_pictures(text, made, lab / "study.py", tmp_path / "lab" / "README.md")
    assert found == text.replace("(loss.png)", "(ablations/study_loss.png)")
    assert (lab / "study_loss.png").read_bytes() == b"picture"
