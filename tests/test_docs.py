"""The documentation site builds without a warning, asks for nothing from outside, and its code runs."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trickbag.recipe import published
from trickbag.tricks import catalogue
from trickbag.tricks.base import Trick

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide" / "add-a-trick.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "build_docs.py"), "--out", str(out), "--no-pictures"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "site"


def test_there_is_a_page_a_trick_and_a_page_a_recipe(site: Path) -> None:
    for kind, trick in catalogue().items():
        page = (site / "tricks" / f"{kind}.html").read_text(encoding="utf-8")
        assert trick.card.title.replace("&", "&amp;") in page
        assert "In a plain PyTorch loop" in page
    for name in published():
        assert (site / "recipes" / f"{name}.html").is_file()


def test_reading_it_asks_for_nothing_from_outside(site: Path) -> None:
    wanted = re.compile(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=\"(https?:)?//([^\"]+)\"")
    for page in site.rglob("*.html"):
        found = [m[0] for m in wanted.finditer(page.read_text(encoding="utf-8")) if "canonical" not in m[0]]
        assert not found, (page.name, found)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


@pytest.mark.parametrize("kind", ["gaussian_blur", "mosaic", "random_resized_crop", "one_cycle"])
def test_a_card_has_a_picture_of_what_the_trick_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import build_docs

    trick = catalogue()[kind]
    name = build_docs.picture(trick, build_docs.photographs(), tmp_path)
    assert name is not None
    shown = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert min(shown.shape[:2]) > 100
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
    assert f"../pictures/{name}" in build_docs.trick_page(trick, name)


def test_the_trick_of_the_guide_works() -> None:
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert code is not None
    module = types.ModuleType("guide")
    sys.modules["guide"] = module
    try:
        exec(compile(code[1], str(GUIDE), "exec"), vars(module))
    finally:
        del sys.modules["guide"]
    members = (value for value in vars(module).values() if isinstance(value, type))
    tricks = [trick for trick in members if issubclass(trick, Trick) and "kind" in vars(trick)]
    assert [trick.kind for trick in tricks] == ["random_negative"]
    images = torch.randint(256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    changed = tricks[0](p=0.5)(images)
    inverted = [torch.equal(one, 255 - other) for one, other in zip(changed, images, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(changed, images, strict=True)]
    assert 10 < sum(inverted) < 54
    assert sum(inverted) + sum(same) == 64
    assert torch.equal(tricks[0].null()(images), images)
