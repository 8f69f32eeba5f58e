"""A built wheel, installed outside the checkout: it finds conf/ and the slurm/ templates, and its commands work."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKED = ("pyproject.toml", "README.md", "LICENSE", "nemo_tvkd", "conf", "slurm")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout, with the build tools that are installed here."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKED:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (REPOSITORY / name).is_file():
            shutil.copy(REPOSITORY / name, source / name)
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = output.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed") / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def python(installed: Path, cwd: Path, *arguments: str, site: bool = False) -> subprocess.CompletedProcess[str]:
    """Python without `site` reads no .pth file and so cannot see the checkout's editable install."""
    path = [str(installed), sysconfig.get_paths()["purelib"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path[:1] if site else path)}
    command = [sys.executable, *([] if site else ["-S"]), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {
        str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "nemo_tvkd").rglob("*.py") if "/." not in str(file)
    }
    there |= {f"nemo_tvkd/commands/inspect/page.{kind}" for kind in ("html", "css", "js")}
    for folder, pattern in (("conf", "*.yaml"), ("conf", "*.json"), ("conf", "*.jinja"), ("slurm", "*.sbatch")):
        there |= {f"nemo_tvkd/{file.relative_to(REPOSITORY)}" for file in (REPOSITORY / folder).rglob(pattern)}
    assert packed == there
    assert "nemo_tvkd/slurm/train.sbatch" in packed


@pytest.mark.parametrize("site", [False, True], ids=["without-site", "beside-the-editable-install"])
def test_it_finds_its_files(installed: Path, tmp_path: Path, site: bool) -> None:
    program = (
        "import json, nemo_tvkd\n"
        "from nemo_tvkd.files import package_folder\n"
        "print(json.dumps([nemo_tvkd.__file__, str(package_folder('conf')), str(package_folder('slurm'))]))"
    )
    done = python(installed, tmp_path, "-c", program, site=site)
    assert done.returncode == 0, done.stderr
    package, conf, slurm = (Path(path) for path in json.loads(done.stdout))
    assert package == installed / "nemo_tvkd" / "__init__.py"
    assert conf == installed / "nemo_tvkd" / "conf"
    assert (conf / "algorithm" / "tvkd.yaml").is_file()
    assert slurm == installed / "nemo_tvkd" / "slurm"
    assert (slurm / "train.sbatch").read_bytes() == (REPOSITORY / "slurm" / "train.sbatch").read_bytes()


@pytest.mark.parametrize("command", ["train", "score", "evaluate", "import-hf", "export-hf"])
def test_its_commands_compose(installed: Path, tmp_path: Path, command: str) -> None:
    done = python(installed, tmp_path, "-m", "nemo_tvkd", command, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    here = subprocess.run(
        [sys.executable, "-m", "nemo_tvkd", command, "--cfg", "job"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == here.stdout


def test_a_mistake_is_found(installed: Path, tmp_path: Path) -> None:
    """Past the configuration: every module that a command needs before its ranks is in the wheel."""
    done = python(installed, tmp_path, "-m", "nemo_tvkd", "train", "algorithm=dpo", "student.path=/no/such")
    assert (done.returncode, done.stderr) == (2, "nemo-tvkd: student.path: /no/such does not exist\n")


def test_console_script(installed: Path, tmp_path: Path) -> None:
    (folder,) = installed.glob("nemo_tvkd-*.dist-info")
    distribution: Distribution = PathDistribution(folder)
    (script,) = distribution.entry_points
    assert (script.group, script.name, script.value) == ("console_scripts", "nemo-tvkd", "nemo_tvkd.__main__:main")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = [str(installed / "bin" / "nemo-tvkd"), "--version"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{distribution.version}\n")


def test_requirements_and_extras(installed: Path) -> None:
    (folder,) = installed.glob("nemo_tvkd-*.dist-info")
    distribution: Distribution = PathDistribution(folder)
    assert set(distribution.metadata.get_all("Provides-Extra") or []) == {"gpu", "test", "wandb", "docs", "eval"}
    required = [line for line in distribution.requires or [] if "extra ==" not in line]
    assert any(line.startswith("nemo_toolkit") or line.startswith("nemo-toolkit") for line in required)
    # what is optional is never required
    assert not [line for line in required if line.startswith(("transformer-engine", "apex", "lm-eval"))]
