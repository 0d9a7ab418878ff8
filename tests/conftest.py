"""Fixtures that several tests share: where the real data is, and a folder for a whole file of tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tidy import tidied

settings.register_profile("repository", deadline=None)  # timings are never assertions here
settings.load_profile("repository")


def pytest_configure(config: pytest.Config) -> None:
    """The tests are written for CPUs; where there are GPUs, `pytest -m gpu` alone is shown them."""
    if config.option.markexpr != "gpu" and Path("/dev/nvidiactl").exists():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the tests of one file share; emptied after the last of them."""
    with tidied(request, tmp_path_factory.mktemp(request.path.stem.removeprefix("test_"))) as folder:
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("SFT_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "cifar10" / "train").is_dir():
        pytest.skip(f"no real data in {folder} (SFT_REAL_DATA names the folder)")
    return folder.resolve()


@pytest.fixture(scope="session")
def real_weights(real_data: Path) -> Path:
    """ImageNet features for mobilenet_v2, without a classifier."""
    path = real_data.parent / "weights" / "mobilenet_v2_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no real weights at {path}")
    return path


@pytest.fixture
def saw(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note what was seen of a fault, for the page docs/reliability.md."""
    return lambda text: record_property("saw", text)
