"""What `doctor` says of containers: images, mounts, and paths that jobs would not see inside."""

from pathlib import Path

import pytest
from bad_input import World
from doctor_cases import Chain

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

MOUNTS, IMAGE = "cluster.container.mounts", "cluster.container.image"


@pytest.fixture
def chain(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """In pyxis with an image, and everything mounted."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nemo.sqsh").touch()
    made = Chain(tmp_path, world)
    made.cluster["container"] = {"runtime": "pyxis", "image": str(tmp_path / "nemo.sqsh"), "mounts": ["/tmp:/tmp:ro"]}
    made.cluster["container"]["mounts"] += [f"{place}:{place}" for place in (tmp_path, world.folder)]
    return made


def mount(chain: Chain, *places: object) -> None:
    chain.cluster["container"]["mounts"] = [str(place) for place in places]


def test_a_container_that_has_everything(chain: Chain) -> None:
    assert chain.failing() == {}
    assert chain.check(IMAGE).level == "OK"


def test_a_mount_with_a_slash_at_its_end(chain: Chain, world: World, tmp_path: Path) -> None:
    mount(chain, f"{tmp_path}/:{tmp_path}", f"{world.folder}:{world.folder}/")
    assert chain.failing() == {}


@pytest.mark.parametrize("image", ["nemo.sqsh.old", "nemo.sif", "sandbox"])
@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_an_image_file_that_is_not_there(chain: Chain, tmp_path: Path, runtime: str, image: str) -> None:
    chain.cluster["container"] |= {"runtime": runtime, "image": str(tmp_path / image)}
    line = chain.only(IMAGE)
    assert line.startswith("FAIL")
    assert f"{tmp_path / image} does not exist" in line


@pytest.mark.parametrize(("runtime", "advice"), [("pyxis", "enroot import"), ("apptainer", "apptainer pull")])
def test_a_registry_where_nodes_have_no_network(chain: Chain, runtime: str, advice: str) -> None:
    chain.cluster["container"] |= {"runtime": runtime, "image": "nvcr.io/nvidia/nemo:25.11"}
    line = chain.only(IMAGE)
    assert line.startswith("WARN")
    assert advice in line
    assert chain.failing("cluster.offline=false") == {}


def test_docker_has_its_own_store_of_images(chain: Chain) -> None:
    chain.cluster["container"] |= {"runtime": "docker", "image": "nvcr.io/nvidia/nemo:25.11"}
    assert chain.failing() == {}


@pytest.mark.parametrize(("runtime", "level"), [("pyxis", "FAIL"), ("docker", "FAIL"), ("apptainer", "WARN")])
def test_a_model_outside(chain: Chain, world: World, tmp_path: Path, runtime: str, level: str) -> None:
    chain.cluster["container"]["runtime"] = runtime
    mount(chain, f"{tmp_path}:{tmp_path}")
    line = chain.only(MOUNTS)
    assert line.startswith(level)
    for path in (world.student, world.teacher):
        assert str(path) in line
    assert f"{world.folder}:{world.folder}" in line


def test_data_outside(chain: Chain, world: World) -> None:
    mount(chain, f"{world.folder}:{world.folder}")
    line = chain.only(MOUNTS)
    assert line.startswith("FAIL")
    assert f"{chain.pairs} lies in no" in line


def test_the_run_folder_is_always_there(chain: Chain, world: World) -> None:
    mount(chain, f"{world.folder}:{world.folder}", f"{chain.pairs}:{chain.pairs}")
    assert chain.failing() == {}


def test_a_mount_under_another_path_shows_nothing_under_the_first(chain: Chain, world: World, tmp_path: Path) -> None:
    mount(chain, f"{tmp_path}:{tmp_path}", f"{world.folder}:/models")
    assert str(world.student) in chain.only(MOUNTS)


def test_a_folder_whose_name_begins_alike_is_another(chain: Chain, world: World, tmp_path: Path) -> None:
    mount(
        chain,
        f"{tmp_path}:{tmp_path}",
        f"{world.student}:{world.student}",
        f"{world.folder}/teach:{world.folder}/teach",
    )
    assert str(world.teacher) in chain.failing()[MOUNTS]


OUTSIDE = ("third.student.tokenizer", "third.data.validation", "judge.data.chat_template", "judge.data.validation")


@pytest.mark.parametrize("key", OUTSIDE)
def test_other_files_that_jobs_read(chain: Chain, world: World, key: str, tmp_path: Path) -> None:
    """tmp_path is mounted as a whole but for `apart`, a folder beside it."""
    apart = tmp_path.parent / f"{tmp_path.name} apart"
    apart.mkdir(exist_ok=True)
    if key.endswith("validation"):
        place = apart / "rows.jsonl"
        place.write_text(chain.pairs.read_text())
    elif key.endswith("chat_template"):
        place = apart / "own.jinja"
        place.write_text((world.student / "chat_template.jinja").read_text())
    else:
        place = apart / "tokenizer"
        place.symlink_to(world.student)
    mount(chain, f"{tmp_path}:{tmp_path}", f"{world.folder}:{world.folder}")
    line = chain.only(MOUNTS, f"{key}='{place}'")
    assert line.startswith("FAIL")
    assert str(place) in line


def test_a_store_in_the_place_of_a_stage(chain: Chain, world: World, tmp_path: Path) -> None:
    mount(chain, f"{tmp_path}:{tmp_path}", *(f"{p}:{p}" for p in (world.student, world.teacher)))
    line = chain.only(MOUNTS, f"judge={world.store}")
    assert str(world.store) in line


def test_the_cache_of_the_jobs(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/var/cache")
    assert "/var/cache lies in no" in chain.only(MOUNTS)


@pytest.mark.parametrize("mounts", [["/tmp"], ["tmp:/tmp"], [":"], ["/a:/b:/c:/d"]])
def test_what_is_no_mount(chain: Chain, mounts: list[str]) -> None:
    mount(chain, *mounts)
    line = chain.only("cluster.container")
    assert line.startswith("FAIL")
    assert "/HOST/PATH:/CONTAINER/PATH" in line


def test_a_mount_that_is_not_here_may_be_on_the_nodes(chain: Chain) -> None:
    chain.cluster["container"]["mounts"].append("/raid/scratch:/scratch")
    line = chain.only(MOUNTS)
    assert line.startswith("WARN")
    assert "/raid/scratch" in line


def test_nothing_to_install(chain: Chain) -> None:
    chain.cluster["container"]["install"] = "/no/checkout"
    line = chain.only("cluster.container.install")
    assert line.startswith("FAIL")
    assert "/no/checkout" in line


def test_a_stage_with_a_container_of_its_own(chain: Chain, tmp_path: Path) -> None:
    line = chain.only("third.cluster.container.image", "third.cluster.container.image=/no/other.sqsh")
    assert "/no/other.sqsh" in line


def test_a_stage_without_a_container_needs_no_mounts(chain: Chain, world: World, tmp_path: Path) -> None:
    mount(chain, f"{tmp_path}:{tmp_path}", f"{world.teacher}:{world.teacher}")
    bare = [f"{stage}.cluster.container.runtime=none" for stage in ("second",)]
    assert chain.failing(*bare) == {}
    assert str(world.student) in chain.only(MOUNTS)
