"""The README and the pages of docs/ hold together: their code runs, and their links lead somewhere.

The blocks of a page run one after the other in one namespace, with the names of `namespace`. A
block that cannot run here has a comment above it, which says why.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import fused_contrastive as fc

ROOT = Path(fc.__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(?:<!-- not run: ([^\n]+) -->\n)?```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


def namespace() -> dict:
    """Return the names that the pages use without defining them."""
    rows = {}
    for name in ("z1", "z2", "u", "v", "query", "key", "x1", "x2"):
        rows[name] = torch.randn(128, 128, requires_grad=name not in ("key", "x1", "x2"))
    encoder = torch.nn.Linear(128, 128)
    rows |= {"image_features": rows["u"], "text_features": rows["v"]}
    scalars = {"temperature": 0.1, "scale": 14.0, "logit_scale": 14.0}
    functions = {name: getattr(fc, name) for name in fc.__all__}
    models = {"encoder": encoder, "model": encoder, "labels": torch.arange(128) // 2}
    return {"torch": torch, "F": F, **functions, **rows, **scalars, **models}


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone, for the pages that pass ``group="world"``."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.no_poison
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name
)
def test_code_runs(page, one_rank):
    torch.manual_seed(0)
    names = namespace()
    for reason, code in blocks(page):
        if reason:
            continue
        package = re.search(r"integrations\.(\w+)", code)
        if package and not importlib.util.find_spec(package[1]):
            # The tests of the package's drop-ins run where it is installed.
            continue
        try:
            exec(compile(code, str(page), "exec"), names)
        except Exception as error:
            raise AssertionError(f"this block of {page.name} does not run:\n{code}") from error
    fc.set_backend(None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, _ in LINK.findall(page.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_loss_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for name in fc.__all__:
        if name.endswith("_loss"):
            assert f"`{name}`" in text, name
