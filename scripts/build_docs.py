"""Builds the documentation site: a page a trick, a page a recipe, guides and pictures.

    uv run --group docs python scripts/build_docs.py            # into build/site
    uv run --group docs python scripts/build_docs.py --serve    # and shows it on a local port

Pages come from cards and recipe files, pictures from what the tricks do to two photographs that come with
scikit-learn. Warnings are errors. The site asks for nothing from outside: open build/site/index.html, or
serve the folder (searching needs that).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from trickbag import interactions
from trickbag import plan as planning
from trickbag.data.base import DataFacts, DataSet, DataSpec
from trickbag.data.holding import Pixels
from trickbag.data.serving import ImageSplit
from trickbag.errors import TrickbagError
from trickbag.recipe import Recipe, diff, load, published
from trickbag.report import pictures
from trickbag.tricks import Bag, Stage, Trick, catalogue
from trickbag.tricks.stages import (
    CropTrick,
    ImageTrick,
    MixControlTrick,
    MixTrick,
    ResolutionTrick,
    ScheduleTrick,
)

ROOT = Path(__file__).parent.parent
SIDE = 192
PICTURED = (ImageTrick, CropTrick, MixTrick, MixControlTrick)
CURVED = (ScheduleTrick, ResolutionTrick)
BESIDE = {"mix_switch": ("mixup", "cutmix"), "mix_off": ("mixup",)}
STAGES = {
    Stage.TARGETS: "What is learned",
    Stage.SAMPLER: "Which images",
    Stage.RESOLUTION: "Resolution",
    Stage.CROP: "Crops",
    Stage.AUGMENT: "Images",
    Stage.MIX: "Mixing images and targets",
    Stage.MICRO_BATCH: "Parts of a batch",
    Stage.MODEL: "Model",
    Stage.FREEZE: "Freezing",
    Stage.LOSS: "Loss",
    Stage.OBJECTIVE: "Objective",
    Stage.PRECISION: "Precision",
    Stage.GRADIENTS: "Gradients",
    Stage.STEP: "Update",
    Stage.PARAM_GROUPS: "Parameter groups",
    Stage.OPTIMIZER: "Optimizer",
    Stage.SCHEDULE: "Schedule",
    Stage.WEIGHTS: "Averaged weights",
    Stage.STOP: "Stopping",
    Stage.PREDICT: "Predicting",
}


def photographs() -> DataSet:
    """Four squares of scikit-learn's two sample photographs, as a data set of two classes."""
    from sklearn.datasets import load_sample_image

    squares = []
    for name in ("china.jpg", "flower.jpg"):
        photo = load_sample_image(name)
        for left in (20, photo.shape[1] - 420):
            square = Image.fromarray(photo[14:414, left : left + 400])
            squares.append(np.asarray(square.resize((256, 256), Image.Resampling.BICUBIC)))
    stack = np.stack(squares)
    sizes = np.full((len(stack), 2), 256, dtype=np.int64)
    labels = np.array([0, 0, 1, 1])
    names = tuple(f"photo {k}" for k in range(len(stack)))
    split = ImageSplit(Pixels(stack.reshape(-1), sizes, 3), np.arange(len(stack)), labels, names, sizes)
    facts = DataFacts(
        name="two photographs",
        classes=("temple", "flower"),
        channels=3,
        sizes={"train": 4000, "selection": 4, "test": 4},
        image_size=(256, 256),
        fingerprint="0" * 32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        counts=(2000, 2000),
    )
    return DataSet(
        DataSpec(source="photographs"), facts, dict.fromkeys(("train", "selection", "test"), split)
    )


