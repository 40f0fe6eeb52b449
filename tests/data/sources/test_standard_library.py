import ast
import sysconfig
from pathlib import Path

from llm_jax.data.sources import StandardLibraryConfig


def test_it_is_the_running_pythons_own_source_and_nothing_installed():
    root = Path(sysconfig.get_path("stdlib"))
    source = StandardLibraryConfig().build()
    texts = {document.name: document.text for document in source}
    assert texts["ast.py"] == Path(ast.__file__).read_text(encoding="utf-8")
    assert "json/decoder.py" in texts
    assert not [name for name in texts if "site-packages" in name or "dist-packages" in name or "__pycache__" in name]
    assert list(texts) == sorted(texts, key=lambda name: Path(name).parts)
    everything = [
        p for p in root.rglob("*.py") if not {"site-packages", "dist-packages"} & set(p.relative_to(root).parts)
    ]
    written = [path for path in everything if path.stat().st_size]
    # Every file is a document, or is empty, or is one of those that were counted as invalid.
    assert len(texts) + len(source.invalid) == len(written)
    assert not set(source.invalid) & set(texts)
    assert all((root / name).is_file() for name in source.invalid)


def test_replacing_invalid_bytes_keeps_every_file():
    skipping, replacing = StandardLibraryConfig().build(), StandardLibraryConfig(invalid_utf8="replace").build()
    counts = [sum(1 for _ in source) for source in (skipping, replacing)]
    assert counts[1] - counts[0] == len(skipping.invalid) == len(replacing.invalid)
