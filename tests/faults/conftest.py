"""One workshop for all fault tests: the weights to start from, the uninterrupted run, and one that was killed half-way."""

import json

import pytest
from harness import CONFIG, KILLED, Workshop, whole_steps
from injections import Fault
from tidy import tidied


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """With the runs `whole` (never disturbed) and `stopped` (killed in step 8, with the checkpoints of steps 3 to 7)."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("faults")
    torch.manual_seed(1)
    model = torchvision.models.mobilenet_v3_small().train()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None  # the statistics of what it sees, so that the features do not vanish on the way
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    save_file(model.state_dict(), folder / "start.safetensors")
    config = {**CONFIG, "run": {"dir": str(folder / "runs")}}
    config["model"] = {**CONFIG["model"], "weights": str(folder / "start.safetensors")}
    (folder / "config.yaml").write_text(json.dumps(config))
    shop = Workshop(folder)
    codes, said = shop.run("whole")
    assert codes == [0, 0], said
    stopped = shop.start("stopped", "save.every=1 steps", "save.keep=5", "save.background=false", fault=Fault("killed in forward", step=8))
    assert stopped.wait_for_the_dead() == [KILLED, KILLED], stopped.said()
    assert whole_steps(shop.path("stopped")) == [3, 4, 5, 6, 7]
    yield shop
    shop.close()


@pytest.fixture
def shop(workshop, request):
    """The workshop, from which the runs of each test are gone after it."""
    with tidied(request, workshop.folder / "runs"):
        yield workshop


@pytest.fixture
def images(tmp_path):
    """Eight plain images of each of two classes."""
    from PIL import Image

    for split, count in (("train", 8), ("val", 4)):
        for shade, name in ((40, "a"), (200, "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 20), (shade + i, 90, 40)).save(tmp_path / split / name / f"{i:02d}.png")
    return tmp_path