def picture(trick: type[Trick], data: DataSet, folder: Path) -> str | None:
    """Draw what a trick does; the file's name, or None where there is nothing to see."""
    if not issubclass(trick, PICTURED + CURVED) or trick.kind == "normalize":
        return None
    beside = [catalogue()[kind].sample() for kind in BESIDE.get(trick.kind, ())]
    recipe = Recipe(
        model="mini_resnet",
        epochs=30,
        batch_size=40,
        image_size=SIDE,
        tricks=Bag([trick.sample(), *beside, catalogue()["normalize"].sample()]),
    )
    plan = planning.compile(recipe, data.facts)
    if issubclass(trick, CURVED):
        figure = pictures.curves(plan)
    else:
        rows = np.array([0, 3, 1, 2] if trick.kind == "mosaic" else [0, 3])
        small = replace(plan, timeline=replace(plan.timeline, batch_size=len(rows)))
        figure = pictures.grid(pictures.views_of(small, data.splits["train"], rows, range(5), seed=1))
    name = f"{trick.kind}.webp"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    Image.open(drawn).convert("RGB").save(folder / name, quality=82)
    return name


def settings_of(trick: type[Trick]) -> Iterator[str]:
    """A table of a trick's settings."""
    if not trick.model_fields:
        yield "None."
        return
    about = attributes(trick)
    yield "| setting | default | meaning |"
    yield "|---|---|---|"
    for name, field in trick.model_fields.items():
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        bounds = ", ".join(limits(field.metadata))
        meaning = about.get(name, "") + (f" ({bounds})" if bounds else "")
        yield f"| `{name}` | {cell(default)} | {cell(meaning)} |"


def limits(metadata: list[Any]) -> Iterator[str]:
    """Bounds of a field, in words."""
    for sign, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        for item in metadata:
            if getattr(item, sign, None) is not None:
                yield f"{word} {getattr(item, sign):g}"


def attributes(trick: type[Trick]) -> dict[str, str]:
    """The settings as the class's docstring describes them."""
    _, _, part = cleandoc(trick.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in part.splitlines():
        if match := re.match(r"^ {4}(\w[\w, ]*): (.*)", line):
            for name in match[1].split(", "):
                found[name] = match[2]
        elif line.startswith("     ") and name:
            found[name] += " " + line.strip()
        elif line.strip() and not line.startswith(" "):
            break
    return {name: text.replace("``", "`") for name, text in found.items()}


def cell(text: str) -> str:
    """Text that fits a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def trick_page(trick: type[Trick], shown: str | None) -> str:
    """A trick's page, in Markdown."""
    card = trick.card
    lines = [
        f"# {card.title}",
        "",
        f"`{trick.kind}` · {STAGES[trick.stage]}"
        + (f" · also called {', '.join(card.aliases)}" if card.aliases else ""),
        "",
        card.summary,
        "",
    ]
    if card.formula:
        lines += ["```", card.formula.strip(), "```", ""]
    if shown:
        alt = f"What {trick.kind} does"
        example = ", ".join(f"{name} = {value}" for name, value in trick.example.items())
        lines += [f"![{alt}](../pictures/{shown})", ""]
        lines += [f"*Settings of the picture: {example or 'the defaults'}.*", ""]
    for title, text in (
        ("Source", card.source),
        ("When it helps and hurts, and values to start from", card.suggested),
        ("Does nothing at", card.null),
        ("Cost", card.cost),
        ("Computed by", card.library),
    ):
        lines += [f"## {title}", "", text, ""]
    lines += ["## Settings", "", *settings_of(trick), ""]
    together = list(together_with(trick))
    if together:
        lines += ["## Together with other tricks", "", *together, ""]
    lines += ["## In a recipe", "", "```yaml", *recipe_lines(trick), "```", ""]
    lines += ["## In a plain PyTorch loop", "", "```python", card.snippet.strip(), "```", ""]
    return "\n".join(lines)


def together_with(trick: type[Trick]) -> Iterator[str]:
    """What a trick needs, excludes, and is better not combined with."""
    if trick.requires:
        yield f"- Needs {', '.join(link(kind) for kind in trick.requires)}."
    if trick.slot:
        others = [t.kind for t in catalogue().values() if t.slot == trick.slot and t.kind != trick.kind]
        if others:
            yield f"- Takes the place of {', '.join(link(kind) for kind in others)}: one of them at a time."
    for row in interactions.of(trick.kind):
        who = [kind for kind in row.kinds if kind != trick.kind]
        to_do = f" To do: {row.fix}." if row.fix else ""
        level = "Refused" if row.level == "error" else "Note"
        beside = f" with {', '.join(link(kind) for kind in who)}" if who else ""
        yield f"- **{level}**{beside}: {row.reason}.{to_do}"


def link(kind: str) -> str:
    """A link to a trick's page from another's; kinds that do not exist stay text."""
    return f"[`{kind}`]({kind}.md)" if kind in catalogue() else f"`{kind}`"


def recipe_lines(trick: type[Trick]) -> list[str]:
    """The trick as a recipe holds it."""
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    settings = {name: trick.sample().settings()[name] for name in trick.example}
    yaml.dump({"tricks": {trick.kind: settings or {}}}, out)
    return out.getvalue().rstrip().splitlines()


def recipe_page(name: str, path: Path) -> str:
    """A recipe's page, in Markdown."""
    recipe, text = load(name), path.read_text(encoding="utf-8")
    about = recipe.about
    lines = [f"# {about.title or name}", "", f"`{name}`", ""]
    if about.notes:
        lines += [about.notes.strip(), ""]
    if about.source:
        lines += ["## Source", "", about.source.strip(), ""]
    if about.published:
        lines += ["## Published numbers", "", "| what | value |", "|---|---|"]
        lines += [f"| {cell(str(key))} | {cell(str(value))} |" for key, value in about.published.items()]
        lines += [""]
    parent = re.search(r"^extends:\s*(\S+)", text, re.M)
    if parent and parent[1] in published():
        lines += [f"## What changes from [`{parent[1]}`]({parent[1]}.md)", ""]
        lines += [f"- `{change.label}`" for change in diff(load(parent[1]), recipe)] + [""]
    values = {"model": recipe.model.name, "epochs": f"{recipe.epochs:g}", "batch size": recipe.batch_size}
    values |= {"image size": recipe.image_size, "evaluation (resize, crop)": recipe.evaluation}
    lines += ["## The whole recipe", "", "| what | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in values.items()]
    for kind, trick in sorted(recipe.tricks.items(), key=lambda item: item[1].order):
        inner = ", ".join(f"{key} = {value}" for key, value in trick.settings().items() if value is not None)
        lines += [f"| [`{kind}`](../tricks/{kind}.md) | {cell(inner)} |"]
    lines += ["", "## As a file", "", "```yaml", text.strip(), "```", ""]
    lines += ["```", f"trickbag train {name} DATA", f"trickbag recipes {name}", "```", ""]
    return "\n".join(lines)


def tricks_index() -> str:
    """All tricks by stage."""
    lines = ["# Tricks", "", f"{len(catalogue())} tricks, in the order in which they act.", ""]
    for stage, title in STAGES.items():
        own = [trick for trick in catalogue().values() if trick.stage is stage]
        if own:
            lines += [f"## {title}", "", "| trick | what it does |", "|---|---|"]
            lines += [f"| {link(trick.kind)} | {cell(trick.card.summary)} |" for trick in own] + [""]
    return "\n".join(lines)


def recipes_index() -> str:
    """All recipes."""
    lines = ["# Recipes", "", "| recipe | what it is |", "|---|---|"]
    for name in published():
        lines += [f"| [`{name}`]({name}.md) | {cell(load(name).about.title)} |"]
    return "\n".join([*lines, ""])


def interactions_page() -> str:
    """The whole list."""
    lines = ["# What does not go together", "", "Errors stop a plan; notes come with it.", ""]
    lines += ["| tricks | | why | what to do |", "|---|---|---|---|"]
    for row in interactions.INTERACTIONS:
        who = ", ".join(link(kind).replace("](", "](tricks/") for kind in row.kinds)
        lines += [f"| {who} | {row.level} | {cell(row.reason)} | {cell(row.fix or '')} |"]
    return "\n".join([*lines, ""])


def benchmarks_page(folder: Path) -> str:
    """Every committed table, with its plot; the plots are copied to ``folder``."""
    results = ROOT / "benchmarks" / "results"
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    lines = [readme.strip(), "", "# Results", ""]
    for path in sorted(results.glob("*.md")):
        lines += [f"## {path.stem}", ""]
        if (plot := path.with_suffix(".svg")).is_file():
            shutil.copy(plot, folder / plot.name)
            lines += [f"![{path.stem}](pictures/{plot.name})", ""]
        lines += [re.sub(r"^#", "##", path.read_text(encoding="utf-8"), flags=re.M).strip(), ""]
    return "\n".join(lines)


def write_pages(folder: Path, drawn: bool = True) -> None:
    """Everything that the site is built from."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    for name in ("tricks", "recipes", "pictures"):
        (folder / name).mkdir()
    data = photographs()
    for trick in catalogue().values():
        shown = picture(trick, data, folder / "pictures") if drawn else None
        (folder / "tricks" / f"{trick.kind}.md").write_text(trick_page(trick, shown), encoding="utf-8")
    for name, path in published().items():
        (folder / "recipes" / f"{name}.md").write_text(recipe_page(name, path), encoding="utf-8")
    (folder / "tricks" / "index.md").write_text(tricks_index(), encoding="utf-8")
    (folder / "recipes" / "index.md").write_text(recipes_index(), encoding="utf-8")
    (folder / "benchmarks.md").write_text(benchmarks_page(folder / "pictures"), encoding="utf-8")
    (folder / "interactions.md").write_text(interactions_page(), encoding="utf-8")


def configuration(folder: Path, site: Path) -> dict[str, Any]:
    """What mkdocs is told."""
    by_stage = []
    for stage, title in STAGES.items():
        own = [t for t in catalogue().values() if t.stage is stage]
        if own:
            by_stage.append({title: [{t.card.title: f"tricks/{t.kind}.md"} for t in own]})
    guides = sorted((folder / "guide").glob("*.md"))
    return {
        "site_name": "trickbag",
        "site_description": "The bag of tricks for training image models, and the proof of each.",
        "docs_dir": str(folder),
        "site_dir": str(site),
        "use_directory_urls": False,
        "strict": True,
        "validation": {"links": {"absolute_links": "warn", "unrecognized_links": "warn"}},
        "theme": {
            "name": "material",
            "font": False,
            "features": ["navigation.indexes", "navigation.top", "content.code.copy"],
            "palette": [
                {"media": f"(prefers-color-scheme: {scheme})", "scheme": name, "primary": "blue grey"}
                for scheme, name in (("light", "default"), ("dark", "slate"))
            ],
        },
        "plugins": ["search"],
        "extra_css": ["assets/extra.css"],
        "markdown_extensions": ["tables", "admonition", "pymdownx.superfences", "pymdownx.highlight"],
        "nav": [
            {"Start": "index.md"},
            {"Guides": [f"guide/{path.name}" for path in guides]},
            {"Tricks": ["tricks/index.md", *by_stage]},
            {"Recipes": ["recipes/index.md", *(f"recipes/{name}.md" for name in published())]},
            {"What does not go together": "interactions.md"},
            *({"Fitting recipes": "recipes.md"} for _ in [0] if (folder / "recipes.md").exists()),
            {"Benchmarks": "benchmarks.md"},
            {"Architecture": "architecture.md"},
            {"Lab notebook": "log.md"},
        ],
    }


def main() -> None:
    """Build the site, or show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder (default: build)")
    parser.add_argument("--serve", action="store_true", help="show the site on a local port")
    parser.add_argument("--no-pictures", action="store_true", help="pages alone")
    options = parser.parse_args()
    folder, site = options.out.absolute() / "pages", options.out.absolute() / "site"
    try:
        write_pages(folder, not options.no_pictures)
    except TrickbagError as error:
        sys.exit(f"error: {error}")
    config = options.out.absolute() / "mkdocs.yml"
    with open(config, "w", encoding="utf-8") as file:
        YAML().dump(configuration(folder, site), file)
    command = [sys.executable, "-m", "mkdocs", "serve" if options.serve else "build", "--strict", "-q"]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    if subprocess.run([*command, "-f", str(config)], check=False, env=quiet).returncode:
        sys.exit(1)
    print(f"site: {site / 'index.html'}")


if __name__ == "__main__":
    main()
